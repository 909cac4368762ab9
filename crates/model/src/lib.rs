//! Language models: one decoder for every family, one loader per family, and weight files.
//!
//! A family is a loader that turns a checkpoint into the decoder's closed enums; layout quirks are
//! repaired while loading. The forward pass names no dtype, no device and no candle type. Text is not
//! handled here: a checkpoint hands out its tokenizer and template files as they are.

mod causal_lm;
mod text_files;

pub use causal_lm::{CausalLm, ModelInfo};
pub use text_files::{GenerationDefaults, TextFiles};
