//! Embedding models: candle's encoder networks, the files of sentence-transformers, and the thread that
//! computes batches of texts.
//!
//! The interface holds token ids and floats, no tensors. A vector of a text does not depend on the texts
//! it is computed with, up to the rounding of sums: padding is masked, and the tests allow a difference
//! of 1e-5 in a vector of length one.

mod batch;
mod encoder;
mod network;
mod pooling;
mod settings;
mod tokenizer;
mod weights;
mod worker;

pub use encoder::{Encoder, EncoderOptions, LoadedEncoder, is_encoder};
pub use network::{Architecture, SUPPORTED};
pub use pooling::normalize;
pub use settings::Pooling;
pub use tokenizer::{TextTokenizer, TruncationSide};
pub use worker::{
    Encode, EncodeError, EncoderConfig, EncoderHandle, EncoderInfo, SubmitError, Vectors, spawn,
};
