//! From the vectors of a text's tokens to the vector of the text.

use crate::settings::Pooling;

/// Pools the `[tokens, features]` of one text, padding left out.
pub(crate) fn pool(tokens: &[f32], dimension: usize, pooling: Pooling) -> Vec<f32> {
    let rows = tokens.chunks_exact(dimension);
    let num_rows = rows.len() as f32;
    match pooling {
        Pooling::Cls => tokens[..dimension].to_vec(),
        Pooling::Mean => {
            let mut sum = vec![0f32; dimension];
            for row in rows {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            sum.iter_mut().for_each(|sum| *sum /= num_rows);
            sum
        }
        Pooling::Max => {
            let mut max = vec![f32::NEG_INFINITY; dimension];
            for row in rows {
                max.iter_mut()
                    .zip(row)
                    .for_each(|(max, x)| *max = max.max(*x));
            }
            max
        }
    }
}

/// Brings a vector to length one; one without a direction stays zero.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}
