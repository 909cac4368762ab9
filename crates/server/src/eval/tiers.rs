//! What a measured loss is called: three tiers, each with a target and a limit that must not be
//! crossed. They are calibrated on published tables of llama.cpp's formats: *exact-like* is where Q8_0
//! and Q6_K lie, *accurate* Q6_K and Q5_K, the limit of *fast* Q4_K_M.

use serde::Serialize;

use super::statistics::Summary;

/// Models with fewer parameters are held to wider limits: the same error moves them more.
const SMALL_MODEL: u64 = 1_000_000_000;
/// How much wider for the divergence, and how much lower the agreement.
const SMALL_DIVERGENCE: f64 = 2.0;
const SMALL_SAME_TOP: f64 = 0.015;

/// A class of precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Hardly to be told from the reference.
    ExactLike,
    /// What `auto` promises.
    Accurate,
    /// What `int8-fast` is held to.
    Fast,
    /// Worse than every tier.
    None,
}

/// A tier and how well it is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The best tier whose limits are all met.
    pub tier: Tier,
    /// Whether its targets are met as well.
    pub meets_target: bool,
}

/// Bounds of one kind.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Of perplexities, at most.
    ratio: f64,
    /// Mean, at most.
    divergence: f64,
    /// Share, at least.
    same_top: f64,
}

/// `(tier, target, limit, limit of the RMS change of probability)`.
const TIERS: [(Tier, Bounds, Bounds, f64); 3] = [
    (
        Tier::ExactLike,
        bounds(1.001, 0.003, 0.97),
        bounds(1.002, 0.005, 0.965),
        0.02,
    ),
    (
        Tier::Accurate,
        bounds(1.005, 0.006, 0.96),
        bounds(1.01, 0.012, 0.945),
        0.033,
    ),
    (
        Tier::Fast,
        bounds(1.01, 0.015, 0.94),
        bounds(1.025, 0.03, 0.92),
        0.055,
    ),
];

const fn bounds(ratio: f64, divergence: f64, same_top: f64) -> Bounds {
    Bounds {
        ratio,
        divergence,
        same_top,
    }
}

impl Bounds {
    fn hold(self, summary: &Summary, num_parameters: u64) -> bool {
        let is_small = num_parameters < SMALL_MODEL;
        let (factor, less) = match is_small {
            true => (SMALL_DIVERGENCE, SMALL_SAME_TOP),
            false => (1.0, 0.0),
        };
        summary.perplexity_ratio.value <= self.ratio
            && summary.divergence.mean.value <= self.divergence * factor
            && summary.same_top.value >= self.same_top - less
    }
}

/// The best tier that a measured loss lies in.
pub fn verdict(summary: &Summary, num_parameters: u64) -> Verdict {
    let within = |(_, _, limit, rms): &&(Tier, Bounds, Bounds, f64)| {
        limit.hold(summary, num_parameters) && summary.probability_change.rms <= *rms
    };
    match TIERS.iter().find(within) {
        Some((tier, target, ..)) => Verdict {
            tier: *tier,
            meets_target: target.hold(summary, num_parameters),
        },
        None => Verdict {
            tier: Tier::None,
            meets_target: false,
        },
    }
}

impl Verdict {
    /// In words.
    pub fn text(self) -> &'static str {
        match (self.tier, self.meets_target) {
            (Tier::ExactLike, true) => "exact-like, within its target",
            (Tier::ExactLike, false) => "exact-like, within its hard limit",
            (Tier::Accurate, true) => "accurate, within its target",
            (Tier::Accurate, false) => "accurate, within its hard limit",
            (Tier::Fast, true) => "fast, within its target",
            (Tier::Fast, false) => "fast, within its hard limit",
            (Tier::None, _) => "none: worse than every limit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::statistics::Comparison;

    const LARGE: u64 = 7_000_000_000;
    const SMALL: u64 = 135_000_000;

    fn summary(ratio: f64, divergence: f64, same_top: f64, rms: f64) -> Summary {
        let mut comparison = Comparison::default();
        comparison.add(&[-0.7, -0.7], &[-0.7, -0.7], 0);
        let mut summary = comparison.summary().expect("one position");
        summary.perplexity_ratio.value = ratio;
        summary.divergence.mean.value = divergence;
        summary.same_top.value = same_top;
        summary.probability_change.rms = rms;
        summary
    }

    #[test]
    fn every_figure_can_cost_a_tier() {
        use Tier::{Accurate, ExactLike, Fast, None};
        for (figures, size, tier, meets_target) in [
            ([1.0, 0.0, 1.0, 0.0], LARGE, ExactLike, true),
            ([1.0015, 0.0, 1.0, 0.0], LARGE, ExactLike, false),
            ([1.004, 0.0, 1.0, 0.0], LARGE, Accurate, true),
            ([1.0, 0.0055, 1.0, 0.0], LARGE, Accurate, true),
            ([1.0, 0.0055, 1.0, 0.0], SMALL, ExactLike, true),
            ([1.0, 0.011, 0.95, 0.0], LARGE, Accurate, false),
            ([1.0, 0.0, 0.94, 0.0], LARGE, Fast, true),
            ([1.0, 0.0, 0.94, 0.0], SMALL, Accurate, false),
            ([1.0, 0.0, 1.0, 0.05], SMALL, Fast, true),
            ([1.03, 0.0, 1.0, 0.0], LARGE, None, false),
            ([1.0, 0.0, 1.0, 0.06], LARGE, None, false),
        ] {
            let [ratio, divergence, same_top, rms] = figures;
            let found = verdict(&summary(ratio, divergence, same_top, rms), size);
            assert_eq!(
                (found.tier, found.meets_target),
                (tier, meets_target),
                "{figures:?}"
            );
        }
    }
}
