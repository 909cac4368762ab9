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
    let square: f32 = x.iter().map(|v| v * v).sum();
    1.0 / (square / x.len() as f32 + NORM_EPS).sqrt()
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
        let mut dot = 0.0;
        for i in 0..width {
            dot += dy[i] * gain[i] * x[i];
            dgain[i] += dy[i] * x[i] * inverse;
        }
        let pull = dot * inverse * inverse * inverse / width as f32;
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
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = exp(*v - max);
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v /= sum);
    max + sum.ln()
}
