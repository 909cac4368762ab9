//! Muon on the matrices (Jordan et al., 2024) and AdamW on embeddings and gains.

use std::thread;

use super::matmul::{Matrix, Store, matmul};
use super::model::{Shape, Tensor};

const MUON_RATE: f32 = 0.02;
const MUON_MOMENTUM: f32 = 0.95;
const ADAM_RATE: f32 = 0.003;
const ADAM_BETAS: (f32, f32) = (0.9, 0.98);
const ADAM_EPS: f32 = 1e-8;

/// First and second moments of every parameter; Muon uses the first only.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// Momentum of Muon, first moment of AdamW.
    pub first: Vec<f32>,
    /// Second moment of AdamW.
    pub second: Vec<f32>,
    /// Steps taken.
    pub steps: u64,
}

impl Optimizer {
    /// An optimiser that has taken no step.
    pub fn new(num_params: usize) -> Self {
        Self {
            first: vec![0.0; num_params],
            second: vec![0.0; num_params],
            steps: 0,
        }
    }

    /// Takes one step, tensors shared among `threads`; `rate` in `0..=1` is the schedule's factor.
    pub fn step(
        &mut self,
        shape: &Shape,
        params: &mut [f32],
        grad: &[f32],
        rate: f32,
        threads: usize,
    ) {
        self.steps += 1;
        let steps = self.steps;
        let (mut params, mut grad) = (params, grad);
        let (mut first, mut second) = (&mut self.first[..], &mut self.second[..]);
        let mut jobs: Vec<Vec<Job<'_>>> = (0..threads).map(|_| Vec::new()).collect();
        for (index, tensor) in shape.tensors().into_iter().enumerate() {
            let len = tensor.rows * tensor.cols;
            jobs[index % threads].push(Job {
                params: take(&mut params, len),
                grad: grad
                    .split_off(..len)
                    .expect("a gradient for each parameter"),
                first: take(&mut first, len),
                second: take(&mut second, len),
                tensor,
            });
        }
        thread::scope(|scope| {
            for jobs in jobs {
                scope.spawn(move || jobs.into_iter().for_each(|job| job.run(steps, rate)));
            }
        });
    }
}

/// The parts of one tensor.
struct Job<'a> {
    tensor: Tensor,
    params: &'a mut [f32],
    grad: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Job<'_> {
    fn run(self, steps: u64, rate: f32) {
        if self.tensor.rows == 1 || self.tensor.offset == 0 {
            adam(self.params, self.grad, self.first, self.second, steps, rate);
        } else {
            muon(&self.tensor, self.params, self.grad, self.first, rate);
        }
    }
}

/// Splits the first `len` elements off.
fn take<'a>(from: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    from.split_off_mut(..len)
        .expect("moments for each parameter")
}

fn adam(p: &mut [f32], g: &[f32], first: &mut [f32], second: &mut [f32], steps: u64, rate: f32) {
    let (b1, b2) = ADAM_BETAS;
    let t = steps.min(100_000) as i32;
    let (c1, c2) = (1.0 - b1.powi(t), 1.0 - b2.powi(t));
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(first).zip(second) {
        *m = b1 * *m + (1.0 - b1) * g;
        *v = b2 * *v + (1.0 - b2) * g * g;
        *p -= rate * ADAM_RATE * (*m / c1) / ((*v / c2).sqrt() + ADAM_EPS);
    }
}

fn muon(tensor: &Tensor, p: &mut [f32], g: &[f32], momentum: &mut [f32], rate: f32) {
    let mut update = vec![0.0; g.len()];
    for ((u, g), m) in update.iter_mut().zip(g).zip(momentum) {
        *m = MUON_MOMENTUM * *m + g;
        *u = g + MUON_MOMENTUM * *m;
    }
    orthogonalise(&mut update, tensor.rows, tensor.cols);
    let scale = rate * MUON_RATE * (tensor.rows as f32 / tensor.cols as f32).max(1.0).sqrt();
    p.iter_mut().zip(&update).for_each(|(p, u)| *p -= scale * u);
}

/// Brings all singular values of a matrix near one by five Newton-Schulz steps with Muon's quintic
/// coefficients.
fn orthogonalise(x: &mut Vec<f32>, rows: usize, cols: usize) {
    const COEFFICIENTS: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);
    let (a, b, c) = COEFFICIENTS;
    let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt() + 1e-7;
    x.iter_mut().for_each(|v| *v /= norm);
    let tall = rows > cols;
    let side = rows.min(cols);
    let mut gram = vec![0.0; side * side];
    let mut poly = vec![0.0; side * side];
    for _ in 0..5 {
        let view = Matrix::new(x, rows, cols, cols);
        let (left, right) = if tall {
            (view.t(), view)
        } else {
            (view, view.t())
        };
        matmul(&mut gram, side, left, right, 1.0, Store::Set);
        let square = Matrix::new(&gram, side, side, side);
        matmul(&mut poly, side, square, square, c, Store::Set);
        poly.iter_mut().zip(&gram).for_each(|(p, g)| *p += b * g);
        let poly = Matrix::new(&poly, side, side, side);
        let mut next: Vec<f32> = x.iter().map(|v| a * v).collect();
        let (left, right) = if tall { (view, poly) } else { (poly, view) };
        matmul(&mut next, cols, left, right, 1.0, Store::Add);
        *x = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    #[test]
    fn orthogonalised_matrices_have_singular_values_near_one() {
        let mut prng = Prng::new(1);
        for (rows, cols) in [(8, 24), (24, 8), (16, 16)] {
            let mut x: Vec<f32> = (0..rows * cols).map(|_| prng.normal()).collect();
            orthogonalise(&mut x, rows, cols);
            let mean = x.iter().map(|v| v * v).sum::<f32>() / rows.min(cols) as f32;
            assert!(
                (0.4..1.5).contains(&mean),
                "mean squared singular value {mean} of {rows}x{cols}"
            );
        }
    }
}
