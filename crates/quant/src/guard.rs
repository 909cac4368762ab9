//! Which matrices one scale for each output does not suffice for. Most rows of weights lose about 40 dB
//! with it; a few matrices of some models have outliers that leave the other weights of their rows few
//! steps, and get a scale for each group of inputs instead.

use crate::{GROUP, Granularity, Quantised, snr_db};

/// Rows below this signal-to-noise ratio count as poor: a tenth of the weight's amplitude is three
/// steps away.
pub const LEAST_SNR_DB: f64 = 30.0;

/// Poor rows in a thousand that a matrix may have.
pub const MOST_POOR_ROWS: usize = 10;

/// Rows that are looked at in one matrix.
const SAMPLE: usize = 1024;

/// The rows that stand for a matrix of so many: all of them, or some evenly apart.
pub fn sample(rows: usize) -> Vec<usize> {
    let count = rows.min(SAMPLE);
    (0..count).map(|i| i * rows / count).collect()
}

/// Whether a row loses too much with one scale. One with numbers that are not finite does not count:
/// it has no 8-bit form at all.
pub fn is_poor(row: &[f32]) -> bool {
    Quantised::new(row, 1, row.len(), Granularity::Row)
        .is_ok_and(|quantised| snr_db(&quantised.dequantise(), row) < LEAST_SNR_DB)
}

/// Which weights share a scale in a matrix with `poor` poor rows among those looked at.
pub fn granularity(poor: usize, looked_at: usize) -> Granularity {
    match poor * 1000 > looked_at * MOST_POOR_ROWS {
        true => Granularity::Groups(GROUP),
        false => Granularity::Row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of even spread, 42 dB, with `outlier` in one place.
    fn row(outlier: f32) -> Vec<f32> {
        let mut row: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        row[7] = outlier;
        row
    }

    #[test]
    fn an_outlier_makes_a_row_poor() {
        assert!(!is_poor(&row(50.0)));
        assert!(!is_poor(&row(100.0)));
        assert!(is_poor(&row(1000.0)));
        assert!(!is_poor(&[0.0; 10]), "zeros lose nothing");
        assert!(!is_poor(&row(f32::NAN)));
    }

    #[test]
    fn a_noticeable_share_of_poor_rows_asks_for_groups() {
        assert_eq!(granularity(0, 1000), Granularity::Row);
        assert_eq!(granularity(10, 1000), Granularity::Row);
        assert_eq!(granularity(11, 1000), Granularity::Groups(GROUP));
        assert_eq!(granularity(1, 9), Granularity::Groups(GROUP));
        assert_eq!(granularity(0, 0), Granularity::Row);
    }

    #[test]
    fn the_sample_is_spread_over_the_matrix() {
        assert_eq!(sample(3), [0, 1, 2]);
        assert!(sample(0).is_empty());
        let rows = sample(10 * SAMPLE);
        assert_eq!((rows.len(), rows[0], rows[SAMPLE - 1]), (SAMPLE, 0, 10_230));
    }
}
