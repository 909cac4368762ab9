//! The Backend trait, its plain data types, the reference target and the conformance suite.
