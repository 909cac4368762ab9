//! How far an approximation is from the exact numbers. Sums are in 64 bits.

/// `‖approximate − exact‖ / ‖exact‖`; zero where both are zero.
///
/// # Panics
/// When the lengths differ.
pub fn relative_error(approximate: &[f32], exact: &[f32]) -> f64 {
    let (error, signal) = powers(approximate, exact);
    if error == 0.0 {
        return 0.0;
    }
    (error / signal).sqrt()
}

/// Signal-to-noise ratio in decibels; infinite where nothing differs.
///
/// # Panics
/// When the lengths differ.
pub fn snr_db(approximate: &[f32], exact: &[f32]) -> f64 {
    let (error, signal) = powers(approximate, exact);
    if error == 0.0 {
        return f64::INFINITY;
    }
    10.0 * (signal / error).log10()
}

/// Sums of squares of the error and of the exact numbers.
fn powers(approximate: &[f32], exact: &[f32]) -> (f64, f64) {
    assert_eq!(approximate.len(), exact.len(), "numbers to compare");
    let pairs = approximate.iter().zip(exact);
    pairs.fold((0.0, 0.0), |(error, signal), (a, b)| {
        let (a, b) = (f64::from(*a), f64::from(*b));
        (error + (a - b) * (a - b), signal + b * b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Granularity, Quantised};

    #[test]
    fn known_ratios() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_error(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((relative_error(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert!((snr_db(&[3.0, 4.5], &[3.0, 4.0]) - 20.0).abs() < 1e-9);
        assert_eq!(snr_db(&[1.0], &[1.0]), f64::INFINITY);
    }

    /// An even spread over ±absmax in 254 steps has a known noise: step/√12 against absmax/√3.
    #[test]
    fn an_even_spread_has_the_ratio_of_theory() {
        let x: Vec<f32> = (0..100_001)
            .map(|i| (i as f32 - 50_000.0) / 50_000.0)
            .collect();
        let q = Quantised::new(&x, 1, x.len(), Granularity::Row).expect("finite");
        let expected = 20.0 * 254f64.log10();
        let found = snr_db(&q.dequantise(), &x);
        assert!((found - expected).abs() < 0.1, "{found} dB, not {expected}");
    }
}
