//! What was measured, and the text that keeps it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::{BUCKETS, Part, Problem, Way, candidates, median, pick};

/// What measurements hold for: another part, driver or version of the kernels is measured anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    /// The device's name for itself.
    pub device: String,
    /// Its multiprocessors, of which a partition has fewer.
    pub multiprocessors: u32,
    /// The driver's version, 12080 for CUDA 12.8.
    pub driver: u32,
    /// Fingerprint of the kernels' sources.
    pub kernels: String,
}

/// One product's measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// What was taken.
    pub way: Way,
    /// Its time.
    pub micros: f64,
    /// That of the table's way.
    pub table_micros: f64,
}

impl Entry {
    /// The decision about ways, by their times round by round.
    #[must_use]
    pub fn new(ways: &[Way], rounds: &[Vec<f64>]) -> Self {
        let best = pick(rounds);
        let micros = |index: usize| rounds.get(index).map_or(f64::NAN, |times| median(times));
        Self {
            way: ways[best],
            micros: micros(best),
            table_micros: micros(0),
        }
    }
}

/// Everything that was measured on a device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tuned {
    /// What it holds for.
    pub key: Key,
    /// By product and bucket of tokens.
    pub entries: BTreeMap<(Problem, usize), Entry>,
    /// How long measuring took, all starts together.
    pub took: Duration,
    /// How long it took this start.
    pub now_took: Duration,
    /// How many products this start measured.
    pub num_measured: usize,
    /// How many it knew.
    pub num_known: usize,
    /// How many it left to the table for want of time or memory.
    pub num_left: usize,
}

const TITLE: &str = "octet cuda tuning 1";

impl Key {
    /// A file's name for it, of letters, digits and dashes.
    #[must_use]
    pub fn file_name(&self) -> String {
        let device: String = self
            .device
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(64)
            .collect();
        let kernels = self.kernels.get(..16).unwrap_or(&self.kernels);
        format!(
            "{device}-{}-{}-{kernels}.txt",
            self.multiprocessors, self.driver
        )
    }

    fn lines(&self) -> String {
        let device = self.device.replace(['\n', '\r'], " ");
        format!(
            "{TITLE}\ndevice {device}\nmultiprocessors {}\ndriver {}\nkernels {}\n",
            self.multiprocessors, self.driver, self.kernels
        )
    }
}

impl Tuned {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(key: Key) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    /// Entries whose way is not the table's.
    pub fn others(&self, part: Part) -> impl Iterator<Item = (&(Problem, usize), &Entry)> {
        let is_other = move |((problem, tokens), entry): &(&(Problem, usize), &Entry)| {
            entry.way != super::by_table(problem, *tokens, part)
        };
        self.entries.iter().filter(is_other)
    }

    /// As text: the key, the time taken, then a line for each product: outputs, inputs, the length of a group,
    /// whether weights have groups, tokens, kernel, blocks for each K, microseconds, those of the table's way.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = self.key.lines();
        writeln!(text, "took {:.6}", self.took.as_secs_f64()).expect("strings take any text");
        for ((problem, tokens), entry) in &self.entries {
            writeln!(
                text,
                "{} {} {} {} {tokens} {} {} {} {}",
                problem.outputs,
                problem.inputs,
                problem.group,
                u8::from(problem.grouped_weights),
                entry.way.kernel(),
                entry.way.split(),
                entry.micros,
                entry.table_micros
            )
            .expect("strings take any text");
        }
        text.push_str("end\n");
        text
    }

    /// Reads [`Self::to_text`] again.
    ///
    /// # Errors
    /// Which line is not what it should be: of another device, driver or version, cut off, or of a way that this
    /// part does not have.
    pub fn from_text(text: &str, key: &Key, part: Part) -> Result<Self, String> {
        let head = key.lines();
        let body = text
            .strip_prefix(&head)
            .ok_or("it is of another device, driver or version")?;
        let body = body.strip_suffix("end\n").ok_or("it is cut off")?;
        let mut lines = body.lines();
        let took = lines
            .next()
            .and_then(|line| line.strip_prefix("took ")?.parse().ok())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or("it does not say what it took")?;
        let mut tuned = Self {
            took,
            ..Self::new(key.clone())
        };
        for line in lines {
            let (at, entry) = parse(line, part).ok_or_else(|| format!("{line:?}"))?;
            tuned.entries.insert(at, entry);
        }
        Ok(tuned)
    }
}

fn parse(line: &str, part: Part) -> Option<((Problem, usize), Entry)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [
        outputs,
        inputs,
        group,
        grouped,
        tokens,
        kernel,
        split,
        micros,
        table,
    ] = words[..]
    else {
        return None;
    };
    let size = |word: &str| word.parse::<u32>().ok().map(|size| size as usize);
    let problem = Problem {
        outputs: size(outputs)?,
        inputs: size(inputs)?,
        group: size(group)?,
        grouped_weights: ["0", "1"].iter().position(|word| *word == grouped)? == 1,
    };
    let tokens = size(tokens).filter(|tokens| BUCKETS.contains(tokens))?;
    let split = size(split)?;
    // With and without products of warpgroups: a start decides on them anew.
    let ways = [part.warpgroups, false]
        .map(|warpgroups| candidates(&problem, tokens, Part { warpgroups, ..part }));
    let mut ways = ways.into_iter().flatten();
    let time = |word: &str| {
        word.parse()
            .ok()
            .filter(|t: &f64| t.is_finite() && *t > 0.0)
    };
    let entry = Entry {
        way: ways.find(|way| way.kernel() == kernel && way.split() == split)?,
        micros: time(micros)?,
        table_micros: time(table)?,
    };
    Some(((problem, tokens), entry))
}
