//! Which tokens may be drawn, and the draw.
//!
//! Weights are probabilities relative to the best token, whose weight is exactly one. Sets are made
//! without sorting a vocabulary: only what is kept is sorted.

use crate::{SamplingParams, TokenId};

/// A token in the order of preference: larger value first, the lower id on ties. The value's bits,
/// ordered as integers, stand above the complement of the id, so that a greater rank is a better
/// token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u64);

impl Rank {
    /// `value` is not NaN.
    pub fn new(value: f32, id: TokenId) -> Self {
        // Adding zero makes one zero of two.
        let bits = (value + 0.0).to_bits();
        let ordered = if bits >> 31 == 1 {
            !bits
        } else {
            bits | 1 << 31
        };
        Self((u64::from(ordered) << 32) | u64::from(!id))
    }

    pub fn id(self) -> TokenId {
        !(self.0 as u32)
    }
}

/// Moves the `count` best ranks to the front, sorted, best first, and returns them.
fn sort_best(ranks: &mut [Rank], count: usize) -> &[Rank] {
    let count = count.min(ranks.len());
    if count < ranks.len() && count > 0 {
        ranks.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    }
    let best = &mut ranks[..count];
    best.sort_unstable_by(|a, b| b.cmp(a));
    best
}

/// Ids of the `count` largest values, best first.
pub(super) fn largest(values: &[f32], count: usize) -> Vec<TokenId> {
    if count == 0 {
        return Vec::new();
    }
    let mut ranks: Vec<Rank> = (0..).zip(values).map(|(id, x)| Rank::new(*x, id)).collect();
    sort_best(&mut ranks, count)
        .iter()
        .map(|rank| rank.id())
        .collect()
}

/// Applies min-p, top-k and top-p to weights relative to the best and draws by `u` in `[0, 1)`.
/// None only when no weight is above zero.
///
/// Without top-k and top-p the candidates stand in order of id, with them best first; the order is
/// part of what a seed means.
pub(super) fn choose(weights: &[f32], params: &SamplingParams, u: f64) -> Option<TokenId> {
    // The best weight is one: a larger floor would leave nothing.
    let floor = params.min_p.clamp(0.0, 1.0);
    let is_candidate = |weight: f32| weight > 0.0 && weight >= floor;
    let top_k = params.top_k as usize;
    if top_k == 0 && params.top_p >= 1.0 {
        let candidates = (0..)
            .zip(weights)
            .filter(|(_, weight)| is_candidate(**weight));
        return pick(candidates.map(|(id, weight)| (id, *weight)), u);
    }
    let mut ranks: Vec<Rank> = (0..)
        .zip(weights)
        .filter(|(_, weight)| is_candidate(**weight))
        .map(|(id, weight)| Rank::new(*weight, id))
        .collect();
    if top_k > 0 {
        let kept = sort_best(&mut ranks, top_k).len();
        ranks.truncate(kept);
    }
    if params.top_p < 1.0 {
        keep_nucleus(&mut ranks, weights, f64::from(params.top_p));
    }
    let weight = |rank: &Rank| (rank.id(), weights[rank.id() as usize]);
    pick(ranks.iter().map(weight), u)
}

/// The token in whose share of the total `u` falls, shares laid end to end in the order given.
fn pick(candidates: impl Iterator<Item = (TokenId, f32)> + Clone, u: f64) -> Option<TokenId> {
    let total: f64 = candidates
        .clone()
        .map(|(_, weight)| f64::from(weight))
        .sum();
    let target = u * total;
    let mut sum = 0.0;
    let mut last = None;
    for (id, weight) in candidates {
        sum += f64::from(weight);
        last = Some(id);
        if sum > target {
            break;
        }
    }
    // Where rounding leaves a crumb behind the last candidate, it belongs to that one.
    last
}

/// Keeps the smallest set of best tokens whose share of the total reaches `top_p`, at least one,
/// sorted. Nuclei are mostly small, so ranks are sorted in growing pieces until it is reached.
fn keep_nucleus(ranks: &mut Vec<Rank>, weights: &[f32], top_p: f64) {
    let weight = |rank: &Rank| f64::from(weights[rank.id() as usize]);
    let target = top_p * ranks.iter().map(weight).sum::<f64>();
    let mut sum = 0.0;
    let (mut start, mut piece) = (0, 256);
    while start < ranks.len() {
        for (i, rank) in sort_best(&mut ranks[start..], piece).iter().enumerate() {
            sum += weight(rank);
            if sum >= target {
                ranks.truncate(start + i + 1);
                return;
            }
        }
        start += piece;
        piece *= 4;
    }
}
