//! A quantised matrix, row-major: weights `[outputs, inputs]` or activations `[tokens, features]`.

use crate::{Granularity, QuantError, expect_len, quantise_row};

/// 8-bit integers and their scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    rows: usize,
    columns: usize,
    granularity: Granularity,
    values: Vec<i8>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
}

impl Quantised {
    /// Quantises `[rows, columns]` numbers.
    ///
    /// # Errors
    /// [`QuantError::Length`], or [`QuantError::NonFinite`] for the first row that has such numbers.
    pub fn new(
        x: &[f32],
        rows: usize,
        columns: usize,
        granularity: Granularity,
    ) -> Result<Self, QuantError> {
        expect_len("numbers", x.len(), rows * columns)?;
        let groups = granularity.num_groups(columns);
        let mut values = vec![0; x.len()];
        let mut scales = vec![0.0; rows * groups];
        for row in 0..rows {
            let elements = row * columns..(row + 1) * columns;
            let count = quantise_row(
                &x[elements.clone()],
                granularity,
                &mut values[elements],
                &mut scales[row * groups..(row + 1) * groups],
            );
            if count > 0 {
                return Err(QuantError::NonFinite { row, count });
            }
        }
        Ok(Self {
            rows,
            columns,
            granularity,
            values,
            scales,
        })
    }

    /// Takes integers and scales that something else made; −128 may occur.
    ///
    /// # Errors
    /// [`QuantError::Length`] or [`QuantError::InvalidScale`].
    pub fn from_parts(
        values: Vec<i8>,
        scales: Vec<f32>,
        rows: usize,
        columns: usize,
        granularity: Granularity,
    ) -> Result<Self, QuantError> {
        expect_len("integers", values.len(), rows * columns)?;
        let groups = granularity.num_groups(columns);
        expect_len("scales", scales.len(), rows * groups)?;
        let invalid = |scale: &f32| !scale.is_finite() || *scale < 0.0;
        if let Some(index) = scales.iter().position(invalid) {
            return Err(QuantError::InvalidScale {
                index,
                scale: scales[index],
            });
        }
        Ok(Self {
            rows,
            columns,
            granularity,
            values,
            scales,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Which numbers of a row share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// `[rows, columns]` integers.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// `[rows, groups]` scales.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The integers of one row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &[i8] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The scales of one row, one per group.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_scales(&self, row: usize) -> &[f32] {
        let groups = self.granularity.num_groups(self.columns);
        &self.scales[row * groups..(row + 1) * groups]
    }

    /// `Σ q` of every group of every row, `[rows, groups]`: what a kernel whose weights are stored
    /// with an offset subtracts that many times.
    pub fn group_sums(&self) -> Vec<i32> {
        let group_len = self.granularity.group_len(self.columns);
        (0..self.rows)
            .flat_map(|row| self.row(row).chunks(group_len))
            .map(|group| group.iter().map(|q| i32::from(*q)).sum())
            .collect()
    }

    /// The numbers that the integers stand for, `q · s`.
    pub fn dequantise(&self) -> Vec<f32> {
        let group_len = self.granularity.group_len(self.columns);
        (0..self.rows)
            .flat_map(|row| {
                let scales = self.row_scales(row);
                let values = self.row(row).iter().enumerate();
                values.map(move |(i, q)| f32::from(*q) * scales[i / group_len])
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GROUP;

    #[test]
    fn sums_and_values_follow_groups_that_do_not_fill_the_row() {
        let x: Vec<f32> = (0..2 * 130).map(|i| (i % 3) as f32).collect();
        let q = Quantised::new(&x, 2, 130, Granularity::Groups(GROUP)).expect("finite");
        let sums = q.group_sums();
        assert_eq!((sums.len(), q.scales().len()), (4, 4));
        assert_eq!(sums.iter().sum::<i32>(), {
            q.values().iter().map(|q| i32::from(*q)).sum::<i32>()
        });
        for (found, x) in q.dequantise().iter().zip(&x) {
            assert!((found - x).abs() < 0.01);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let new = |x: &[f32]| Quantised::new(x, 2, 2, Granularity::Row);
        assert!(matches!(new(&[1.0; 3]), Err(QuantError::Length { .. })));
        let bad = new(&[1.0, 1.0, f32::NAN, 1.0]).expect_err("NaN");
        assert_eq!(bad, QuantError::NonFinite { row: 1, count: 1 });
        let parts = |scales: &[f32]| {
            Quantised::from_parts(vec![-128; 4], scales.to_vec(), 2, 2, Granularity::Row)
        };
        assert_eq!(parts(&[1.0, 2.0]).expect("fits").dequantise()[3], -256.0);
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let error = parts(&[1.0, bad]).expect_err("no scale");
            assert!(error.to_string().starts_with("scale 1 is"), "{error}");
        }
        assert!(matches!(parts(&[1.0]), Err(QuantError::Length { .. })));
    }
}
