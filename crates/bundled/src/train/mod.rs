//! The trainer: a Llama with its gradient, the optimiser, greedy decoding and checkpoints. Runs on
//! the CPU in f32; nothing of it is used when the model is served.

pub mod attention;
pub mod checkpoint;
pub mod decode;
pub mod error;
pub mod export;
mod matmul;
pub mod model;
mod ops;
pub mod optimizer;
pub mod run;

#[cfg(test)]
mod tests;
