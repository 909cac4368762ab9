//! What a suite consists of: cells, each one model in one precision under all loads, and comparisons of two.

use std::time::Duration;

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use super::{Compare, Fit, Load, Model, Suite};
use crate::results::plain;

/// A model in one precision.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The model.
    pub model: &'a Model,
    /// The precision.
    pub precision: &'a str,
}

/// A cell, or a comparison of two.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// What it is called.
    pub name: String,
    /// What its sides are called on pages.
    pub side_names: Vec<String>,
    /// What is served, all at once.
    pub sides: Vec<Side<'a>>,
    /// What is asked, of each side.
    pub loads: Vec<Load>,
}

impl Side<'_> {
    /// `MODEL PRECISION on SERVER`.
    pub fn name(&self) -> String {
        format!(
            "{} {} on {}",
            self.model.name, self.precision, self.model.server
        )
    }
}

impl Suite {
    /// Cells in order, then comparisons.
    pub fn jobs(&self) -> Vec<Job<'_>> {
        let cells = self.cells().map(|side| Job {
            name: side.name(),
            side_names: vec![side.name()],
            sides: vec![side],
            loads: self.loads_of(side).cloned().collect(),
        });
        let compared = self.compare.iter().map(|compare| Job {
            name: compare.name.clone(),
            side_names: compare.names.to_vec(),
            sides: self.compared(compare).unwrap_or_default(),
            loads: vec![Load {
                name: "pairs".into(),
                flags: compare.flags.clone(),
                models: Vec::new(),
                search: false,
                repeats: compare.pairs,
                expected_s: compare.expected_s,
            }],
        });
        cells.chain(compared).collect()
    }

    /// Every model in every precision.
    pub fn cells(&self) -> impl Iterator<Item = Side<'_>> {
        self.model.iter().flat_map(|model| {
            let each = model.precisions.iter();
            each.map(move |precision| Side { model, precision })
        })
    }

    fn loads_of(&self, side: Side<'_>) -> impl Iterator<Item = &Load> {
        let is_for =
            move |load: &&Load| load.models.is_empty() || load.models.contains(&side.model.name);
        self.load.iter().filter(is_for)
    }

    /// The cells that a comparison names.
    pub(super) fn compared(&self, compare: &Compare) -> Result<Vec<Side<'_>>> {
        let find = |name: &String| match self.cells().find(|side| side.name() == *name) {
            Some(side) => Ok(side),
            None => bail!("comparison {}: there is no cell `{name}`", compare.name),
        };
        if compare.cells[0] == compare.cells[1] {
            bail!(
                "comparison {}: `{}` against itself",
                compare.name,
                compare.cells[0]
            );
        }
        compare.cells.iter().map(find).collect()
    }

    /// How long a job takes.
    pub fn expected(&self, job: &Job<'_>) -> Duration {
        let start = |side: &Side<'_>| {
            self.server
                .get(&side.model.server)
                .map_or(0.0, |s| s.expected_start_s)
        };
        let starts: f64 = job.sides.iter().map(start).sum();
        let loads = job
            .loads
            .iter()
            .map(|l| l.expected_s * f64::from(l.repeats));
        Duration::from_secs_f64(starts + loads.sum::<f64>() * job.sides.len() as f64)
    }

    /// The first side that does not fit, with the figures.
    pub fn refusal(&self, job: &Job<'_>) -> Option<String> {
        let fits = job
            .sides
            .iter()
            .filter_map(|side| self.fit(side.model.shape, side.precision));
        fits.filter_map(|fit: Fit| fit.refusal()).next()
    }

    /// Where the results of a job lie. A change of the command or of the loads, of files that their flags name too, makes
    /// another folder. What else makes a result what it is (the server's commit, the model's contents, the GPU and its
    /// driver) is not part of the name but of `versions.json`, which refuses another one: a folder of results is of one
    /// machine and one state of the code, and a reader finds a cell again by its name.
    pub(super) fn folder_name(&self, job: &Job<'_>) -> String {
        let mut hash = Sha256::new();
        for side in &job.sides {
            for word in &self.server[&side.model.server].command {
                hash.update(word);
                hash.update([0]);
            }
            hash.update(&side.model.source);
        }
        for load in &job.loads {
            hash.update(format!("\0{}\0{}\0{}", load.name, load.flags, load.repeats));
            for word in load.flags.split([' ', '=', ':']) {
                // Most words name no file.
                hash.update(std::fs::read(word).unwrap_or_default());
            }
        }
        let digest = hash.finalize();
        let name = plain(&job.name.replace(" on ", " "));
        format!("{name}-{:02x}{:02x}", digest[0], digest[1])
    }
}
