//! Row-wise operations and their gradients: RMSNorm, rotary positions, SiLU and softmax.

/// Added to the mean square inside RMSNorm.
pub const NORM_EPS: f32 = 1e-5;
/// Base of the rotary frequencies.
pub const ROPE_THETA: f32 = 10_000.0;

/// `y = x / rms(x) * gain` for each row; returns nothing else, the backward pass recomputes the rms.
pub fn rms_norm(x: &[f32], gain: &[f32], y: &mut [f32]) {
    let width = gain.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let inverse = inverse_rms(x);
        for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
            *y = x * inverse * g;
        }
    }
}

fn inverse_rms(x: &[f32]) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + NORM_EPS).sqrt()
}

/// Lanes of the running sums, so that compilers can keep them in one vector register.
const LANES: usize = 16;

/// The scalar product, in [`LANES`] partial sums.
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (x_chunks, y_chunks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = x_chunks
        .remainder()
        .iter()
        .zip(y_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (x, y) in x_chunks.zip(y_chunks) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The sum, in [`LANES`] partial sums.
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += x[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The largest element, in [`LANES`] partial maxima.
fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger)
}

/// Adds the gradients of [`rms_norm`] to `dx` and `dgain`.
pub fn rms_norm_backward(x: &[f32], gain: &[f32], dy: &[f32], dx: &mut [f32], dgain: &mut [f32]) {
    let width = gain.len();
    for ((x, dy), dx) in x
        .chunks_exact(width)
        .zip(dy.chunks_exact(width))
        .zip(dx.chunks_exact_mut(width))
    {
        let inverse = inverse_rms(x);
        let mut lanes = [0.0; LANES];
        for i in 0..width {
            let product = dy[i] * x[i];
            lanes[i % LANES] += product * gain[i];
            dgain[i] += product * inverse;
        }
        let pull = lanes.iter().sum::<f32>() * inverse * inverse * inverse / width as f32;
        for i in 0..width {
            dx[i] += dy[i] * gain[i] * inverse - x[i] * pull;
        }
    }
}

/// Cosines and sines of every position and frequency, `[position][head_dim / 2]`.
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

/// Forward turns a head by its position's angles, backward turns it back.
#[derive(Clone, Copy, PartialEq)]
pub enum Direction {
    /// As in the forward pass.
    Forward,
    /// The transposed rotation, for gradients.
    Backward,
}

impl RopeTable {
    /// Angles `position * theta^(-2i / head_dim)`, paired in halves as in Hugging Face's Llama.
    pub fn new(positions: usize, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let angles = (0..positions * half).map(|index| {
            let (position, i) = (index / half, index % half);
            position as f32 * ROPE_THETA.powf(-2.0 * i as f32 / head_dim as f32)
        });
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { cos, sin, half }
    }

    /// Rotates one head's vector in place.
    pub fn rotate(&self, head: &mut [f32], position: usize, direction: Direction) {
        let half = self.half;
        let (low, high) = head.split_at_mut(half);
        let angles = position * half..(position + 1) * half;
        for (((a, b), cos), sin) in low
            .iter_mut()
            .zip(high)
            .zip(&self.cos[angles.clone()])
            .zip(&self.sin[angles])
        {
            let sin = if direction == Direction::Forward {
                *sin
            } else {
                -sin
            };
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `e^x` to about 1e-7 relative, in a form that compilers turn into vector code.
/// 2^n comes from the exponent bits, the rest from a Taylor polynomial over half an octave.
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0));
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * tail)));
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// `a = silu(gate) * up` for rows that hold gate and up side by side.
pub fn gated(gate_up: &[f32], width: usize, a: &mut [f32]) {
    for (row, a) in gate_up
        .chunks_exact(2 * width)
        .zip(a.chunks_exact_mut(width))
    {
        let (gate, up) = row.split_at(width);
        for ((a, g), u) in a.iter_mut().zip(gate).zip(up) {
            *a = g / (1.0 + exp(-g)) * u;
        }
    }
}

/// The gradient of [`gated`] with respect to `gate_up`.
pub fn gated_backward(gate_up: &[f32], width: usize, da: &[f32], dgate_up: &mut [f32]) {
    let rows = gate_up
        .chunks_exact(2 * width)
        .zip(da.chunks_exact(width))
        .zip(dgate_up.chunks_exact_mut(2 * width));
    for ((row, da), out) in rows {
        let (gate, up) = row.split_at(width);
        let (dgate, dup) = out.split_at_mut(width);
        for i in 0..width {
            let s = 1.0 / (1.0 + exp(-gate[i]));
            dup[i] = da[i] * gate[i] * s;
            dgate[i] = da[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        }
    }
}

/// Softmax of a row in place; returns the log of its normaliser.
pub fn softmax(row: &mut [f32]) -> f32 {
    let max = max(row);
    row.iter_mut().for_each(|v| *v = exp(*v - max));
    let sum = sum(row);
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|v| *v *= inverse);
    max + sum.ln()
}
