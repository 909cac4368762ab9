//! The sampler that every CPU-side target uses: one row of logits in, one token out.
//!
//! Order of operations: mask → logit bias → penalties → temperature → min-p → top-k → top-p → draw.
//! Log-probabilities are of the raw logits. A row depends on nothing but itself, so it may run on any
//! thread. The same logits give the same choice on every processor: see `exp` and `choose`.

mod choose;
mod exp;
mod ops;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::{RowOutput, RowTask, SampleRow, Sampled, TokenId};
pub use ops::{ReferenceOps, SamplerOps};

/// What JSON shows for a log-probability of −∞.
const NOT_REPRESENTABLE: f32 = -9999.0;

/// Chooses or scores the token of one row, with the passes of [`ReferenceOps`].
///
/// As [`sample_row_with`].
pub fn sample_row(logits: &[f32], row: &SampleRow, vocab_size: usize) -> RowOutput {
    sample_row_with(&ReferenceOps, logits, row, vocab_size)
}

/// Chooses or scores the token of one row.
///
/// `vocab_size` bounds the ids that exist; logits from there on are padding and are not read. Ids of
/// the row at or above it have no effect. The outcome is [`RowOutput::NonFinite`] when the valid
/// logits hold NaN or +∞, when bias and penalties make such values, when no token is left to draw,
/// and when the token to score does not exist.
pub fn sample_row_with(
    ops: &impl SamplerOps,
    logits: &[f32],
    row: &SampleRow,
    vocab_size: usize,
) -> RowOutput {
    match outcome(ops, &logits[..vocab_size.min(logits.len())], row) {
        Some(sampled) => RowOutput::Token(sampled),
        None => RowOutput::NonFinite,
    }
}

fn outcome(ops: &impl SamplerOps, logits: &[f32], row: &SampleRow) -> Option<Sampled> {
    let max = ops.finite_max(logits)?;
    let token_id = match row.task {
        RowTask::Score(token_id) => token_id,
        RowTask::Draw => draw(ops, (logits, max), row, uniform(row.seed, row.position))?,
        RowTask::Distribution => ops.first_of(logits, max),
    };
    let logprob = log_probability(max, ops.sum_exp(logits, max));
    let with_id = |id: TokenId| (id, logprob(logits[id as usize]));
    let count = row.params.num_logprobs.unwrap_or(0) as usize;
    Some(Sampled {
        token_id,
        logprob: logprob(*logits.get(token_id as usize)?),
        top: match row.task {
            RowTask::Distribution => (0..logits.len() as TokenId).map(with_id).collect(),
            _ => {
                let ids = ops.largest(logits, count).into_iter();
                ids.map(with_id).collect()
            }
        },
    })
}

/// The log-probability of a logit of the row whose largest logit and [`SamplerOps::sum_exp`] these are.
pub fn log_probability(max: f32, sum_exp: f64) -> impl Fn(f32) -> f32 {
    let log_sum = f64::from(max) + sum_exp.ln();
    move |logit| representable((f64::from(logit) - log_sum) as f32)
}

fn representable(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        NOT_REPRESENTABLE
    }
}

/// The token that `u` in `[0, 1)` falls on. `raw` comes with its largest logit.
fn draw(ops: &impl SamplerOps, raw: (&[f32], f32), row: &SampleRow, u: f64) -> Option<TokenId> {
    let params = &row.params;
    let (logits, max) = match edited(raw.0, row) {
        Cow::Borrowed(logits) => (Cow::Borrowed(logits), raw.1),
        Cow::Owned(logits) => {
            let max = ops.finite_max(&logits)?;
            (Cow::Owned(logits), max)
        }
    };
    if params.temperature == 0.0 {
        return Some(ops.first_of(&logits, max));
    }
    if params.temperature.is_nan() || params.temperature < 0.0 {
        return None;
    }
    Some(ops.choose(&logits, max, params, u))
}

/// The logits after mask, bias and penalties; copied only where there are some.
fn edited<'a>(raw: &'a [f32], row: &SampleRow) -> Cow<'a, [f32]> {
    let params = &row.params;
    let mut logits = Cow::Borrowed(raw);
    if row.banned.is_empty() && params.logit_bias.is_empty() && !params.has_penalties() {
        return logits;
    }
    let edited = logits.to_mut();
    for id in row.banned.iter() {
        if let Some(x) = edited.get_mut(*id as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
    for (id, bias) in &params.logit_bias {
        if let Some(x) = edited.get_mut(*id as usize) {
            *x += bias;
        }
    }
    if params.has_penalties() {
        penalise(edited, row);
    }
    logits
}

/// Repetition penalty as in CTRL (Keskar et al. 2019) over prompt and output; frequency and presence
/// penalties as OpenAI documents them, over the output only.
fn penalise(logits: &mut [f32], row: &SampleRow) {
    let params = &row.params;
    for count in &row.counts {
        let Some(x) = logits.get_mut(count.token_id as usize) else {
            continue;
        };
        *x = if *x > 0.0 {
            *x / params.repetition_penalty
        } else {
            *x * params.repetition_penalty
        };
        if count.num_generated > 0 {
            *x -= params.frequency_penalty * count.num_generated as f32 + params.presence_penalty;
        }
    }
}

/// A number in `[0, 1)` that depends on the request's seed and the token's position only: two rounds
/// of SplitMix64 (Steele, Lea and Flood 2014), its upper 53 bits.
pub fn uniform(seed: u64, position: u32) -> f64 {
    let mixed = splitmix(splitmix(seed) ^ u64::from(position));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
