//! The sampler that every CPU-side target uses: one row of logits in, one token out.
//!
//! Order of operations: mask → logit bias → penalties → temperature → min-p → top-k → top-p → draw.
//! Log-probabilities are of the raw logits. A row depends on nothing but itself, so it may run on any
//! thread.

use std::cmp::Ordering;

use crate::{RowOutput, RowTask, SampleRow, Sampled, SamplingParams, TokenId};

/// What JSON shows for a log-probability of −∞.
const NOT_REPRESENTABLE: f32 = -9999.0;

/// Chooses or scores the token of one row. `vocab_size` bounds the ids that exist; logits from there
/// on are padding.
pub fn sample_row(logits: &[f32], row: &SampleRow, vocab_size: usize) -> RowOutput {
    let logits = &logits[..vocab_size.min(logits.len())];
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        return RowOutput::NonFinite;
    }
    let Some(log_sum) = log_sum_exp(logits) else {
        return RowOutput::NonFinite;
    };
    let token_id = match row.task {
        RowTask::Score(token_id) if (token_id as usize) < logits.len() => token_id,
        RowTask::Score(_) => return RowOutput::NonFinite,
        RowTask::Draw => match draw(logits, row) {
            Some(token_id) => token_id,
            None => return RowOutput::NonFinite,
        },
    };
    let logprob = |id: TokenId| representable(logits[id as usize] - log_sum);
    let count = row.params.num_logprobs.unwrap_or(0) as usize;
    let top = largest(logits, count)
        .into_iter()
        .map(|id| (id, logprob(id)))
        .collect();
    RowOutput::Token(Sampled {
        token_id,
        logprob: logprob(token_id),
        top,
    })
}

fn representable(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        NOT_REPRESENTABLE
    }
}

/// `ln Σ exp(x)`, summed in double precision in order of id; none when nothing is above −∞.
fn log_sum_exp(logits: &[f32]) -> Option<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    Some((f64::from(max) + sum.ln()) as f32)
}

/// Larger first, the lower id on ties.
fn by_logit(logits: &[f32]) -> impl Fn(&TokenId, &TokenId) -> Ordering + '_ {
    |a, b| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    }
}

/// Ids of the `count` largest logits, best first.
fn largest(logits: &[f32], count: usize) -> Vec<TokenId> {
    if count == 0 {
        return Vec::new();
    }
    let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    keep_largest(&mut ids, count, by_logit(logits));
    ids
}

/// Keeps the first `count` ids of the order, sorted.
fn keep_largest(
    ids: &mut Vec<TokenId>,
    count: usize,
    order: impl Fn(&TokenId, &TokenId) -> Ordering,
) {
    if count < ids.len() {
        ids.select_nth_unstable_by(count, &order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(&order);
}

fn draw(raw: &[f32], row: &SampleRow) -> Option<TokenId> {
    let params = &row.params;
    let mut logits = raw.to_vec();
    for id in row.banned.iter().filter(|id| (**id as usize) < raw.len()) {
        logits[*id as usize] = f32::NEG_INFINITY;
    }
    for (id, bias) in params
        .logit_bias
        .iter()
        .filter(|(id, _)| (*id as usize) < raw.len())
    {
        logits[*id as usize] += bias;
    }
    if params.has_penalties() {
        penalise(&mut logits, row);
    }
    let best = argmax(&logits)?;
    if params.temperature == 0.0 {
        return Some(best);
    }
    let max = logits[best as usize];
    let weights: Vec<f32> = logits
        .iter()
        .map(|x| ((x - max) / params.temperature).exp())
        .collect();
    Some(choose(&weights, params, uniform(row.seed, row.position)))
}

/// The lowest id among the largest logits.
fn argmax(logits: &[f32]) -> Option<TokenId> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, x) in logits.iter().enumerate() {
        if *x > max {
            max = *x;
            best = Some(id as TokenId);
        }
    }
    best
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

/// Draws from weights relative to the best, whose weight is 1. `u` lies in `[0, 1)`.
fn choose(weights: &[f32], params: &SamplingParams, u: f64) -> TokenId {
    let floor = params.min_p.max(0.0);
    let mut ids: Vec<TokenId> = (0..weights.len() as TokenId)
        .filter(|id| weights[*id as usize] > 0.0 && weights[*id as usize] >= floor)
        .collect();
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < ids.len() {
        keep_largest(&mut ids, top_k, by_logit(weights));
    }
    if params.top_p < 1.0 {
        keep_nucleus(&mut ids, weights, f64::from(params.top_p));
    }
    let total: f64 = ids.iter().map(|id| f64::from(weights[*id as usize])).sum();
    let mut rest = u * total;
    for id in &ids {
        rest -= f64::from(weights[*id as usize]);
        if rest < 0.0 {
            return *id;
        }
    }
    // Rounding can leave a crumb; it belongs to the last candidate. The best one is always kept.
    *ids.last()
        .expect("the best token has weight one and is never dropped")
}

/// The smallest set of best tokens whose share of the total reaches `top_p`; at least one. Sorts only
/// as many as it needs, because vocabularies are large and nuclei small.
fn keep_nucleus(ids: &mut Vec<TokenId>, weights: &[f32], top_p: f64) {
    let target = top_p
        * ids
            .iter()
            .map(|id| f64::from(weights[*id as usize]))
            .sum::<f64>();
    let mut sorted = 256;
    loop {
        let mut head = ids.clone();
        keep_largest(&mut head, sorted, by_logit(weights));
        let mut sum = 0.0;
        let reached = head.iter().position(|id| {
            sum += f64::from(weights[*id as usize]);
            sum >= target
        });
        if let Some(last) = reached {
            head.truncate(last + 1);
            *ids = head;
            return;
        }
        if sorted >= ids.len() {
            *ids = head;
            return;
        }
        sorted *= 8;
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
