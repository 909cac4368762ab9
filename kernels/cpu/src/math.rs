//! Functions of one variable, by polynomials of our own, so that every level gives the same bits.
//!
//! The coefficients are minimax fits (Lawson's weighted least squares on Chebyshev nodes), rounded to
//! f32. NaN goes through every function.

use crate::simd::Simd;

pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `2^x`: round, six fused steps, exponent add. Below −126.5 the result is 0, from 127.5 it is +∞.
/// Relative error below 2e-7.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const COEFFICIENTS: [f32; 6] = [
        0.000_153_533_62,
        0.001_339_887_5,
        0.009_618_437,
        0.055_503_324,
        0.240_226_48,
        std::f32::consts::LN_2,
    ];
    // The bounds come first, so that NaN in the second operand survives.
    let x = s.min(s.splat(128.0), s.max(s.splat(-127.0), x));
    let shifted = s.add(x, s.splat(ROUND));
    let fraction = s.sub(x, s.sub(shifted, s.splat(ROUND)));
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.fma(p, fraction, s.splat(*c));
    }
    p = s.fma(p, fraction, s.splat(1.0));
    s.mul(p, s.shift_to_exponent(shifted))
}

/// `1 / (1 + e^−x)`, as a divisor: `1 + e^−x`.
#[inline(always)]
pub(crate) fn one_plus_exp_neg<S: Simd>(s: S, x: S::F) -> S::F {
    s.add(s.splat(1.0), exp2(s, s.mul(x, s.splat(-LOG2_E))))
}

/// Hyperbolic tangent: an odd polynomial below 0.625, `1 − 2 / (e^2|x| + 1)` above.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const COEFFICIENTS: [f32; 5] = [
        -0.005_528_634_4,
        0.020_483_317,
        -0.053_692_967,
        0.133_308_99,
        -0.333_332_63,
    ];
    let z = s.mul(x, x);
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.fma(p, z, s.splat(*c));
    }
    let near = s.fma(s.mul(x, z), p, x);
    let size = s.abs(x);
    let power = exp2(s, s.mul(size, s.splat(2.0 * LOG2_E)));
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(power, one)));
    let far = s.select_less(x, s.splat(0.0), s.sub(s.splat(0.0), far), far);
    s.select_less(size, s.splat(0.625), near, far)
}

/// `x · Φ(x)`. The upper tail of the normal distribution is `e^(−a²/2) · P(t)` with `t = 1/(1 + 0.3·a)`
/// (the form of Abramowitz and Stegun 7.1.26, with our own fit for `0 ≤ a ≤ 14`).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    const COEFFICIENTS: [f32; 8] = [
        0.035_674_807,
        -0.157_203_21,
        0.206_353_72,
        -0.053_683_74,
        0.128_561_72,
        0.099_913_46,
        0.120_753_96,
        0.119_629_3,
    ];
    let one = s.splat(1.0);
    let a = s.abs(x);
    let t = s.div(one, s.fma(a, s.splat(0.3), one));
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.fma(p, t, s.splat(*c));
    }
    let power = exp2(s, s.mul(s.mul(a, a), s.splat(-0.5 * LOG2_E)));
    let tail = s.mul(s.mul(p, t), power);
    let below = s.mul(x, tail);
    s.select_less(x, s.splat(0.0), below, s.sub(x, below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel};
    use crate::simd::LANES;
    use crate::test_data::same_bits;

    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp2,
        Tanh,
        Gelu,
        OnePlusExpNeg,
    }

    struct Apply<'a>(Function, &'a mut [f32]);

    impl Kernel for Apply<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.1.chunks_exact_mut(LANES) {
                let v = s.load_slice(x);
                let y = match self.0 {
                    Function::Exp2 => exp2(s, v),
                    Function::Tanh => tanh(s, v),
                    Function::Gelu => gelu(s, v),
                    Function::OnePlusExpNeg => one_plus_exp_neg(s, v),
                };
                s.store_slice(x, y);
            }
        }
    }

    /// Numbers of both signs and all sizes, and the special ones.
    fn arguments() -> Vec<f32> {
        let mut x = vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        x.extend([
            1e-40,
            -1e-40,
            f32::MAX,
            f32::MIN,
            127.49,
            128.0,
            -126.4,
            -127.0,
        ]);
        x.extend((-8000..8000).map(|i| i as f32 * 0.0017));
        x.extend((-1300..1300).map(|i| i as f32 * 0.1003));
        x.resize(x.len().next_multiple_of(LANES), 1.0);
        x
    }

    fn exact(function: Function, x: f64) -> f64 {
        match function {
            Function::Exp2 => x.exp2(),
            Function::Tanh => x.tanh(),
            Function::OnePlusExpNeg => 1.0 + (-x).exp(),
            Function::Gelu => x * normal(x),
        }
    }

    /// Simpson's rule from `x` towards the tail.
    fn normal(x: f64) -> f64 {
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (from, n) = (x.abs(), 2000);
        let h = 12.0 / n as f64;
        let inner: f64 = (1..n)
            .map(|i| (if i % 2 == 1 { 4.0 } else { 2.0 }) * density(from + i as f64 * h))
            .sum();
        let tail = (density(from) + inner + density(from + 12.0)) * h / 3.0;
        if x < 0.0 { tail } else { 1.0 - tail }
    }

    #[test]
    fn functions_are_accurate() {
        for (function, relative, absolute) in [
            (Function::Exp2, 2e-7, 1.5e-38),
            (Function::Tanh, 4e-7, 0.0),
            (Function::OnePlusExpNeg, 1e-5, 0.0),
            (Function::Gelu, 3e-7, 1e-7),
        ] {
            let x = arguments();
            let mut y = x.clone();
            Isa::Scalar.dispatch(Apply(function, &mut y));
            for (x, y) in x.iter().zip(&y) {
                let want = exact(function, f64::from(*x));
                if !x.is_finite() || x.abs() > 120.0 || want > 1e38 {
                    continue;
                }
                let error = (f64::from(*y) - want).abs();
                assert!(
                    error <= relative * want.abs() + absolute,
                    "{function:?}({x}) = {y}, not {want}"
                );
            }
        }
    }

    #[test]
    fn special_values_keep_their_meaning() {
        let apply = |function, x: f32| {
            let mut y = vec![x; LANES];
            Isa::Scalar.dispatch(Apply(function, &mut y));
            y[0]
        };
        for function in [
            Function::Exp2,
            Function::Tanh,
            Function::Gelu,
            Function::OnePlusExpNeg,
        ] {
            assert!(apply(function, f32::NAN).is_nan(), "{function:?}");
        }
        assert_eq!(apply(Function::Exp2, 0.0), 1.0);
        assert_eq!(apply(Function::Exp2, 128.0), f32::INFINITY);
        assert_eq!(apply(Function::Exp2, f32::INFINITY), f32::INFINITY);
        assert_eq!(apply(Function::Exp2, f32::NEG_INFINITY), 0.0);
        assert_eq!(apply(Function::Tanh, f32::INFINITY), 1.0);
        assert_eq!(apply(Function::Tanh, -100.0), -1.0);
        assert_eq!(apply(Function::Gelu, 100.0), 100.0);
        assert_eq!(apply(Function::Gelu, -100.0), 0.0);
    }

    #[test]
    fn levels_agree_on_bits() {
        for function in [
            Function::Exp2,
            Function::Tanh,
            Function::Gelu,
            Function::OnePlusExpNeg,
        ] {
            let mut expected = arguments();
            Isa::Scalar.dispatch(Apply(function, &mut expected));
            for isa in Isa::supported() {
                let mut y = arguments();
                isa.dispatch(Apply(function, &mut y));
                same_bits(&y, &expected, &format!("{function:?} on {isa}"));
            }
        }
    }
}
