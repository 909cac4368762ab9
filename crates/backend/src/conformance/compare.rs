//! How two results are compared, and how a failure reads.

use std::fmt::Debug;

/// For each element, the largest magnitude of its row, NaN left out: the scale of an error where
/// elements of one row mix.
pub(super) fn row_scales(values: &[f32], columns: usize) -> Vec<f32> {
    values
        .chunks(columns)
        .flat_map(|row| {
            let largest = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            row.iter().map(move |_| largest)
        })
        .collect()
}

/// Fails when an element is further from the expected one than `bound` times its scale. NaN must
/// stand exactly where the reference has it.
pub(super) fn assert_close(
    found: &[f32],
    expected: &[f32],
    scales: &[f32],
    bound: f32,
    case: impl Debug,
) {
    assert_eq!(found.len(), expected.len(), "elements of {case:?}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let both_nan = found.is_nan() && expected.is_nan();
        assert!(
            both_nan || (found - expected).abs() <= bound * scales[i],
            "element {i} is {found}, expected {expected} within {bound} of {}; {case:?}",
            scales[i]
        );
    }
}

/// Fails unless every element has the same bits; any NaN equals any other.
pub(super) fn assert_same_bits(found: &[f32], expected: &[f32], case: impl Debug) {
    assert_eq!(found.len(), expected.len(), "elements of {case:?}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let both_nan = found.is_nan() && expected.is_nan();
        assert!(
            both_nan || found.to_bits() == expected.to_bits(),
            "element {i} is {found:e}, expected {expected:e} bit for bit; {case:?}"
        );
    }
}
