//! Which kernel multiplies a matrix with how many tokens fastest on this device: measured when the weights are
//! there, before anything is captured, among two to four ways of which a table names the first.
//!
//! All ways give the same bits (sums of 8-bit products are integers, and scales are applied in one order), so a
//! measurement changes no answer. What is measured can be kept in a file; reading and writing it is the caller's.
//! Products in 16 bits follow the table alone.

mod measure;
mod pick;
mod record;

use std::collections::HashMap;

use quant::{BLOCK, GROUP, Granularity};

use crate::device::Properties;
use crate::linear::{
    BLOCK_TILES, INT8_TILES, MAX_SPLIT, Tile, WARPGROUP_TILES, WARPGROUP_TOKENS, choose, division,
};
use crate::pack::padded;

pub use measure::{Clock, Tuning};
pub(crate) use measure::{Tuner, fastest};
pub use pick::{median, pick};
pub use record::{Entry, Key, Tuned};

/// Numbers of tokens that are measured; each stands for those down to the one before, the last for more too.
pub const BUCKETS: [usize; 7] = [8, 16, 32, 64, 128, 256, 1024];
/// The most tokens of the kernel that streams weights.
pub(crate) const STREAM_TOKENS: usize = 16;
const MAX_WAYS: usize = 4;

/// The bucket that stands for so many tokens.
#[must_use]
pub fn bucket(tokens: usize) -> usize {
    let last = BUCKETS[BUCKETS.len() - 1];
    *BUCKETS.iter().find(|b| tokens <= **b).unwrap_or(&last)
}

/// What of a device decides about ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Whether it has the products of warpgroups, and they are right.
    pub warpgroups: bool,
}

impl Part {
    /// As the device describes itself.
    #[must_use]
    pub fn of(properties: &Properties) -> Self {
        Self {
            multiprocessors: properties.multiprocessors,
            warpgroups: properties.warpgroups,
        }
    }
}

/// What two 8-bit products have in common that the same way is fastest for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// Rows of the matrix.
    pub outputs: usize,
    /// Its columns.
    pub inputs: usize,
    /// How many activations share a scale; 0 where all of a token do.
    pub group: usize,
    /// Whether weights have a scale for each group, too.
    pub grouped_weights: bool,
}

impl Problem {
    /// Groups of K and the columns of one.
    pub(crate) fn groups(&self) -> [usize; 2] {
        match self.group {
            0 => [1, self.k_bytes()],
            len => [self.inputs.div_ceil(len), len],
        }
    }

    /// Bytes of a row of weights.
    pub(crate) fn k_bytes(&self) -> usize {
        padded(self.inputs)
    }

    pub(crate) fn group_of(activations: Granularity) -> usize {
        match activations {
            Granularity::Row => 0,
            Granularity::Groups(len) => len,
        }
    }

    fn tiles(&self, tile: &Tile, tokens: usize) -> usize {
        self.outputs.div_ceil(tile.channels) * tokens.div_ceil(tile.tokens)
    }

    /// Among how many blocks K is divided where nothing else was measured.
    fn division(&self, tile: &Tile, tokens: usize, part: Part) -> usize {
        if self.grouped_weights {
            return 1;
        }
        let slots = tile.per_multiprocessor * part.multiprocessors as usize;
        let tiles = self.tiles(tile, tokens);
        division(self.groups()[0], tiles, slots, self.k_bytes() / 64)
    }

    /// Among how many blocks K may be divided at most.
    fn max_division(&self) -> usize {
        match self.groups()[0] > 1 || self.grouped_weights {
            true => 1,
            false => MAX_SPLIT.min(self.k_bytes() / 64 / 2).max(1),
        }
    }

    /// Whether a stage of a warpgroup is one group, where there are groups.
    fn is_for_warpgroups(&self) -> bool {
        [GROUP, self.k_bytes()].contains(&self.groups()[1])
    }
}

/// A kernel, and among how many blocks each K is divided.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// None streams weights.
    pub(crate) tile: Option<&'static Tile>,
    split: usize,
}

impl PartialEq for Way {
    fn eq(&self, other: &Self) -> bool {
        (self.kernel(), self.split) == (other.kernel(), other.split)
    }
}

impl Way {
    const STREAM: Self = Self {
        tile: None,
        split: 1,
    };

    fn new(problem: &Problem, tile: &'static Tile, tokens: usize, part: Part) -> Self {
        Self {
            tile: Some(tile),
            split: problem.division(tile, tokens, part),
        }
    }

    /// Name of the kernel.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.tile.map_or("gemm_i8_stream", |tile| tile.kernel)
    }

    /// Blocks that share a K.
    #[must_use]
    pub fn split(&self) -> usize {
        self.split
    }

    /// The same for the tokens at hand: no more blocks than K has work and the workspace has tiles for.
    pub(crate) fn division(&self, problem: &Problem, tokens: usize, workspace: usize) -> usize {
        match self.tile {
            Some(tile) if problem.tiles(tile, tokens) <= workspace => {
                self.split.min(problem.max_division())
            }
            _ => 1,
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.split {
            1 => f.write_str(self.kernel()),
            split => write!(f, "{} by {split}", self.kernel()),
        }
    }
}

fn family(problem: &Problem) -> &'static [Tile] {
    match problem.group {
        BLOCK => &BLOCK_TILES,
        _ => &INT8_TILES,
    }
}

/// The table's way: few tokens stream weights, more get the smallest tile that takes them all. `part.warpgroups`
/// says whether many tokens get tiles of warpgroups.
#[must_use]
pub fn by_table(problem: &Problem, tokens: usize, part: Part) -> Way {
    if tokens <= STREAM_TOKENS {
        return Way::STREAM;
    }
    let by_warpgroups =
        part.warpgroups && tokens >= WARPGROUP_TOKENS && problem.is_for_warpgroups();
    let tiles = match by_warpgroups {
        true => &WARPGROUP_TILES,
        false => family(problem),
    };
    Way::new(problem, choose(tiles, tokens), tokens, part)
}

/// The table's way first, then those that may be faster: the other kind of tiles, the next smaller and larger one,
/// and K divided among half or twice as many blocks.
#[must_use]
pub fn candidates(problem: &Problem, tokens: usize, part: Part) -> Vec<Way> {
    let table = by_table(problem, tokens, part);
    let mut ways = vec![table];
    let mut add = |way: Way| {
        if ways.len() < MAX_WAYS && !ways.contains(&way) {
            ways.push(way);
        }
    };
    if WARPGROUP_TILES.iter().any(|t| t.kernel == table.kernel()) {
        for tile in WARPGROUP_TILES.iter().filter(|t| t.tokens / 2 < tokens) {
            add(Way::new(problem, tile, tokens, part));
        }
    }
    let tiles = family(problem);
    let fitting = tiles.iter().position(|t| tokens <= t.tokens);
    let fitting = fitting.unwrap_or(tiles.len() - 1);
    let larger = (fitting + 1).min(tiles.len() - 1);
    // A block of 32 tokens is the smallest there is: larger ones only waste more of few tokens.
    let indices = match tokens <= STREAM_TOKENS {
        true => [fitting; 3],
        false => [fitting, fitting.saturating_sub(1), larger],
    };
    for index in indices {
        add(Way::new(problem, &tiles[index], tokens, part));
    }
    let fitting = Way::new(problem, &tiles[fitting], tokens, part);
    let base = if table.tile.is_some() { table } else { fitting };
    for split in [base.split / 2, base.split * 2] {
        if (1..=problem.max_division()).contains(&split) {
            add(Way { split, ..base });
        }
    }
    ways
}

/// Ways other than the table's, by what they are fastest for.
#[derive(Debug, Clone, Default)]
pub struct Ways(HashMap<(Problem, usize), Way>);

impl Ways {
    /// From now on a bucket of tokens is multiplied so.
    pub fn insert(&mut self, problem: Problem, bucket: usize, way: Way) {
        self.0.insert((problem, bucket), way);
    }

    /// What was measured for so many tokens, if it was.
    #[must_use]
    pub fn get(&self, problem: &Problem, tokens: usize) -> Option<Way> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(*problem, bucket(tokens))).copied()
    }
}

#[cfg(test)]
mod tests;
