//! The engine: one thread that owns scheduler, model and device, and turns requests into tokens.
//!
//! It speaks token ids only; it knows nothing of HTTP, text or devices. Everything outside talks to
//! the thread by message, through a handle.

mod request;

pub use request::{
    EngineConfig, EngineError, FinishReason, GenerateRequest, PromptLogprob, StreamEvent,
    SubmitError,
};
