//! The runs of one configuration, as they stand in a folder, and what they say together.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::data::Run;
use super::metric::Metric;
use crate::interval::{self, Interval};
use crate::results::RUN;
use crate::stats::Gaps;

/// Folders inside folders that are looked through for runs.
pub const MAX_DEPTH: usize = 6;

/// Runs of one configuration, at least one.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    pub runs: Vec<Run>,
}

impl Group {
    /// Several runs under the name of the first.
    pub fn new(runs: Vec<Run>) -> Self {
        Self {
            name: runs[0].name.clone(),
            runs,
        }
    }

    /// Reads a result file, the folder of a run, that of repeats or that of a comparison, whose sides are
    /// several groups.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        if path.is_file() {
            return Ok(vec![Self::new(vec![Run::read(path)?])]);
        }
        let groups = Self::below(path)?;
        if groups.is_empty() {
            bail!("{} holds no {RUN}", path.display());
        }
        Ok(groups)
    }

    /// All runs below a folder.
    ///
    /// # Errors
    /// A folder or a result that cannot be read.
    pub fn below(folder: &Path) -> Result<Vec<Self>> {
        let mut groups = read_folder(folder, MAX_DEPTH)?;
        groups.sort_by_key(|group| group.runs[0].side());
        Ok(groups)
    }

    /// The runs that numbers are taken from: those that are not invalid, or all if none is left.
    pub fn counted(&self) -> Vec<&Run> {
        let valid: Vec<&Run> = self.runs.iter().filter(|run| run.is_valid()).collect();
        if valid.is_empty() {
            self.runs.iter().collect()
        } else {
            valid
        }
    }

    /// Runs that are shown and not counted.
    pub fn excluded(&self) -> impl Iterator<Item = &Run> {
        let is_any_valid = self.runs.iter().any(Run::is_valid);
        self.runs
            .iter()
            .filter(move |run| is_any_valid && !run.is_valid())
    }

    /// Whether there is a number to believe.
    pub fn is_valid(&self) -> bool {
        self.runs.iter().any(Run::is_valid)
    }

    /// A metric of every counted run; none when one of them lacks it.
    pub fn values(&self, metric: Metric) -> Option<Vec<f64>> {
        self.counted().iter().map(|run| metric.of(run)).collect()
    }

    /// The metric over runs: its mean, with an interval when there are several.
    pub fn summary(&self, metric: Metric) -> Option<(f64, Option<Interval>)> {
        let values = self.values(metric)?;
        Some((interval::mean(&values), interval::of_mean(&values)))
    }

    /// Gaps between events of all counted runs in one histogram.
    pub fn gaps(&self) -> Gaps {
        let mut all = Gaps::default();
        for run in self.counted() {
            all.add(&run.latency.chunk_gap_counts);
        }
        all
    }
}

fn read_folder(folder: &Path, depth: usize) -> Result<Vec<Group>> {
    if folder.join(RUN).is_file() {
        return Ok(vec![Group::new(vec![Run::read(&folder.join(RUN))?])]);
    }
    if depth == 0 {
        return Ok(Vec::new());
    }
    let (mut own, mut groups) = (Vec::new(), Vec::new());
    for entry in subfolders(folder)? {
        if entry.join(RUN).is_file() {
            own.push(Run::read(&entry.join(RUN))?);
        } else {
            groups.extend(read_folder(&entry, depth - 1)?);
        }
    }
    // Folders of runs beside each other are repeats when the runs say so; else each is its own.
    let (mut repeats, single): (Vec<Run>, Vec<Run>) =
        own.into_iter().partition(|run| run.series.is_some());
    repeats.sort_by_key(|run| (run.series_id(), run.side(), run.repeat()));
    for run in repeats {
        match groups.last_mut() {
            Some(last) if last.runs[0].is_repeat_of(&run) => last.runs.push(run),
            _ => groups.push(Group::new(vec![run])),
        }
    }
    groups.extend(single.into_iter().map(|run| Group::new(vec![run])));
    Ok(groups)
}

/// Folders in a folder, by name.
pub fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}
