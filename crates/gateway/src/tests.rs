//! The router in process, over the engine with a scripted model.

mod generation;
mod openapi;
mod routes;
mod support;
