//! The conformance suite: one body per operation, run for every target against the reference.
