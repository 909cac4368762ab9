//! The bundled load generator: drives any OpenAI-compatible server, measures what a reader of the
//! stream sees, and reconciles its own counts with the server's counters. `main` only parses the
//! command line; [`app::measure`] is the whole program.

pub mod app;
pub mod args;
pub mod arrival;
pub mod chunk;
pub mod clock;
pub mod config;
pub mod content;
pub mod contrast;
pub mod dataset;
pub mod driver;
pub mod effort;
pub mod exchange;
pub mod exposition;
pub mod interval;
pub mod lengths;
pub mod metric_map;
pub mod observe;
pub mod outcome;
pub mod page;
pub mod parts;
pub mod probe;
pub mod progress;
pub mod reconcile;
pub mod record;
pub mod report;
pub mod rng;
pub mod schedule;
pub mod scrape;
pub mod search;
pub mod self_test;
pub mod slo;
pub mod sse;
pub mod stats;
pub mod steady;
pub mod table;
pub mod target;
pub mod think;
pub mod timeline;
pub mod trace;
pub mod transport;
pub mod workload;
pub mod workload_file;
