//! Integers with scales and zero points, `w = (q − z) · s`, brought to the form that targets take.

use backend::{Int8Data, WeightData};

use crate::error::{ModelError, Result};

/// A matrix as a format stores it, row-major.
pub(super) struct Matrix {
    /// `[rows, columns]`.
    pub values: Vec<i8>,
    /// `[rows, groups]`.
    pub scales: Vec<f32>,
    /// `[rows, groups]`; zeros where there are none.
    pub zero_points: Option<Vec<i32>>,
    pub groups: Groups,
    pub columns: usize,
}

/// Which inputs share a scale.
pub(super) enum Groups {
    /// Runs of this many.
    Runs(usize),
    /// The group of each input, of this many groups.
    Index(Vec<usize>, usize),
}

impl Groups {
    /// From the group of each input; runs where they are runs.
    pub fn new(
        index: &[i32],
        group_len: usize,
        groups: usize,
    ) -> std::result::Result<Self, String> {
        let index: Option<Vec<usize>> = index
            .iter()
            .map(|group| usize::try_from(*group).ok().filter(|group| *group < groups))
            .collect();
        let index = index.ok_or_else(|| format!("names a group outside 0 to {groups}"))?;
        let runs = index
            .iter()
            .enumerate()
            .all(|(k, group)| *group == k / group_len);
        Ok(match runs {
            true => Self::Runs(group_len),
            false => Self::Index(index, groups),
        })
    }

    fn of(&self, column: usize) -> usize {
        match self {
            Self::Runs(len) => column / len,
            Self::Index(index, _) => index[column],
        }
    }

    fn count(&self, columns: usize) -> usize {
        match self {
            Self::Runs(len) => columns.div_ceil(*len),
            Self::Index(_, groups) => *groups,
        }
    }
}

impl Matrix {
    /// Integers stay as they are. Zero points are taken into them where the difference fits 8 bits;
    /// otherwise, and where the inputs of a group are scattered, the matrix is widened.
    pub fn into_data(mut self, prefix: &str) -> WeightData {
        let columns = self.columns;
        if let Groups::Runs(group_len) = self.groups
            && self.take_in_zero_points()
        {
            return WeightData::Int8(Int8Data {
                values: self.values,
                scales: self.scales,
                columns,
                group_len: group_len.min(columns).max(1),
            });
        }
        tracing::info!(
            matrix = prefix,
            "its zero points or the order of its inputs do not fit 8-bit integers with scales; it is widened, and quantised again where 8 bits are asked for"
        );
        let groups = self.groups.count(columns);
        let value = |(i, q): (usize, &i8)| {
            let (row, column) = (i / columns, i % columns);
            let group = row * groups + self.groups.of(column);
            let zero = self.zero_points.as_ref().map_or(0, |z| z[group]);
            (i32::from(*q) - zero) as f32 * self.scales[group]
        };
        WeightData::F32(self.values.iter().enumerate().map(value).collect())
    }

    /// Whether there are no zero points left.
    fn take_in_zero_points(&mut self) -> bool {
        let Some(zero_points) = &self.zero_points else {
            return true;
        };
        if zero_points.iter().all(|z| *z == 0) {
            return true;
        }
        let (columns, groups) = (self.columns, self.groups.count(self.columns));
        let zero = |i: usize| zero_points[i / columns * groups + self.groups.of(i % columns)];
        let shifted: Option<Vec<i8>> = self
            .values
            .iter()
            .enumerate()
            .map(|(i, q)| i8::try_from(i32::from(*q) - zero(i)).ok())
            .collect();
        match shifted {
            Some(values) => {
                self.values = values;
                true
            }
            None => false,
        }
    }

    /// Fills the integers from floats with the scales that are there: `round(w / s) + z`.
    pub fn quantise(mut self, name: &str, weight: &WeightData) -> Result<Self> {
        let (columns, groups) = (self.columns, self.groups.count(self.columns));
        let rows = weight.len() / columns.max(1);
        let mut wide = vec![0.0; columns];
        let mut values = Vec::with_capacity(weight.len());
        for row in 0..rows {
            weight.widen_row(row, &mut wide);
            for (column, w) in wide.iter().enumerate() {
                let group = row * groups + self.groups.of(column);
                let (scale, zero) = (
                    self.scales[group],
                    self.zero_points.as_ref().map_or(0, |z| z[group]),
                );
                let q = match scale > 0.0 {
                    true => (w / scale).round_ties_even() + zero as f32,
                    false => zero as f32,
                };
                if !w.is_finite() {
                    return Err(ModelError::tensor(name, format!("holds {w} in row {row}")));
                }
                values.push(q.clamp(-128.0, 127.0) as i8);
            }
        }
        self.values = values;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(zero_points: Option<Vec<i32>>, groups: Groups) -> Matrix {
        Matrix {
            values: vec![-128, 127, 3, 4, 5, -6, 7, 8],
            scales: vec![0.5, 2.0, 1.0, 0.25],
            zero_points,
            groups,
            columns: 4,
        }
    }

    #[test]
    fn integers_stay_where_they_can() {
        let plain = matrix(None, Groups::Runs(2)).into_data("m");
        let WeightData::Int8(kept) = plain.clone() else {
            panic!("integers");
        };
        assert_eq!(
            (kept.values[0], kept.group_len, kept.groups()),
            (-128, 2, 2)
        );
        let expected = [-64.0, 63.5, 6.0, 8.0, 5.0, -6.0, 1.75, 2.0];
        assert_eq!(plain.into_f32(), expected);
        let shifted = matrix(Some(vec![0, 1, 2, -3]), Groups::Runs(2)).into_data("m");
        assert!(matches!(shifted, WeightData::Int8(_)));
        assert_eq!(
            shifted.into_f32(),
            [-64.0, 63.5, 4.0, 6.0, 3.0, -8.0, 2.5, 2.75]
        );
    }

    #[test]
    fn what_does_not_fit_is_widened() {
        let far = matrix(Some(vec![1, 1, 0, 0]), Groups::Runs(2)).into_data("m");
        assert!(matches!(far, WeightData::F32(_)));
        assert_eq!(far.into_f32()[..4], [-64.5, 63.0, 4.0, 6.0]);
        let index = Groups::new(&[0, 1, 0, 1], 2, 2).expect("in range");
        let scattered = matrix(None, index).into_data("m").into_f32();
        assert_eq!(scattered[..4], [-64.0, 254.0, 1.5, 8.0]);
        assert!(matches!(
            Groups::new(&[0, 0, 1, 1], 2, 2),
            Ok(Groups::Runs(2))
        ));
        assert!(Groups::new(&[0, 2], 2, 2).is_err());
        assert!(Groups::new(&[-1, 0], 2, 2).is_err());
    }
}
