//! What a request asks for, checked. Every route that generates text goes through the same readers,
//! ranges and tables, so a field means the same everywhere and has one limit.

mod chat;
mod completions;
pub(crate) mod fields;
mod message;
mod reader;
mod sampling;

pub(crate) use chat::ChatRequest;
pub(crate) use completions::CompletionRequest;
pub(crate) use sampling::{Context, Generate, StreamUsage};
