//! Decoder<B>, one loader per family, weight files.
