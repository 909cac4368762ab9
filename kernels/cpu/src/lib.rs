//! CPU kernels: slices in, slices out, one operation per file.
//!
//! Every kernel is written once over sixteen lanes (`simd`) and compiled for each [`Isa`] level;
//! `Isa::Scalar` runs the same operations on arrays and is the twin that the others are tested
//! against. The order of every float sum is fixed, so the bits of a result depend on neither the
//! level, nor the number of rows, nor the number of threads. This crate knows nothing of models,
//! batches or files; threads come in through [`TaskRunner`].
#![allow(unsafe_code)]
#![allow(
    clippy::needless_range_loop,
    reason = "lanes and register tiles are indexed: closures of iterators would not be compiled for the level"
)]

mod activation;
mod aligned;
mod attention;
mod dot;
mod isa;
mod kv_int8;
mod large_pages;
mod linear;
mod linear_w8a8;
mod math;
mod norm;
pub mod peak;
mod quantise;
mod rope;
mod runner;
pub mod sampler;
mod simd;
mod store_kv;
mod sum;
#[cfg(test)]
mod test_data;

pub use activation::{Activation, activate, gated};
pub use aligned::{AlignedBuf, Element};
pub use attention::{
    AttentionShape, KvElement, KvLayer, MAX_HEAD_DIM, QUERY_TILE, QueryTile, attention,
};
pub use dot::Int8Level;
pub use isa::Isa;
pub use kv_int8::Int8Word;
pub use linear::{Bf16Rows, Bf16Weight, Epilogue, LinearWeight, PANEL_WIDTH, linear, linear_bf16};
pub use linear_w8a8::{PackError, QuantisedWeight, linear_w8a8};
pub use norm::{NormKind, NormParams, norm};
pub use quantise::{QuantisedRows, RowLayout, quantise};
pub use rope::rope;
pub use runner::{Serial, TaskRunner, for_each_chunk, for_each_chunk_pair};
pub use store_kv::{KEY_BLOCK, KvGeometry, copy_block, store_keys, store_values};
