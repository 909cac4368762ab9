//! The router in process, over the engine with a scripted model.

mod generation;
mod routes;
mod support;
