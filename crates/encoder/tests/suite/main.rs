//! Encoders against what sentence-transformers computes.

mod families;
mod minilm;
mod refusals;
mod support;
