//! Attention of the reference target: one query head of one token at a time, keys in order of position.

use super::{KvCache, Tensor, dot, expect_below, expect_equal};
use crate::{AttentionSpec, BLOCK_SIZE, BackendError, Batch, BatchSequence, Result};

pub(super) fn attention(
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    spec: &AttentionSpec,
    batch: &Batch,
) -> Result<Tensor> {
    check(q, cache, layer, spec, batch)?;
    let mut out = Tensor::zeros(q.rows, q.columns);
    let mut row = 0;
    for sequence in &batch.sequences {
        for i in 0..sequence.num_tokens {
            let position = sequence.num_computed_tokens + i;
            for head in 0..spec.num_heads {
                let features = head * spec.head_dim..(head + 1) * spec.head_dim;
                let kv_head = head * spec.num_kv_heads / spec.num_heads;
                let keys = Keys {
                    cache,
                    layer,
                    sequence,
                    offset: kv_head * spec.head_dim,
                    head_dim: spec.head_dim,
                };
                attend(
                    &q.row(row)[features.clone()],
                    &keys,
                    position,
                    spec,
                    &mut out.row_mut(row)[features],
                );
            }
            row += 1;
        }
    }
    Ok(out)
}

fn check(
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    spec: &AttentionSpec,
    batch: &Batch,
) -> Result<()> {
    expect_equal("query width", q.columns, spec.num_heads * spec.head_dim)?;
    expect_equal("query tokens", q.rows, batch.num_tokens())?;
    let width = spec.num_kv_heads * spec.head_dim;
    expect_equal("cache width", cache.width, width)?;
    cache.expect_layer(layer)?;
    if spec.num_kv_heads == 0 || !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        return Err(BackendError::Shape(format!(
            "{} query heads for {} key/value heads",
            spec.num_heads, spec.num_kv_heads
        )));
    }
    let blocks = cache.num_slots() / BLOCK_SIZE;
    for block in batch.sequences.iter().flat_map(|s| &s.block_table) {
        expect_below("block", *block as usize, blocks)?;
    }
    Ok(())
}

/// One key/value head of one sequence.
struct Keys<'a> {
    cache: &'a KvCache,
    layer: usize,
    sequence: &'a BatchSequence,
    offset: usize,
    head_dim: usize,
}

impl<'a> Keys<'a> {
    fn read(&self, store: &'a [Vec<f32>], position: usize) -> &'a [f32] {
        let block = self.sequence.block_table[position / BLOCK_SIZE] as usize;
        let slot = block * BLOCK_SIZE + position % BLOCK_SIZE;
        let start = slot * self.cache.width + self.offset;
        &store[self.layer][start..start + self.head_dim]
    }
}

/// Softmax over the visible positions, in 32 bits, then the weighted sum of their values.
fn attend(q: &[f32], keys: &Keys, position: usize, spec: &AttentionSpec, out: &mut [f32]) {
    let first = spec
        .window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    let mut scores: Vec<f32> = (first..=position)
        .map(|j| {
            let score = dot(q, keys.read(&keys.cache.keys, j)) * spec.scale;
            spec.soft_cap
                .map_or(score, |cap| cap * (score / cap).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter_mut()
        .for_each(|score| *score = (*score - max).exp());
    let sum: f32 = scores.iter().sum();
    for (j, score) in (first..=position).zip(&scores) {
        let weight = score / sum;
        out.iter_mut()
            .zip(keys.read(&keys.cache.values, j))
            .for_each(|(o, v)| *o += weight * v);
    }
}
