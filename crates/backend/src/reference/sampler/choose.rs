//! Which tokens may be drawn, and the draw: the obvious way, by sorting.
//!
//! A token's mass is its probability relative to the best token's, as a whole number of 2⁻³⁰. Sums of
//! masses are exact in any order, so every target finds the same sets and the same token, however it
//! divides the work.

use std::cmp::Reverse;

use super::exp::exp_nonpositive;
use crate::{SamplingParams, TokenId};

/// The mass of the best token.
const ONE: f32 = (1u32 << 30) as f32;

/// Applies temperature, min-p, top-k and top-p and draws by `u` in `[0, 1)`: the token in whose share
/// of the total `u` falls, shares laid end to end in order of id.
///
/// `max` is the largest logit and finite; the temperature is above zero.
pub(super) fn choose(logits: &[f32], max: f32, params: &SamplingParams, u: f64) -> TokenId {
    let in_parts = |weight: f32| (weight * ONE).round_ties_even() as u32;
    // The best weight is one: a larger floor would leave nothing.
    let floor = in_parts(params.min_p.clamp(0.0, 1.0)).max(1);
    let masses = logits
        .iter()
        .map(|x| in_parts(exp_nonpositive((x - max) / params.temperature)));
    let mut kept: Vec<(u32, TokenId)> = masses.zip(0..).filter(|(m, _)| *m >= floor).collect();
    kept.sort_unstable_by_key(|(mass, id)| (Reverse(*mass), *id));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let share = f64::from(params.top_p) * total(&kept) as f64;
        keep_nucleus(&mut kept, share.ceil() as u64);
    }
    kept.sort_unstable_by_key(|(_, id)| *id);
    pick(&kept, (u * total(&kept) as f64) as u64)
}

fn total(kept: &[(u32, TokenId)]) -> u64 {
    kept.iter().map(|(mass, _)| u64::from(*mass)).sum()
}

/// Keeps the smallest set of best tokens whose mass reaches `goal`, at least one.
fn keep_nucleus(sorted: &mut Vec<(u32, TokenId)>, goal: u64) {
    let mut sum = 0;
    let reaches = |(mass, _): &(u32, TokenId)| {
        sum += u64::from(*mass);
        sum >= goal
    };
    if let Some(last) = sorted.iter().position(reaches) {
        sorted.truncate(last + 1);
    }
}

/// The first token up to which more than `mark` lies.
fn pick(kept: &[(u32, TokenId)], mark: u64) -> TokenId {
    let mut sum = 0;
    let holds = kept.iter().find(|(mass, _)| {
        sum += u64::from(*mass);
        sum > mark
    });
    let (_, id) = holds.or(kept.last()).expect("the best token is kept");
    *id
}
