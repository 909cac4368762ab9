//! From a row of 32-bit floats to 8-bit integers: `s = absmax / 127`, `q = round(x · (127 / absmax))`.
//!
//! A maximum has no order, and one IEEE division and one multiplication have one result, so the
//! integers are the same on every machine. Ties round to even, which is what hardware does.

/// Inputs of one group where nothing asks for other groups: enough to hide what scales cost, few enough
/// that an outlier harms little.
pub const GROUP: usize = 128;

/// Inputs of one block of the formats that have a scale for every 32 weights.
pub const BLOCK: usize = 32;

/// The largest integer; the smallest is its negative, so that negation never overflows.
pub const LARGEST: f32 = 127.0;

/// Rows or groups whose largest magnitude is below this become zeros with scale zero.
pub const SMALLEST_ABSMAX: f32 = 1e-30;

/// Which numbers of a row share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All of them.
    Row,
    /// Each run of this many, counted from the first; the last may be shorter.
    Groups(usize),
}

impl Granularity {
    /// Numbers that share a scale in a row of `columns`, at least one; the last group may hold fewer.
    pub fn group_len(self, columns: usize) -> usize {
        match self {
            Self::Row => columns.max(1),
            Self::Groups(len) => len.max(1),
        }
    }

    /// The granularity of activations that meet weights of this one, `wished` being what they have
    /// where weights leave the choice: sums end where a scale ends, so weights in groups want
    /// activations in the same groups.
    pub fn of_activations(self, wished: Self) -> Self {
        match self {
            Self::Row => wished,
            Self::Groups(_) => self,
        }
    }

    /// Scales of a row of `columns`.
    pub fn num_groups(self, columns: usize) -> usize {
        columns.div_ceil(self.group_len(columns))
    }
}

/// A scale and what turns numbers into integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Value of one integer step; NaN where the numbers are not finite.
    pub step: f32,
    /// What numbers are multiplied with before rounding.
    pub inverse: f32,
}

impl Scale {
    /// For numbers of at most this magnitude. One that is not finite gives a NaN step, so that
    /// everything computed with it is NaN and cannot be taken for a result.
    pub fn of(absmax: f32) -> Self {
        if !absmax.is_finite() {
            return Self {
                step: f32::NAN,
                inverse: 0.0,
            };
        }
        if absmax < SMALLEST_ABSMAX {
            return Self {
                step: 0.0,
                inverse: 0.0,
            };
        }
        Self {
            step: absmax / LARGEST,
            inverse: LARGEST / absmax,
        }
    }
}

/// Quantises one row and returns how many of its numbers are not finite. A group that holds such a
/// number becomes zeros with a NaN scale.
///
/// # Panics
/// When `values` is not as long as `x`, or `scales` does not hold one number per group.
#[must_use]
pub fn quantise_row(
    x: &[f32],
    granularity: Granularity,
    values: &mut [i8],
    scales: &mut [f32],
) -> usize {
    let group_len = granularity.group_len(x.len());
    assert_eq!(values.len(), x.len(), "one integer for each number");
    assert_eq!(scales.len(), granularity.num_groups(x.len()));
    let groups = x.chunks(group_len).zip(values.chunks_mut(group_len));
    let mut num_bad = 0;
    for ((x, values), scale) in groups.zip(scales) {
        let bad = x.iter().filter(|x| !x.is_finite()).count();
        num_bad += bad;
        let absmax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let Scale { step, inverse } = Scale::of(if bad > 0 { f32::NAN } else { absmax });
        *scale = step;
        for (value, x) in values.iter_mut().zip(x) {
            // The cast of NaN, which only a group that is reported can hold, gives zero.
            let rounded = (x * inverse).round_ties_even();
            *value = rounded.clamp(-LARGEST, LARGEST) as i8;
        }
    }
    num_bad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(x: &[f32], granularity: Granularity) -> (Vec<i8>, Vec<f32>, usize) {
        let mut values = vec![99; x.len()];
        let mut scales = vec![9.0; granularity.num_groups(x.len())];
        let bad = quantise_row(x, granularity, &mut values, &mut scales);
        (values, scales, bad)
    }

    #[test]
    fn ties_go_to_even_and_the_largest_becomes_127() {
        let (values, scales, bad) = row(&[127.0, 0.5, 1.5, -2.5, -127.0], Granularity::Row);
        assert_eq!(values, [127, 0, 2, -2, -127]);
        assert_eq!((scales, bad), (vec![1.0], 0));
    }

    #[test]
    fn zeros_and_denormals_have_scale_zero() {
        for x in [0.0, -0.0, 1e-31, f32::from_bits(1)] {
            let (values, scales, bad) = row(&[x; 5], Granularity::Row);
            assert_eq!((values, scales, bad), (vec![0; 5], vec![0.0], 0));
        }
        let (values, scales, _) = row(&[SMALLEST_ABSMAX, 0.0], Granularity::Row);
        assert_eq!(values, [127, 0]);
        assert!(scales[0] > 0.0);
    }

    #[test]
    fn an_outlier_harms_its_own_group_only() {
        let mut x: Vec<f32> = (0..300).map(|i| ((i * 37) % 21) as f32 - 10.0).collect();
        x[130] = 1e30;
        let (values, scales, bad) = row(&x, Granularity::Groups(GROUP));
        assert_eq!((scales.len(), bad), (3, 0));
        assert_eq!(values[130], 127);
        assert!(values[128..130].iter().all(|q| *q == 0));
        for (i, (x, q)) in x.iter().zip(&values).enumerate() {
            let scale = scales[i / GROUP];
            assert!((x - f32::from(*q) * scale).abs() <= 0.5001 * scale, "{i}");
        }
        let (values, ..) = row(&x, Granularity::Row);
        assert_eq!(values.iter().filter(|q| **q != 0).count(), 1);
    }

    #[test]
    fn numbers_that_are_not_finite_are_counted_and_poison_their_group() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 200];
            x[3] = bad;
            x[5] = bad;
            let (values, scales, count) = row(&x, Granularity::Groups(GROUP));
            assert_eq!(count, 2, "{bad}");
            assert!(scales[0].is_nan() && scales[1] > 0.0, "{bad}: {scales:?}");
            assert!(values[..GROUP].iter().all(|q| *q == 0));
            assert!(values[GROUP..].iter().all(|q| *q == 127));
        }
    }

    #[test]
    fn the_largest_floats_do_not_overflow() {
        let (values, scales, _) = row(&[f32::MAX, f32::MIN, f32::MAX / 2.0], Granularity::Row);
        assert_eq!(values, [127, -127, 64]);
        assert!(scales[0].is_finite());
    }

    #[test]
    fn groups_cover_rows_of_every_length() {
        for (columns, groups) in [(0, 0), (1, 1), (127, 1), (128, 1), (129, 2), (300, 3)] {
            assert_eq!(Granularity::Groups(GROUP).num_groups(columns), groups);
            assert_eq!(Granularity::Row.num_groups(columns), columns.min(1));
        }
    }

    #[test]
    fn weights_in_groups_choose_the_activations() {
        let (row, groups) = (Granularity::Row, Granularity::Groups(GROUP));
        let blocks = Granularity::Groups(BLOCK);
        assert_eq!(row.of_activations(groups), groups);
        assert_eq!(row.of_activations(row), row);
        assert_eq!(blocks.of_activations(groups), blocks);
        assert_eq!(blocks.of_activations(row), blocks);
    }
}
