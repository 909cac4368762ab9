//! What a request asks for, checked. Every route that takes a body goes through the same readers,
//! ranges and tables, so a field means the same everywhere and has one limit.

mod chat;
mod completions;
mod embeddings;
pub(crate) mod fields;
mod message;
mod prompts;
mod reader;
mod sampling;
mod tokenize;

pub(crate) use chat::ChatRequest;
pub(crate) use completions::CompletionRequest;
pub(crate) use embeddings::{EmbeddingRequest, EncodingFormat, Truncation};
pub(crate) use sampling::{Context, Generate, StreamUsage};
pub(crate) use tokenize::{DetokenizeRequest, Spelled, TokenizeRequest, TokenizeText};
