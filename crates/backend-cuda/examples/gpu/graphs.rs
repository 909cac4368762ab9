//! Replayed steps against computed ones, to the bit: every shape that a graph is captured for, with rows that are
//! padding, and with lengths, tables and numbers of rows that change between replays.

use backend::{Batch, Result, RowOutput};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, Precision};

use super::decoder::{Decoder, Layers, Model, Part, batch};

/// Tokens of a block, and keys of a split of attention.
const BLOCK: usize = 32;
const SPLIT: usize = 256;
/// A shape runs once, is captured, and is replayed from the capture's own step on.
const STEPS: usize = 5;
/// Rows of graphs with the fewest rows that are padded to each.
const ROWS: [(usize, usize); 11] = [
    (1, 1),
    (2, 2),
    (3, 3),
    (4, 4),
    (5, 5),
    (6, 6),
    (7, 7),
    (8, 8),
    (9, 16),
    (17, 32),
    (33, 64),
];

/// How much is compared.
pub struct Sizes {
    /// The model's layers.
    pub layers: usize,
    /// Most splits of a sequence for graphs of so many rows at most.
    pub splits: &'static [(usize, usize)],
}

impl Sizes {
    /// On a device.
    pub const REAL: Self = Self {
        layers: 4,
        splits: &[(64, 16)],
    };

    fn most_splits(&self, rows: usize) -> usize {
        let fits = self.splits.iter().find(|(most, _)| rows <= *most);
        fits.map_or(1, |(_, splits)| *splits)
    }
}

/// Sequences share the blocks before their last one, in an order of their own, so that few tokens have to be
/// computed before a comparison.
struct Contexts {
    shared: usize,
}

impl Contexts {
    fn of(sizes: &Sizes) -> Self {
        let most = sizes.splits.iter().map(|(_, splits)| *splits).max();
        Self {
            shared: most.unwrap_or(1) * SPLIT / BLOCK,
        }
    }

    fn num_blocks(&self) -> usize {
        self.shared + ROWS[ROWS.len() - 1].1
    }

    /// Tokens for every block, as sequences of one block each.
    fn fill(&self, from: usize, count: usize) -> Batch {
        let part = |block: usize| Part {
            computed: 0,
            count: BLOCK,
            blocks: vec![block as u32],
        };
        batch((from..from + count).map(part).collect())
    }

    /// One token for each of so many sequences, the longest of which has `splits` splits.
    fn decode(&self, rows: usize, splits: usize, step: usize) -> Batch {
        let part = |row: usize| {
            // The longest is another row in each step; every step has other lengths.
            let longest = splits * SPLIT - 1 - step * 37 % (SPLIT / 2);
            let computed = match (row + step) % rows {
                0 => longest,
                turn => (turn * 131 + step * 59) % longest,
            };
            let shared = |block| ((block * 7 + row + step) % self.shared) as u32;
            let mut blocks: Vec<u32> = (0..computed / BLOCK).map(shared).collect();
            blocks.push((self.shared + row) as u32);
            Part {
                computed,
                count: 1,
                blocks,
            }
        };
        batch((0..rows).map(part).collect())
    }
}

/// Prints a line for each shape in each precision; true when all replays give the bits of computed steps.
pub fn conform<D: Device>(
    open: &dyn Fn() -> Result<D>,
    sizes: &Sizes,
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let model = Model {
        name: "small",
        kind: Layers::Qwen2,
        hidden: 128,
        heads: [4, 2, 32],
        width: 256,
        layers: sizes.layers,
        vocab: 64,
    };
    let contexts = Contexts::of(sizes);
    let mut all = true;
    for precision in [Precision::Int8, Precision::F16] {
        let (tokens, blocks) = (contexts.shared * BLOCK, contexts.num_blocks());
        let computed = CudaBackend::new(open()?, precision);
        let replayed = CudaBackend::new(open()?, precision).with_graphs();
        let made = |target| Decoder::new(target, (model, precision), tokens, blocks);
        let (mut computed, mut replayed) = (made(computed)?, made(replayed)?);
        for from in (0..blocks).step_by(64) {
            let fill = contexts.fill(from, 64.min(blocks - from));
            computed.step(&fill)?;
            replayed.step(&fill)?;
        }
        for (fewest, most) in ROWS {
            let mut splits = 1;
            while splits <= sizes.most_splits(most) {
                let mut is_right = true;
                for step in 0..STEPS {
                    let rows = fewest + step * 5 % (most - fewest + 1);
                    let batch = contexts.decode(rows, splits, step);
                    let expected = computed.step(&batch)?;
                    is_right &= same(&replayed.step(&batch)?.rows, &expected.rows);
                }
                say(format!(
                    "{} {} steps of {fewest} to {most} rows over {splits} splits, replayed",
                    if is_right { "ok   " } else { "WRONG" },
                    precision.name()
                ));
                all &= is_right;
                splits *= 2;
            }
        }
    }
    Ok(all)
}

/// Tokens and the bits of log-probabilities, on which every logit has a part.
pub fn same(found: &[RowOutput], expected: &[RowOutput]) -> bool {
    let bits = |row: &RowOutput| match row {
        RowOutput::Token(sampled) => Some((sampled.token_id, sampled.logprob.to_bits())),
        RowOutput::NonFinite => None,
    };
    let found: Vec<_> = found.iter().map(bits).collect();
    !found.contains(&None) && expected.iter().map(bits).eq(found)
}
