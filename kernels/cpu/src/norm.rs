//! RMS norm (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016) of rows.
//!
//! Statistics are canonical sums (`sum`), so the bits are those of every level. Memory-bound.

use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};
use crate::sum::{Term, sum};

/// Which statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) · weight`.
    Rms,
    /// `(x − mean) / sqrt(var + eps) · weight + bias`.
    Layer,
}

/// A norm over each run of `width` features.
#[derive(Debug, Clone, Copy)]
pub struct NormParams<'a> {
    /// Which statistics.
    pub kind: NormKind,
    /// Features per statistic; divides the row.
    pub width: usize,
    /// As long as a row.
    pub weight: &'a [f32],
    /// As long as a row.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f32,
}

/// Normalises the rows of `x`, each as long as the weight, into `out`.
///
/// # Panics
/// When the lengths do not fit together.
pub fn norm(isa: Isa, params: NormParams, x: &[f32], out: &mut [f32]) {
    let columns = params.weight.len();
    assert_eq!(x.len(), out.len(), "as many results as inputs");
    assert!(params.width > 0 && columns.is_multiple_of(params.width));
    assert!(columns > 0 && x.len().is_multiple_of(columns));
    assert!(params.bias.is_none_or(|bias| bias.len() == columns));
    isa.dispatch(Rows { params, x, out });
}

struct Rows<'a> {
    params: NormParams<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let NormParams { weight, width, .. } = self.params;
        let runs_per_row = weight.len() / width;
        for run in 0..self.x.len() / width {
            let features = run % runs_per_row * width;
            let elements = run * width;
            normalise(
                s,
                &self.params,
                features,
                &self.x[elements..elements + width],
                &mut self.out[elements..elements + width],
            );
        }
    }
}

/// One run of features, whose weights start at `first`.
#[inline(always)]
fn normalise<S: Simd>(s: S, params: &NormParams, first: usize, x: &[f32], out: &mut [f32]) {
    let count = params.width as f32;
    let mean = match params.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum(s, x, Term::Value, 0.0) / count,
    };
    let variance = sum(s, x, Term::SquaredDifference, mean) / count;
    let scale = s.splat(1.0 / (variance + params.eps).sqrt());
    let mean = s.splat(mean);
    let mut i = 0;
    while i < x.len() {
        let end = (i + LANES).min(x.len());
        let features = first + i..first + end;
        let scaled = s.mul(s.sub(s.load_slice(&x[i..end]), mean), scale);
        let weight = s.load_slice(&params.weight[features.clone()]);
        let y = match params.bias {
            Some(bias) => s.fma(scaled, weight, s.load_slice(&bias[features])),
            None => s.mul(scaled, weight),
        };
        s.store_slice(&mut out[i..end], y);
        i = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{random, same_bits};

    fn exact(params: &NormParams, x: &[f32]) -> Vec<f64> {
        let mut out = Vec::new();
        for (run, values) in x.chunks_exact(params.width).enumerate() {
            let first = run * params.width % params.weight.len();
            let n = values.len() as f64;
            let mean = match params.kind {
                NormKind::Rms => 0.0,
                NormKind::Layer => values.iter().map(|x| f64::from(*x)).sum::<f64>() / n,
            };
            let squares = values.iter().map(|x| (f64::from(*x) - mean).powi(2));
            let variance = squares.sum::<f64>() / n;
            for (i, x) in values.iter().enumerate() {
                let y = (f64::from(*x) - mean) / (variance + f64::from(params.eps)).sqrt();
                let bias = params.bias.map_or(0.0, |bias| bias[first + i]);
                out.push(y * f64::from(params.weight[first + i]) + f64::from(bias));
            }
        }
        out
    }

    #[test]
    fn norms_are_accurate_and_the_same_on_every_level() {
        for (columns, width) in [(1, 1), (15, 5), (16, 16), (60, 20), (300, 300), (576, 64)] {
            let (weight, bias) = (random(1, columns), random(2, columns));
            let x = random(3, 3 * columns);
            for (kind, bias) in [
                (NormKind::Rms, None),
                (NormKind::Layer, Some(&bias[..])),
                (NormKind::Layer, None),
            ] {
                let params = NormParams {
                    kind,
                    width,
                    weight: &weight,
                    bias,
                    eps: 1e-5,
                };
                let mut expected = vec![0.0; x.len()];
                norm(Isa::Scalar, params, &x, &mut expected);
                for (y, want) in expected.iter().zip(exact(&params, &x)) {
                    assert!((f64::from(*y) - want).abs() < 2e-6 * (1.0 + want.abs()));
                }
                for isa in Isa::supported() {
                    let mut found = vec![0.0; x.len()];
                    norm(isa, params, &x, &mut found);
                    same_bits(&found, &expected, &format!("{kind:?} {columns} {isa}"));
                }
            }
        }
    }

    #[test]
    fn a_row_is_its_own_and_nan_stays_in_it() {
        let weight = random(1, 40);
        let mut x = random(2, 120);
        let params = NormParams {
            kind: NormKind::Rms,
            width: 40,
            weight: &weight,
            bias: None,
            eps: 1e-6,
        };
        let mut alone = vec![0.0; 40];
        norm(Isa::detect(), params, &x[80..], &mut alone);
        x[45] = f32::NAN;
        let mut all = vec![0.0; 120];
        norm(Isa::detect(), params, &x, &mut all);
        same_bits(&all[80..], &alone, "third row");
        assert!(all[40..80].iter().all(|y| y.is_nan()));
        assert!(all[..40].iter().all(|y| y.is_finite()));
    }
}
