//! `loadtest suite`: a server for each model and precision of a file, started, measured and stopped one
//! after the other, and comparisons of two of them, which run together and are asked by turns. What does
//! not fit into the machine's memory is a result, not an attempt. A suite that was killed goes on with the
//! first run that it has not made.

mod cell;
mod halt;
mod job;
mod loads;
mod plan;
mod quality;
mod room;
mod serve;
mod summary;
mod versions;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

pub use cell::run;
pub use job::{Job, Side};
pub use plan::{Fit, plan};
pub use summary::{Cell, Figures, Found, SUMMARY, SideName, Summary, Tested};

/// The version of the format that is read.
const SCHEMA: u32 = 1;

/// A suite as its file describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    schema: u32,
    /// What the file calls itself.
    pub name: String,
    /// Whether it tries the rig with stand-ins for models: its pages say on every screen that they measure nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// What the plan counts with, where memory and price are known.
    pub machine: Option<Machine>,
    /// Programs that serve, by name.
    pub server: BTreeMap<String, Server>,
    /// What is served.
    pub model: Vec<Model>,
    /// What is asked, in this order.
    pub load: Vec<Load>,
    /// Cells that are held against each other, after all cells.
    #[serde(default)]
    pub compare: Vec<Compare>,
}

/// A machine in the units that its vendor prints.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Memory that a program sees, in GiB.
    pub memory_gib: f64,
    /// Share of it that the server takes.
    pub utilization: f64,
    /// What it needs beside weights and cache, in GiB.
    pub workspace_gib: f64,
    /// Price of an hour, in the currency of the file.
    pub price_per_hour: Option<f64>,
}

/// How a server is started.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its command; `{source}`, `{precision}`, `{port}` and `{name}` are replaced, an empty word is left out.
    pub command: Vec<String>,
    /// The path that answers 200 once it is ready.
    pub ready: String,
    /// How long that may take, in seconds.
    pub start_s: f64,
    /// How long it does take, in seconds, for the plan.
    pub expected_start_s: f64,
}

/// A model in its precisions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What it is called.
    pub name: String,
    /// A hub id, a folder or a file; empty is the server's own.
    pub source: String,
    /// The server, by name.
    pub server: String,
    /// One cell for each.
    pub precisions: Vec<String>,
    /// Sizes, for the plan.
    pub shape: Option<Shape>,
    /// A command that measures what a precision costs in quality; it writes JSON to `{json}`.
    #[serde(default)]
    pub quality: Vec<String>,
}

/// Sizes of a decoder with four square attention matrices and two matrices of its MLP, four times as wide:
/// GPT-NeoX.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Layers.
    pub layers: u32,
    /// Features of a token.
    pub hidden: u32,
    /// Rows of the embedding table and of the output matrix.
    pub vocabulary: u32,
}

/// A load: `loadtest`'s own flags.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// What it is called.
    pub name: String,
    /// Flags of a run.
    pub flags: String,
    /// Models that it is for; left out, all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Flags of `loadtest search` instead: the highest rate that keeps `--slo`.
    #[serde(default)]
    pub search: bool,
    /// Runs, each with a seed of its own.
    pub repeats: u32,
    /// How long one run takes, in seconds, for the plan.
    pub expected_s: f64,
}

/// Two cells whose servers run together and are asked by turns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// What it is called.
    pub name: String,
    /// The two cells as the plan names them, `MODEL PRECISION on SERVER`.
    pub cells: [String; 2],
    /// What they are called on its page.
    pub names: [String; 2],
    /// Flags of a run.
    pub flags: String,
    /// Runs of each.
    pub pairs: u32,
    /// How long one run takes, in seconds, for the plan.
    pub expected_s: f64,
}

impl Suite {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that is not a suite; unknown keys are named.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the suite {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the suite {}", path.display()))
    }

    /// Parses the text of one.
    ///
    /// # Errors
    /// As [`Suite::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let suite: Self = toml::from_str(text)?;
        if suite.schema != SCHEMA {
            bail!(
                "schema {} is not {SCHEMA}, the one that is read",
                suite.schema
            );
        }
        for model in &suite.model {
            if !suite.server.contains_key(&model.server) {
                bail!(
                    "model {}: there is no [server.{}]",
                    model.name,
                    model.server
                );
            }
        }
        let names: Vec<&String> = suite.model.iter().map(|model| &model.name).collect();
        let mut wanted = suite.load.iter().flat_map(|load| &load.models);
        if let Some(unknown) = wanted.find(|name| !names.contains(name)) {
            bail!("a load is for the model `{unknown}`, which the suite does not have");
        }
        let repeats = |load: &&Load| load.search && load.repeats != 1;
        if let Some(Load { name, repeats, .. }) = suite.load.iter().find(repeats) {
            bail!("load {name}: a search confirms its rate itself, repeats = {repeats} has no use");
        }
        for compare in &suite.compare {
            suite.compared(compare)?;
        }
        Ok(suite)
    }
}
