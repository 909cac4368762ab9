//! The passes over a row that cost time, apart from the decisions between them.

use super::choose::choose;
use super::exp::exp_nonpositive;
use crate::{SamplingParams, TokenId};

/// The passes over the logits of a row. A target may do them its own way, to the same bits as
/// [`ReferenceOps`].
pub trait SamplerOps {
    /// The largest logit, if there is one above −∞ and none is NaN or +∞.
    fn finite_max(&self, logits: &[f32]) -> Option<f32>;

    /// `Σ exp(x − max)`: element `i` goes to sum `i mod 16` in double precision, and the sums are added
    /// in order.
    fn sum_exp(&self, logits: &[f32], max: f32) -> f64;

    /// The lowest id with this logit, which exists.
    fn first_of(&self, logits: &[f32], logit: f32) -> TokenId;

    /// Ids of the `count` largest logits, best first, ties by lowest id. None is NaN.
    fn largest(&self, logits: &[f32], count: usize) -> Vec<TokenId>;

    /// Applies temperature, min-p, top-k and top-p and draws by `u` in `[0, 1)`.
    ///
    /// A token's mass is `exp((x − max) / temperature)` as a whole number of 2⁻³⁰, ties to even. Tokens
    /// of mass 0 or below min-p (rounded likewise) are dropped; then all but the `top_k` largest, the
    /// lowest id first among equal ones; then all but the fewest largest whose mass reaches `top_p` of
    /// the sum, rounded up. `u` times the mass that is left, rounded down, falls on the token drawn,
    /// masses laid end to end in order of id.
    ///
    /// `max` is the largest logit and finite; the temperature is above zero.
    fn choose(&self, logits: &[f32], max: f32, params: &SamplingParams, u: f64) -> TokenId;
}

/// Plain loops and sorts.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReferenceOps;

/// Running sums of [`SamplerOps::sum_exp`].
const LANES: usize = 16;

impl SamplerOps for ReferenceOps {
    fn finite_max(&self, logits: &[f32]) -> Option<f32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (max.is_finite() && !logits.iter().any(|x| x.is_nan())).then_some(max)
    }

    fn sum_exp(&self, logits: &[f32], max: f32) -> f64 {
        let mut sums = [0.0f64; LANES];
        for (i, x) in logits.iter().enumerate() {
            sums[i % LANES] += f64::from(exp_nonpositive(x - max));
        }
        sums.iter().sum()
    }

    fn first_of(&self, logits: &[f32], logit: f32) -> TokenId {
        let first = logits.iter().position(|x| *x == logit);
        first.expect("the logit is one of the row") as TokenId
    }

    fn largest(&self, logits: &[f32], count: usize) -> Vec<TokenId> {
        let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        if count > 0 {
            let logit = |id: &TokenId| logits[*id as usize];
            ids.sort_by(|a, b| logit(b).partial_cmp(&logit(a)).expect("no NaN"));
        }
        ids.truncate(count);
        ids
    }

    fn choose(&self, logits: &[f32], max: f32, params: &SamplingParams, u: f64) -> TokenId {
        choose(logits, max, params, u)
    }
}
