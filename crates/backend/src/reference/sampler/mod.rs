//! The sampler that every CPU-side target uses: one row of logits in, one token out.
//!
//! Order of operations: mask → logit bias → penalties → temperature → min-p → top-k → top-p → draw.
//! Log-probabilities are of the raw logits. A row depends on nothing but itself, so it may run on any
//! thread. The same logits give the same choice on every processor: see `exp`.

mod choose;
mod exp;
#[cfg(test)]
mod tests;

use crate::{RowOutput, RowTask, SampleRow, Sampled, TokenId};
use choose::{choose, largest};
use exp::exp_nonpositive;

/// What JSON shows for a log-probability of −∞.
const NOT_REPRESENTABLE: f32 = -9999.0;

/// Chooses or scores the token of one row.
///
/// `vocab_size` bounds the ids that exist; logits from there on are padding and are not read. Ids of
/// the row at or above it have no effect. The outcome is [`RowOutput::NonFinite`] when the valid
/// logits hold NaN or +∞, when bias and penalties make such values, when no token is left to draw,
/// and when the token to score does not exist.
pub fn sample_row(logits: &[f32], row: &SampleRow, vocab_size: usize) -> RowOutput {
    match outcome(&logits[..vocab_size.min(logits.len())], row) {
        Some(sampled) => RowOutput::Token(sampled),
        None => RowOutput::NonFinite,
    }
}

fn outcome(logits: &[f32], row: &SampleRow) -> Option<Sampled> {
    let max = finite_max(logits)?;
    let token_id = match row.task {
        RowTask::Score(token_id) => token_id,
        RowTask::Draw => draw(logits, row, uniform(row.seed, row.position))?,
        RowTask::Distribution => first_of(logits, max)?,
    };
    let log_sum = f64::from(max) + sum_exp(logits, max).ln();
    let logprob = |logit: f32| representable((f64::from(logit) - log_sum) as f32);
    let with_id = |id: TokenId| (id, logprob(logits[id as usize]));
    let count = row.params.num_logprobs.unwrap_or(0) as usize;
    Some(Sampled {
        token_id,
        logprob: logprob(*logits.get(token_id as usize)?),
        top: match row.task {
            RowTask::Distribution => (0..logits.len() as TokenId).map(with_id).collect(),
            _ => largest(logits, count).into_iter().map(with_id).collect(),
        },
    })
}

fn representable(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        NOT_REPRESENTABLE
    }
}

/// Running values per pass over a row, so that compilers vectorise the pass; element `i` goes to lane
/// `i mod LANES`.
const LANES: usize = 16;

/// The largest logit, if there is one above −∞ and none is NaN or +∞.
fn finite_max(logits: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut has_nan = [false; LANES];
    for chunk in logits.chunks(LANES) {
        for (lane, x) in chunk.iter().enumerate() {
            max[lane] = if *x > max[lane] { *x } else { max[lane] };
            has_nan[lane] |= x.is_nan();
        }
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (max.is_finite() && !has_nan.contains(&true)).then_some(max)
}

/// `Σ exp(x − max)`, one running sum in double precision per lane, added in order of lane.
fn sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut sums = [0.0f64; LANES];
    for chunk in logits.chunks(LANES) {
        let mut weights = [0.0f32; LANES];
        for (weight, x) in weights.iter_mut().zip(chunk) {
            *weight = exp_nonpositive(x - max);
        }
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += f64::from(weight);
        }
    }
    sums.iter().sum()
}

/// The token that `u` in `[0, 1)` falls on.
fn draw(raw: &[f32], row: &SampleRow, u: f64) -> Option<TokenId> {
    let params = &row.params;
    let mut logits = raw.to_vec();
    for id in row.banned.iter() {
        if let Some(x) = logits.get_mut(*id as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
    for (id, bias) in &params.logit_bias {
        if let Some(x) = logits.get_mut(*id as usize) {
            *x += bias;
        }
    }
    if params.has_penalties() {
        penalise(&mut logits, row);
    }
    let max = finite_max(&logits)?;
    if params.temperature == 0.0 {
        return first_of(&logits, max);
    }
    if params.temperature.is_nan() || params.temperature < 0.0 {
        return None;
    }
    // From here on these are weights relative to the best token.
    for x in &mut logits {
        *x = exp_nonpositive((*x - max) / params.temperature);
    }
    choose(&logits, params, u)
}

/// The lowest id with this logit.
fn first_of(logits: &[f32], max: f32) -> Option<TokenId> {
    let first = logits.iter().position(|x| *x == max);
    first.map(|id| id as TokenId)
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
fn uniform(seed: u64, position: u32) -> f64 {
    let mixed = splitmix(splitmix(seed) ^ u64::from(position));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
