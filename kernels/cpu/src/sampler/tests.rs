use super::*;
use crate::test_data::random;

/// Rows whose lengths leave the last sixteen incomplete, and rows that are not finite.
fn rows() -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = [1, 2, 15, 16, 17, 100, 1023, 1025, 5000]
        .into_iter()
        .flat_map(|len| {
            [0.01, 3.0, 60.0].map(|scale| {
                let row = random(len as u64, len);
                row.into_iter().map(|x| x * scale).collect()
            })
        })
        .collect();
    rows.push(vec![]);
    rows.push(vec![f32::NEG_INFINITY; 40]);
    rows.push(vec![-0.0, 0.0, -0.0]);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 15, 16, 39] {
            let mut row = random(7, 40);
            row[at] = special;
            rows.push(row);
        }
    }
    rows
}

#[test]
fn levels_agree_on_bits() {
    for row in rows() {
        let expected = finite_max(Isa::Scalar, &row);
        for isa in Isa::supported() {
            let max = finite_max(isa, &row);
            assert_eq!(max, expected, "{isa} {row:?}");
            let Some(max) = max else { continue };
            let sum = sum_exp(isa, &row, max);
            let scalar = sum_exp(Isa::Scalar, &row, max);
            assert_eq!(sum.to_bits(), scalar.to_bits(), "{isa} {row:?}");
            assert_eq!(first_of(isa, &row, max), row.iter().position(|x| *x == max));
            for count in [0, 1, 5, 300, 10_000] {
                assert_eq!(
                    largest(isa, &row, count),
                    largest(Isa::Scalar, &row, count),
                    "{isa} {row:?}"
                );
            }
        }
    }
}

#[test]
fn broken_rows_have_no_maximum() {
    for row in rows() {
        let is_broken = row.iter().any(|x| x.is_nan() || *x == f32::INFINITY)
            || row.iter().all(|x| *x == f32::NEG_INFINITY);
        for isa in Isa::supported() {
            assert_eq!(finite_max(isa, &row).is_none(), is_broken, "{isa} {row:?}");
        }
    }
}

#[test]
fn memory_of_a_longer_row_leaves_no_trace() {
    let mut masses = Masses::default();
    let filters = Filters {
        temperature: 1.0,
        top_k: 0,
        top_p: 0.999,
        min_p: 0.0,
    };
    for len in [1000, 5, 33, 1] {
        for u in [0.0, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let row = vec![1.0; len];
            let found = choose(Isa::detect(), &row, 1.0, filters, u, &mut masses);
            let fresh = choose(Isa::Scalar, &row, 1.0, filters, u, &mut Masses::default());
            assert_eq!(found, fresh, "{len} at {u}");
            assert!((found as usize) < len);
        }
    }
}
