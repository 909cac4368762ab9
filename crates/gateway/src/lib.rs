//! HTTP: OpenAI types, chat template, tokenise and detokenise, SSE, ApiError.
//!
//! The gateway turns HTTP requests into token requests for the engine and its tokens into answers. It
//! knows nothing of tensors and reads neither flags nor the environment.

mod answer;
mod auth;
mod body;
mod config;
mod error;
mod gateway;
mod generation;
mod ids;
mod json;
mod observe;
mod pool;
mod rate;
mod request;
mod routes;
mod serve;
mod stream;
mod template;
mod text;

#[cfg(test)]
mod tests;

pub use config::{GatewayConfig, GenerationPolicy, RequestLimits, Timeouts, VersionInfo};
pub use error::ApiError;
pub use gateway::{Gateway, Readiness, ServedEncoder, ServedModel, ServedModelError};
pub use routes::router;
pub use serve::{serve, serve_metrics};
pub use text::{TextError, TextTokens};
