//! The bundled model: generator, trainer, weights and model card.

pub mod chat;
pub mod dataset;
mod files;
pub mod prng;
pub mod skills;
pub mod tokenizer;
pub mod words;

pub mod train;

pub use files::{NAME, files};
