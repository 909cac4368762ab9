//! The sampler's exponential function.
//!
//! A sampler calls it for every id of a vocabulary, and its bits decide which token a seed draws. The
//! system's function differs between C libraries and between processors; this one is additions and
//! multiplications in a fixed order, the same everywhere.

/// Below this the result is zero; the true one is under 2⁻¹²⁵.
const UNDERFLOW: f32 = -87.0;

/// `e^x` for `x ≤ 0`, within two units in the last place.
///
/// Splits `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2` (Cody and Waite 1980), sums the Taylor series of
/// `e^r` to the seventh power, whose remainder is below 6·10⁻⁹, and puts `n` in the exponent.
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    /// Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// The upper bits of ln 2: its product with `n` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x > UNDERFLOW { x } else { UNDERFLOW };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;

    let mut series = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        series = series * r + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x > UNDERFLOW { series * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_two_units_in_the_last_place() {
        for i in 0..=1_000_000 {
            let x = i as f32 * -87e-6;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(
                x <= UNDERFLOW || error < 2.0 * f64::from(f32::EPSILON),
                "exp({x}) is off by {error}"
            );
        }
    }

    #[test]
    fn has_exact_ends_and_never_rises_above_one() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        assert_eq!(exp_nonpositive(-1e-30), 1.0);
        assert_eq!(exp_nonpositive(-87.1), 0.0);
        assert_eq!(exp_nonpositive(-1e30), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        for i in 0..100_000 {
            assert!(exp_nonpositive(i as f32 * -1e-9) <= 1.0);
        }
    }
}
