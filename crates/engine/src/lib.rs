//! The engine: one thread that owns scheduler, model and device, and turns requests into tokens.
//!
//! It speaks token ids only; it knows nothing of HTTP, text or devices. Everything outside talks to
//! the thread by message, through an [`EngineHandle`].

mod block_manager;
mod engine;
pub mod fake;
mod handle;
mod host_pool;
mod kv_cache_manager;
mod request;
mod scheduler;
mod sequence;
mod shared;
mod step_size;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use handle::{EngineHandle, TokenStream};
pub use shared::EngineStatus;

pub use backend::{Sampled, SamplingParams, TokenId};
pub use request::{
    EngineConfig, EngineError, FinishReason, GenerateRequest, PromptLogprob, StreamEvent,
    SubmitError,
};
