//! How two probability distributions over the same tokens differ, position by position, and what that
//! comes to over a text. Pure arithmetic in 64 bits; knows nothing of models.

use serde::Serialize;

/// The reference's best token is clearly so when the next one is less probable by this much, in nats.
pub const CLEAR_MARGIN: f32 = 0.1;

/// Percentiles of the change of the true token's probability.
const CHANGE_PERCENTILES: [f64; 7] = [0.1, 1.0, 5.0, 50.0, 95.0, 99.0, 99.9];

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error; zero of one sample.
    pub standard_error: f64,
}

/// Everything that is reported.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Scored tokens.
    pub tokens: usize,
    /// `exp` of the mean negative log-probability of the text.
    pub perplexity: Estimate,
    /// The same of the reference.
    pub reference_perplexity: Estimate,
    /// `exp` of the mean difference, token by token; its error is that of the pairs.
    pub perplexity_ratio: Estimate,
    /// `Σ p_ref (ln p_ref − ln p)` over the whole vocabulary, in nats.
    pub divergence: Divergence,
    /// Share of positions with the same most probable token.
    pub same_top: Estimate,
    /// The same where the reference's choice is clear.
    pub same_top_where_clear: Estimate,
    /// How many positions that are.
    pub clear_tokens: usize,
    /// Of the probability of the text's own token.
    pub probability_change: Change,
}

/// Kullback-Leibler divergence from the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Divergence {
    /// Over all positions.
    pub mean: Estimate,
    /// Half of the positions are below.
    pub median: f64,
    /// 99 % are below.
    pub percentile_99: f64,
    /// 99.9 % are below.
    pub percentile_99_9: f64,
    /// The worst.
    pub max: f64,
}

/// Change of a probability: symmetric is noise, skewed to the negative is damage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Over all positions.
    pub mean: Estimate,
    /// Root of the mean square.
    pub rms: f64,
    /// `(percent, value)`.
    pub percentiles: Vec<(f64, f64)>,
}

/// What is kept of one position.
#[derive(Debug, Clone, Copy)]
struct Position {
    loss: f64,
    reference_loss: f64,
    divergence: f64,
    is_same_top: bool,
    is_clear: bool,
    change: f64,
}

/// The positions compared so far.
#[derive(Debug, Default)]
pub struct Comparison {
    positions: Vec<Position>,
}

impl Comparison {
    /// Adds one position: log-probabilities of every token, and which one the text has.
    ///
    /// # Panics
    /// When the lengths differ or `next` is outside.
    pub fn add(&mut self, reference: &[f32], tested: &[f32], next: usize) {
        assert_eq!(reference.len(), tested.len(), "one vocabulary");
        let pairs = reference.iter().zip(tested);
        let divergence = pairs
            .map(|(r, t)| f64::from(r.exp()) * (f64::from(*r) - f64::from(*t)))
            .sum();
        let (best, margin) = best(reference);
        let (loss, reference_loss) = (-f64::from(tested[next]), -f64::from(reference[next]));
        self.positions.push(Position {
            loss,
            reference_loss,
            divergence,
            is_same_top: self::best(tested).0 == best,
            is_clear: margin > CLEAR_MARGIN,
            change: (-loss).exp() - (-reference_loss).exp(),
        });
    }

    /// The sums; none without a position.
    pub fn summary(&self) -> Option<Summary> {
        let of = |f: fn(&Position) -> f64| -> Vec<f64> { self.positions.iter().map(f).collect() };
        let losses = mean(&of(|p| p.loss))?;
        let reference_losses = mean(&of(|p| p.reference_loss))?;
        let differences = mean(&of(|p| p.loss - p.reference_loss))?;
        let share = |p: &Position| f64::from(u8::from(p.is_same_top));
        let clear = self.positions.iter().filter(|p| p.is_clear);
        let clear: Vec<f64> = clear.map(share).collect();
        Some(Summary {
            tokens: self.positions.len(),
            perplexity: losses.exp(),
            reference_perplexity: reference_losses.exp(),
            perplexity_ratio: differences.exp(),
            divergence: divergence(of(|p| p.divergence))?,
            same_top: mean(&of(|p| f64::from(u8::from(p.is_same_top))))?,
            // Where nothing is clear, nothing differs clearly.
            same_top_where_clear: mean(&clear).unwrap_or(Estimate {
                value: 1.0,
                standard_error: 0.0,
            }),
            clear_tokens: clear.len(),
            probability_change: change(of(|p| p.change))?,
        })
    }
}

impl Estimate {
    /// Of `exp` of the estimated number, to first order.
    fn exp(self) -> Self {
        let value = self.value.exp();
        Self {
            value,
            standard_error: value * self.standard_error,
        }
    }
}

/// The most probable token, the lowest id among equals, and how far ahead it is.
fn best(log_probabilities: &[f32]) -> (usize, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (id, &p) in log_probabilities.iter().enumerate() {
        if p > first {
            (best, second, first) = (id, first, p);
        } else if p > second {
            second = p;
        }
    }
    (best, first - second)
}

fn mean(values: &[f64]) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - value) * (x - value)).sum();
    Some(Estimate {
        value,
        standard_error: (squares / (n - 1.0).max(1.0) / n).sqrt(),
    })
}

/// The smallest value that `percent` of the sorted values do not exceed.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    // Less than a rank below, so that 99.9 % of 1000 is not rounded up to the 1000th.
    let rank = (percent * sorted.len() as f64 / 100.0 - 1e-6).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn divergence(mut values: Vec<f64>) -> Option<Divergence> {
    let mean = mean(&values)?;
    values.sort_by(f64::total_cmp);
    Some(Divergence {
        mean,
        median: percentile(&values, 50.0),
        percentile_99: percentile(&values, 99.0),
        percentile_99_9: percentile(&values, 99.9),
        max: percentile(&values, 100.0),
    })
}

fn change(mut values: Vec<f64>) -> Option<Change> {
    let average = mean(&values)?;
    let squares: f64 = values.iter().map(|x| x * x).sum();
    let rms = (squares / values.len() as f64).sqrt();
    values.sort_by(f64::total_cmp);
    let percentiles = CHANGE_PERCENTILES.map(|percent| (percent, percentile(&values, percent)));
    Some(Change {
        mean: average,
        rms,
        percentiles: percentiles.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs<const N: usize>(probabilities: [f32; N]) -> [f32; N] {
        probabilities.map(f32::ln)
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
    }

    #[test]
    fn one_distribution_against_itself_is_exactly_nothing() {
        let mut comparison = Comparison::default();
        for next in 0..3 {
            let p = logs([0.5, 0.3, 0.2]);
            comparison.add(&p, &p, next);
        }
        let summary = comparison.summary().expect("three positions");
        assert_eq!(summary.divergence.max, 0.0);
        assert_eq!(summary.perplexity_ratio.value, 1.0);
        assert_eq!(summary.perplexity_ratio.standard_error, 0.0);
        assert_eq!(summary.same_top.value, 1.0);
        assert_eq!(summary.probability_change.rms, 0.0);
    }

    /// By hand: losses ln 2, ln 4 against ln 4, ln 4.
    #[test]
    fn two_positions_by_hand() {
        let mut comparison = Comparison::default();
        comparison.add(&logs([0.5, 0.25, 0.25]), &logs([0.25, 0.5, 0.25]), 0);
        comparison.add(&logs([0.25, 0.26, 0.49]), &logs([0.25, 0.26, 0.49]), 0);
        let summary = comparison.summary().expect("two positions");
        let ln2 = 2f64.ln();
        close(summary.reference_perplexity.value, (1.5 * ln2).exp());
        close(summary.perplexity.value, 4.0);
        close(summary.perplexity.standard_error, 0.0);
        // Differences ln 2 and 0: mean ln 2 / 2, standard error ln 2 / 2.
        close(summary.perplexity_ratio.value, 2f64.sqrt());
        close(
            summary.perplexity_ratio.standard_error,
            2f64.sqrt() * ln2 / 2.0,
        );
        // 0.5 ln(0.5/0.25) + 0.25 ln(0.25/0.5) and 0.
        close(summary.divergence.max, 0.25 * ln2);
        close(summary.divergence.mean.value, 0.125 * ln2);
        close(summary.divergence.median, 0.0);
        close(summary.same_top.value, 0.5);
        close(summary.same_top.standard_error, 0.5);
        close(summary.probability_change.mean.value, -0.125);
        close(summary.probability_change.rms, 0.25 / 2f64.sqrt());
        assert_eq!(summary.probability_change.percentiles[0], (0.1, -0.25));
    }

    #[test]
    fn a_choice_is_clear_by_its_margin_and_ties_go_to_the_lowest_id() {
        assert_eq!(best(&[-2.0, -1.0, -1.0]), (1, 0.0));
        assert_eq!(best(&[-1.0, -2.0, -1.5]), (0, 0.5));
        let mut comparison = Comparison::default();
        comparison.add(&[-1.0, -1.05], &[-1.05, -1.0], 0);
        comparison.add(&[-1.0, -1.2], &[-1.0, -1.2], 0);
        let summary = comparison.summary().expect("two positions");
        assert_eq!(summary.clear_tokens, 1);
        assert_eq!(summary.same_top_where_clear.value, 1.0);
        assert_eq!(summary.same_top.value, 0.5);
    }

    #[test]
    fn percentiles_are_values_that_occur() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        for (percent, expected) in [(0.0, 1.0), (0.1, 1.0), (50.0, 500.0), (99.9, 999.0)] {
            assert_eq!(percentile(&values, percent), expected, "{percent}");
        }
        assert_eq!(percentile(&values, 100.0), 1000.0);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
    }

    #[test]
    fn without_positions_there_is_nothing_to_say() {
        assert_eq!(Comparison::default().summary(), None);
    }
}
