//! Where and when a run took place: the client's machine, the server's own words about itself, and the
//! place of the run among its repeats. Nothing here names the machine.

mod host;

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::calibration::Calibration;
use crate::gpu_watch::GpuLoad;
use crate::target::Target;
pub use host::{Gpu, Host, gpu};

/// How long the server may take to say what it is.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The circumstances of a run.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// Wall time of its start, a label only: `2026-11-24T19:30:00Z`.
    pub started: String,
    /// The client's machine.
    pub host: Host,
    /// Token events per second with which the client kept up in its self-test before the run, if it made one.
    pub self_test: Option<Option<f64>>,
    /// What the machine was before and after the run.
    pub calibration: Option<Calibration>,
    /// Its GPUs over the window.
    pub gpus: Vec<GpuLoad>,
    /// What the server answers at `/version`, if it does.
    pub version: Option<Value>,
    /// What it lists about the model, if it does.
    pub model: Option<Value>,
}

/// A run's place among the runs of one configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Series {
    /// What the runs that belong together have in common.
    pub id: String,
    /// Which side of a comparison, from zero.
    pub side: u32,
    /// Which of the runs of its side, from one. Runs of two sides with one number are a pair: they were
    /// made one after the other.
    pub repeat: u32,
    /// Runs of each side.
    pub of: u32,
}

impl Scene {
    /// Looks around, and asks the server what it is.
    pub async fn here(target: &Target, model: &str) -> Self {
        let list = ask(target, "/v1/models").await;
        let is_asked = |entry: &&Value| entry["id"] == model;
        let model = list.and_then(|list| list["data"].as_array()?.iter().find(is_asked).cloned());
        Self {
            started: chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            host: Host::this(target.address.ip().is_loopback()).await,
            self_test: None,
            calibration: None,
            gpus: Vec::new(),
            version: version(target).await,
            model,
        }
    }
}

/// What the server says of its version.
pub async fn version(target: &Target) -> Option<Value> {
    ask(target, "/version").await
}

async fn ask(target: &Target, path: &str) -> Option<Value> {
    let json = "application/json";
    let answer = target.fetch(Method::GET, path, json, Bytes::new(), TIMEOUT);
    match answer.await {
        Ok((200, body)) => serde_json::from_slice(&body).ok(),
        _ => None,
    }
}
