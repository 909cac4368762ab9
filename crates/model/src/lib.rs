//! Language models: one decoder for every family, one loader per family, and weight files.
//!
//! A family is a loader that turns a checkpoint into the decoder's layers; layout quirks are repaired
//! while loading. The forward pass names no dtype, no device and no candle type. Text is not handled
//! here: a checkpoint hands out its tokenizer and template files as they are.

mod arch;
mod causal_lm;
mod checkpoint;
mod config;
mod decoder;
mod error;
mod files;
mod folder;
mod gguf;
pub mod hub;
mod load;
mod mapped;
mod prompts;
mod quantised;
mod quantize;
mod rope;
mod safetensors_files;
mod tensors;
mod text_files;

pub use arch::{Family, supported};
pub use causal_lm::{ActiveWeights, CausalLm, ModelInfo};
pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use decoder::Decoder;
pub use error::{ModelError, Result};
pub use folder::{FloatTensors, Folder};
pub use load::{LoadOptions, load};
pub use prompts::Prompt;
pub use quantize::{Quantized, quantize};
pub use text_files::{GenerationDefaults, TextFiles};
