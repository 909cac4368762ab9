//! Inputs of the suite: sequences in a cache, steps over them, and features that depend on nothing
//! but their place, so that any cut of the same tokens into steps sees the same numbers.

use half::{bf16, f16};

use super::TestBackend;
use crate::{
    BLOCK_SIZE, Batch, BatchSequence, BlockId, HostTensor, LinearWeight, TokenId, WeightData,
};

/// Tokens `start..end` of one sequence, computed in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub sequence: usize,
    pub start: usize,
    pub end: usize,
}

/// A span in the order of reading.
pub(super) fn span(sequence: usize, start: usize, end: usize) -> Span {
    Span {
        sequence,
        start,
        end,
    }
}

/// One token, a whole prompt, chunks and decodes together; blocks empty, partly filled and full.
pub(super) const MIXED: &[Span] = &[
    Span {
        sequence: 0,
        start: 0,
        end: 7,
    },
    Span {
        sequence: 1,
        start: 40,
        end: 41,
    },
    Span {
        sequence: 2,
        start: 20,
        end: 57,
    },
    Span {
        sequence: 3,
        start: 64,
        end: 65,
    },
    Span {
        sequence: 4,
        start: 31,
        end: 33,
    },
    Span {
        sequence: 5,
        start: 0,
        end: 1,
    },
];

/// Sequences with their block tables, scattered over one cache.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub tables: Vec<Vec<BlockId>>,
    pub num_blocks: usize,
}

impl Scene {
    /// Room for every sequence that the spans name, up to their ends. The stride fixes the order of
    /// blocks in the cache; it is prime.
    pub fn new(spans: &[Span], stride: usize) -> Self {
        let num_sequences = spans.iter().map(|s| s.sequence + 1).max().unwrap_or(0);
        let needed: Vec<usize> = (0..num_sequences)
            .map(|i| {
                let ends = spans.iter().filter(|s| s.sequence == i).map(|s| s.end);
                ends.max().unwrap_or(0).div_ceil(BLOCK_SIZE)
            })
            .collect();
        let mut num_blocks = needed.iter().sum::<usize>() + 3;
        // Coprime numbers, so that every block is met once.
        while num_blocks.is_multiple_of(stride) {
            num_blocks += 1;
        }
        let mut next = (0..).map(|i| ((i * stride + 1) % num_blocks) as BlockId);
        let tables = needed
            .iter()
            .map(|blocks| next.by_ref().take(*blocks).collect())
            .collect();
        Self { tables, num_blocks }
    }

    /// The batch of one step, without logit rows.
    pub fn batch(&self, spans: &[Span]) -> Batch {
        Batch {
            token_ids: spans.iter().flat_map(token_ids).collect(),
            sequences: spans
                .iter()
                .map(|s| BatchSequence {
                    num_tokens: s.end - s.start,
                    num_computed_tokens: s.start,
                    block_table: self.tables[s.sequence].clone(),
                })
                .collect(),
            ..Batch::default()
        }
    }
}

/// The spans before these ones: what a cache must hold for them.
pub(super) fn history(spans: &[Span]) -> Vec<Span> {
    spans
        .iter()
        .filter(|s| s.start > 0)
        .map(|s| span(s.sequence, 0, s.start))
        .collect()
}

fn token_ids(s: &Span) -> impl Iterator<Item = TokenId> {
    let sequence = s.sequence;
    (s.start..s.end).map(move |p| ((sequence * 131 + p * 17 + 3) % VOCAB_SIZE) as TokenId)
}

/// Ids of scene batches are below this.
pub(super) const VOCAB_SIZE: usize = 97;

/// `[tokens of the spans, width]`, each element between −1 and 1 and fixed by seed, sequence,
/// position and feature alone.
pub(super) fn features(seed: u64, spans: &[Span], width: usize) -> Vec<f32> {
    spans
        .iter()
        .flat_map(|s| (s.start..s.end).map(move |position| (s.sequence, position)))
        .flat_map(|(sequence, position)| {
            let row = mix(seed ^ mix(((sequence as u64) << 32) | position as u64));
            (0..width as u64).map(move |i| unit(mix(row ^ i)))
        })
        .collect()
}

/// `[rows, columns]` between −1 and 1.
pub(super) fn matrix(seed: u64, rows: usize, columns: usize) -> Vec<f32> {
    features(seed, &[span(0, 0, rows)], columns)
}

/// The finaliser of SplitMix64.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// A type of checkpoint elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightType {
    F32,
    Bf16,
    F16,
}

pub(super) const WEIGHT_TYPES: [WeightType; 3] =
    [WeightType::F32, WeightType::Bf16, WeightType::F16];

/// A host tensor in a type of checkpoint; values are rounded to it.
pub(super) fn host(kind: WeightType, rows: usize, columns: usize, data: Vec<f32>) -> HostTensor {
    let data = match kind {
        WeightType::F32 => WeightData::F32(data),
        WeightType::Bf16 => WeightData::Bf16(data.into_iter().map(bf16::from_f32).collect()),
        WeightType::F16 => WeightData::F16(data.into_iter().map(f16::from_f32).collect()),
    };
    HostTensor::new(rows, columns, data).expect("the suite's tables are well formed")
}

/// A weight matrix `[outputs, inputs]`, with a bias where asked.
pub(super) fn weight(
    kind: WeightType,
    inputs: usize,
    outputs: usize,
    with_bias: bool,
) -> LinearWeight {
    let data = matrix(11, outputs, inputs);
    let bias = with_bias.then(|| matrix(12, 1, outputs));
    LinearWeight::new(host(kind, outputs, inputs, data), bias)
        .expect("the suite's weights are well formed")
}

/// A step of one sequence of `num_tokens` tokens whose logits are wanted for `logit_rows`.
pub(super) fn plain_step<B: TestBackend>(
    backend: &mut B,
    num_tokens: usize,
    logit_rows: Vec<usize>,
) -> B::Step {
    let spans = [span(0, 0, num_tokens)];
    let mut batch = Scene::new(&spans, 7).batch(&spans);
    batch.logit_rows = logit_rows;
    backend.begin_step(&batch).expect("the batch is valid")
}
