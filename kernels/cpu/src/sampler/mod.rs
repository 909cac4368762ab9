//! Passes over one row of logits: its largest value, the sum of its exponentials, its best tokens, and
//! the draw under temperature, min-p, top-k and top-p.
//!
//! A pass reads the row once, sixteen logits at a time, and is bound by the caches and, where there are
//! exponentials, by their some twenty operations. No pass sorts a vocabulary: see `choose`.

mod choose;
#[cfg(test)]
mod tests;

use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};
pub use choose::{Filters, Masses, choose};

/// The largest logit, if there is one above −∞ and none is NaN or +∞.
pub fn finite_max(isa: Isa, logits: &[f32]) -> Option<f32> {
    let (mut max, mut is_broken) = (f32::NEG_INFINITY, false);
    isa.dispatch(FiniteMax {
        logits,
        max: &mut max,
        is_broken: &mut is_broken,
    });
    (max.is_finite() && !is_broken).then_some(max)
}

/// `Σ exp(x − max)`, where no logit is above `max`: element `i` goes to sum `i mod 16` in double
/// precision, and the sums are added in order.
pub fn sum_exp(isa: Isa, logits: &[f32], max: f32) -> f64 {
    let mut sum = 0.0;
    isa.dispatch(SumExp {
        logits,
        max,
        sum: &mut sum,
    });
    sum
}

/// The first index with this value.
pub fn first_of(isa: Isa, logits: &[f32], logit: f32) -> Option<usize> {
    let mut first = None;
    isa.dispatch(FirstOf {
        logits,
        logit,
        first: &mut first,
    });
    first
}

/// Indices of the `count` largest values, the largest first, equal ones in order. None is NaN.
pub fn largest(isa: Isa, logits: &[f32], count: usize) -> Vec<u32> {
    let mut best = Best {
        count: count.min(logits.len()),
        found: Vec::new(),
        worst: None,
    };
    if count > 0 {
        isa.dispatch(Largest {
            logits,
            best: &mut best,
        });
        best.keep();
        best.found.sort_unstable_by(order);
    }
    best.found.into_iter().map(|(_, id)| id).collect()
}

/// `e^x` for `x ≤ 0`, 0 below −87 and for NaN: the sampler's own function, whose bits decide which
/// token a seed draws. `x = n·ln 2 + r` (Cody and Waite 1980), then the Taylor series of `e^r` to the
/// seventh power, without fused steps.
#[inline(always)]
fn exp_nonpositive<S: Simd>(s: S, x: S::F) -> S::F {
    const UNDERFLOW: f32 = -87.0;
    /// Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 8] = [
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let underflow = s.splat(UNDERFLOW);
    let clamped = s.max(x, underflow);
    let shifted = s.add(
        s.mul(clamped, s.splat(std::f32::consts::LOG2_E)),
        s.splat(ROUND),
    );
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.sub(clamped, s.mul(n, s.splat(LN_2_HIGH)));
    let r = s.sub(r, s.mul(n, s.splat(LN_2_LOW)));
    let mut series = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        series = s.add(s.mul(series, r), s.splat(*c));
    }
    let y = s.mul(series, s.shift_to_exponent(shifted));
    s.select_less(underflow, x, y, s.splat(0.0))
}

/// Sixteen logits from `i` on; −∞ where the row has ended.
#[inline(always)]
fn logits_from<S: Simd>(s: S, logits: &[f32], i: usize) -> S::F {
    let rest = &logits[i..];
    if let Some(full) = rest.first_chunk::<LANES>() {
        return s.load(full);
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    s.load(&lanes)
}

struct FiniteMax<'a> {
    logits: &'a [f32],
    max: &'a mut f32,
    is_broken: &'a mut bool,
}

impl Kernel for FiniteMax<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let infinity = s.splat(f32::INFINITY);
        let mut max = s.splat(f32::NEG_INFINITY);
        let mut broken = s.splat(0.0);
        let mut i = 0;
        while i < self.logits.len() {
            let x = logits_from(s, self.logits, i);
            max = s.max(x, max);
            // Neither NaN nor +∞ is below +∞.
            broken = s.select_less(x, infinity, broken, infinity);
            i += LANES;
        }
        *self.max = s.max_lane(max);
        *self.is_broken = s.max_lane(broken) > 0.0;
    }
}

struct SumExp<'a> {
    logits: &'a [f32],
    max: f32,
    sum: &'a mut f64,
}

impl Kernel for SumExp<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = s.splat(self.max);
        let mut sums = [0.0; LANES];
        let mut i = 0;
        while i < self.logits.len() {
            let x = s.sub(logits_from(s, self.logits, i), max);
            s.add_to_wide(&mut sums, exp_nonpositive(s, x));
            i += LANES;
        }
        for sum in sums {
            *self.sum += sum;
        }
    }
}

struct FirstOf<'a> {
    logits: &'a [f32],
    logit: f32,
    first: &'a mut Option<usize>,
}

impl Kernel for FirstOf<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (index, chunk) in self.logits.chunks(LANES).enumerate() {
            let mut is_here = false;
            for x in chunk {
                is_here |= *x == self.logit;
            }
            if is_here {
                for (lane, x) in chunk.iter().enumerate() {
                    if *x == self.logit {
                        *self.first = Some(index * LANES + lane);
                        return;
                    }
                }
            }
        }
    }
}

/// The best so far, and room for as many again, so that they are told apart rarely.
struct Best {
    count: usize,
    found: Vec<(f32, u32)>,
    /// The least of `count` values that were found: no later value that is not above it counts.
    worst: Option<f32>,
}

impl Best {
    fn push(&mut self, value: f32, id: u32) {
        self.found.push((value, id));
        if self.found.len() >= 2 * self.count + 256 {
            self.keep();
        }
    }

    /// Keeps the `count` best, in any order.
    fn keep(&mut self) {
        if self.found.len() >= self.count && self.count > 0 {
            let (_, worst, _) = self.found.select_nth_unstable_by(self.count - 1, order);
            self.worst = Some(worst.0);
            self.found.truncate(self.count);
        }
    }
}

fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    let by_value = b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal);
    by_value.then(a.1.cmp(&b.1))
}

struct Largest<'a> {
    logits: &'a [f32],
    best: &'a mut Best,
}

impl Kernel for Largest<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (index, chunk) in self.logits.chunks(LANES).enumerate() {
            let worst = self.best.worst;
            if let Some(worst) = worst {
                let mut is_any_better = false;
                for x in chunk {
                    is_any_better |= *x > worst;
                }
                if !is_any_better {
                    continue;
                }
            }
            for (lane, x) in chunk.iter().enumerate() {
                if worst.is_none_or(|worst| *x > worst) {
                    self.best.push(*x, (index * LANES + lane) as u32);
                }
            }
        }
    }
}
