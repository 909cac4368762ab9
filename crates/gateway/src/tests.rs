//! The router in process, over the engine with a scripted model.

mod bodies;
mod completions;
mod connections;
mod embeddings;
mod errors;
mod faults;
mod generation;
mod ignored;
mod lifecycle;
mod mutations;
mod openapi;
mod routes;
mod script;
mod stream;
pub(crate) mod support;
mod templates;
mod tokenize;
