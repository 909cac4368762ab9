//! Causal attention inside each document of a packed row, forward and backward.

use super::matmul::{Matrix, Store, matmul};
use super::model::Shape;
use super::ops::{dot, softmax};

/// `out[N, width]` from rotated `qkv[N, 3 width]`; `lengths` are those of the documents in the row.
pub fn forward(shape: &Shape, qkv: &[f32], lengths: &[usize], out: &mut [f32]) {
    let (width, dim) = (shape.width, shape.head_dim());
    each_head(shape, lengths, |start, len, head| {
        let p = probabilities(shape, qkv, start, len, head);
        let v = Matrix::new(
            &qkv[start * 3 * width + 2 * width + head * dim..],
            len,
            dim,
            3 * width,
        );
        matmul(
            &mut out[start * width + head * dim..],
            width,
            Matrix::new(&p, len, len, len),
            v,
            1.0,
            Store::Set,
        );
    });
}

/// The gradient of [`forward`] with respect to `qkv`, written to `dqkv`.
pub fn backward(shape: &Shape, qkv: &[f32], lengths: &[usize], dout: &[f32], dqkv: &mut [f32]) {
    let (width, dim) = (shape.width, shape.head_dim());
    let stride = 3 * width;
    let scale = 1.0 / (dim as f32).sqrt();
    each_head(shape, lengths, |start, len, head| {
        let p = probabilities(shape, qkv, start, len, head);
        let at = |part: usize| start * stride + part * width + head * dim;
        let [q, k, v] = [0, 1, 2].map(|part| Matrix::new(&qkv[at(part)..], len, dim, stride));
        let d = Matrix::new(&dout[start * width + head * dim..], len, dim, width);
        matmul(
            &mut dqkv[at(2)..],
            stride,
            Matrix::new(&p, len, len, len).t(),
            d,
            1.0,
            Store::Set,
        );
        let mut ds = vec![0.0; len * len];
        matmul(&mut ds, len, d, v.t(), 1.0, Store::Set);
        for (ds, p) in ds.chunks_exact_mut(len).zip(p.chunks_exact(len)) {
            let dot = dot(ds, p);
            ds.iter_mut()
                .zip(p)
                .for_each(|(ds, p)| *ds = p * (*ds - dot));
        }
        let ds = Matrix::new(&ds, len, len, len);
        matmul(&mut dqkv[at(0)..], stride, ds, k, scale, Store::Set);
        matmul(&mut dqkv[at(1)..], stride, ds.t(), q, scale, Store::Set);
    });
}

fn each_head(shape: &Shape, lengths: &[usize], mut run: impl FnMut(usize, usize, usize)) {
    let mut start = 0;
    for &len in lengths {
        (0..shape.heads).for_each(|head| run(start, len, head));
        start += len;
    }
}

/// The attention weights of one head over one document; zero above the diagonal.
fn probabilities(shape: &Shape, qkv: &[f32], start: usize, len: usize, head: usize) -> Vec<f32> {
    let (width, dim) = (shape.width, shape.head_dim());
    let at = |part: usize| start * 3 * width + part * width + head * dim;
    let q = Matrix::new(&qkv[at(0)..], len, dim, 3 * width);
    let k = Matrix::new(&qkv[at(1)..], len, dim, 3 * width);
    let mut p = vec![0.0; len * len];
    matmul(&mut p, len, q, k.t(), 1.0 / (dim as f32).sqrt(), Store::Set);
    for (i, row) in p.chunks_exact_mut(len).enumerate() {
        softmax(&mut row[..=i]);
        row[i + 1..].fill(0.0);
    }
    p
}
