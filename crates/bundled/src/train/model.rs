//! The Llama itself: its shape, its parameters in one vector, loss and gradient of a packed row.

use super::attention;
use super::matmul::{Matrix, Store, matmul};
use super::ops::{self, Direction, RopeTable};
use crate::prng::Prng;

/// Sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; each has keys and values of its own.
    pub heads: usize,
    /// Inner width of the feed-forward part.
    pub ffn: usize,
    /// Longest context.
    pub context: usize,
}

impl Shape {
    /// The bundled model's shape for a vocabulary.
    pub fn bundled(vocab: usize) -> Self {
        Self {
            vocab,
            width: 192,
            layers: 6,
            heads: 6,
            ffn: 512,
            context: 1024,
        }
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Where every tensor lies, in the order of `Params::data`.
    pub fn tensors(&self) -> Vec<Tensor> {
        let (d, f) = (self.width, self.ffn);
        let mut list = vec![("model.embed_tokens.weight".to_owned(), self.vocab, d)];
        for layer in 0..self.layers {
            let sizes: [(&str, usize, usize); 9] = [
                ("input_layernorm", 1, d),
                ("self_attn.q_proj", d, d),
                ("self_attn.k_proj", d, d),
                ("self_attn.v_proj", d, d),
                ("self_attn.o_proj", d, d),
                ("post_attention_layernorm", 1, d),
                ("mlp.gate_proj", f, d),
                ("mlp.up_proj", f, d),
                ("mlp.down_proj", d, f),
            ];
            list.extend(
                sizes.map(|(name, r, c)| (format!("model.layers.{layer}.{name}.weight"), r, c)),
            );
        }
        list.push(("model.norm.weight".to_owned(), 1, d));
        let mut offset = 0;
        list.into_iter()
            .map(|(name, rows, cols)| {
                let tensor = Tensor {
                    name,
                    rows,
                    cols,
                    offset,
                };
                offset += rows * cols;
                tensor
            })
            .collect()
    }

    /// Number of parameters.
    pub fn num_params(&self) -> usize {
        self.tensors()
            .last()
            .map_or(0, |t| t.offset + t.rows * t.cols)
    }

    /// Offsets of a layer's parts; q, k and v lie side by side, and so do gate and up.
    pub(super) fn layer(&self, layer: usize) -> LayerOffsets {
        let (d, f) = (self.width, self.ffn);
        let size = 2 * d + 4 * d * d + 3 * d * f;
        let norm = self.vocab * d + layer * size;
        let qkv = norm + d;
        let out = qkv + 3 * d * d;
        let ffn_norm = out + d * d;
        let gate_up = ffn_norm + d;
        LayerOffsets {
            norm,
            qkv,
            out,
            ffn_norm,
            gate_up,
            down: gate_up + 2 * d * f,
        }
    }

    /// Offset of the last norm.
    pub(super) fn final_norm(&self) -> usize {
        self.num_params() - self.width
    }
}

/// Where a layer's tensors begin.
pub(super) struct LayerOffsets {
    pub norm: usize,
    pub qkv: usize,
    pub out: usize,
    pub ffn_norm: usize,
    pub gate_up: usize,
    pub down: usize,
}

/// One named tensor inside the parameter vector.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Hugging Face's name.
    pub name: String,
    /// Rows; 1 for the gain of a norm.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// First element.
    pub offset: usize,
}

/// Parameters drawn at random: embeddings with deviation 0.02, matrices with `1 / sqrt(inputs)`,
/// those that write to the residual stream at zero, gains at one.
pub fn init(shape: &Shape, seed: u64) -> Vec<f32> {
    let mut prng = Prng::new(seed);
    let mut data = vec![0.0; shape.num_params()];
    for tensor in shape.tensors() {
        let part = &mut data[tensor.offset..tensor.offset + tensor.rows * tensor.cols];
        if tensor.rows == 1 {
            part.fill(1.0);
        } else if !tensor.name.contains("o_proj") && !tensor.name.contains("down_proj") {
            let scale = if tensor.offset == 0 {
                0.02
            } else {
                (tensor.cols as f32).powf(-0.5)
            };
            part.iter_mut().for_each(|p| *p = prng.normal() * scale);
        }
    }
    data
}

/// Several documents in one row of tokens; attention stays inside each.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Token ids of all documents, one after the other.
    pub tokens: Vec<u32>,
    /// Lengths of the documents.
    pub lengths: Vec<usize>,
    /// Positions whose next token is learned, with that token.
    pub targets: Vec<(usize, u32)>,
}

/// What the backward pass needs of a layer.
struct Saved {
    input: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    middle: Vec<f32>,
    ffn_normed: Vec<f32>,
    gate_up: Vec<f32>,
    activated: Vec<f32>,
}

/// Adds the gradient of the summed loss of a row, times `scale`, to `grad`; returns the summed loss.
pub fn loss_and_gradient(
    shape: &Shape,
    params: &[f32],
    row: &Row,
    rope: &RopeTable,
    scale: f32,
    grad: &mut [f32],
) -> f64 {
    let (n, d) = (row.tokens.len(), shape.width);
    let mut x = Vec::with_capacity(n * d);
    for &token in &row.tokens {
        x.extend_from_slice(&params[token as usize * d..][..d]);
    }
    let mut saved = Vec::with_capacity(shape.layers);
    for layer in 0..shape.layers {
        let (next, kept) = layer_forward(shape, params, layer, x, row, rope);
        x = next;
        saved.push(kept);
    }
    let (loss, mut dx) = head(shape, params, &x, row, scale, grad);
    for (layer, kept) in saved.iter().enumerate().rev() {
        layer_backward(shape, params, layer, kept, row, rope, &mut dx, grad);
    }
    for (dx, &token) in dx.chunks_exact(d).zip(&row.tokens) {
        grad[token as usize * d..][..d]
            .iter_mut()
            .zip(dx)
            .for_each(|(g, v)| *g += v);
    }
    loss
}

fn layer_forward(
    shape: &Shape,
    params: &[f32],
    layer: usize,
    x: Vec<f32>,
    row: &Row,
    rope: &RopeTable,
) -> (Vec<f32>, Saved) {
    let (n, d, f) = (row.tokens.len(), shape.width, shape.ffn);
    let at = shape.layer(layer);
    let mut normed = vec![0.0; n * d];
    ops::rms_norm(&x, &params[at.norm..][..d], &mut normed);
    let mut qkv = vec![0.0; n * 3 * d];
    linear(&normed, &params[at.qkv..], d, 3 * d, &mut qkv, Store::Set);
    rotate(shape, &mut qkv, &row.lengths, rope, Direction::Forward);
    let mut attended = vec![0.0; n * d];
    attention::forward(shape, &qkv, &row.lengths, &mut attended);
    let mut middle = x.clone();
    linear(&attended, &params[at.out..], d, d, &mut middle, Store::Add);
    let mut ffn_normed = vec![0.0; n * d];
    ops::rms_norm(&middle, &params[at.ffn_norm..][..d], &mut ffn_normed);
    let mut gate_up = vec![0.0; n * 2 * f];
    linear(
        &ffn_normed,
        &params[at.gate_up..],
        d,
        2 * f,
        &mut gate_up,
        Store::Set,
    );
    let mut activated = vec![0.0; n * f];
    ops::gated(&gate_up, f, &mut activated);
    let mut out = middle.clone();
    linear(&activated, &params[at.down..], f, d, &mut out, Store::Add);
    (
        out,
        Saved {
            input: x,
            normed,
            qkv,
            attended,
            middle,
            ffn_normed,
            gate_up,
            activated,
        },
    )
}

#[expect(
    clippy::too_many_arguments,
    reason = "the pieces of one pass, used nowhere else"
)]
fn layer_backward(
    shape: &Shape,
    params: &[f32],
    layer: usize,
    kept: &Saved,
    row: &Row,
    rope: &RopeTable,
    dx: &mut [f32],
    grad: &mut [f32],
) {
    let (n, d, f) = (row.tokens.len(), shape.width, shape.ffn);
    let at = shape.layer(layer);
    let mut dactivated = vec![0.0; n * f];
    linear_backward(
        &kept.activated,
        &params[at.down..],
        f,
        d,
        dx,
        &mut dactivated,
        &mut grad[at.down..],
    );
    let mut dgate_up = vec![0.0; n * 2 * f];
    ops::gated_backward(&kept.gate_up, f, &dactivated, &mut dgate_up);
    let mut dnormed = vec![0.0; n * d];
    linear_backward(
        &kept.ffn_normed,
        &params[at.gate_up..],
        d,
        2 * f,
        &dgate_up,
        &mut dnormed,
        &mut grad[at.gate_up..],
    );
    ops::rms_norm_backward(
        &kept.middle,
        &params[at.ffn_norm..][..d],
        &dnormed,
        dx,
        &mut grad[at.ffn_norm..][..d],
    );
    let mut dattended = vec![0.0; n * d];
    linear_backward(
        &kept.attended,
        &params[at.out..],
        d,
        d,
        dx,
        &mut dattended,
        &mut grad[at.out..],
    );
    let mut dqkv = vec![0.0; n * 3 * d];
    attention::backward(shape, &kept.qkv, &row.lengths, &dattended, &mut dqkv);
    rotate(shape, &mut dqkv, &row.lengths, rope, Direction::Backward);
    linear_backward(
        &kept.normed,
        &params[at.qkv..],
        d,
        3 * d,
        &dqkv,
        &mut dnormed,
        &mut grad[at.qkv..],
    );
    ops::rms_norm_backward(
        &kept.input,
        &params[at.norm..][..d],
        &dnormed,
        dx,
        &mut grad[at.norm..][..d],
    );
}

/// The last norm, the tied head and the cross entropy at the target positions only.
fn head(
    shape: &Shape,
    params: &[f32],
    x: &[f32],
    row: &Row,
    scale: f32,
    grad: &mut [f32],
) -> (f64, Vec<f32>) {
    let (d, m) = (shape.width, row.targets.len());
    let mut picked = Vec::with_capacity(m * d);
    row.targets
        .iter()
        .for_each(|(at, _)| picked.extend_from_slice(&x[at * d..][..d]));
    let gain = &params[shape.final_norm()..];
    let mut normed = vec![0.0; m * d];
    ops::rms_norm(&picked, gain, &mut normed);
    let mut logits = vec![0.0; m * shape.vocab];
    linear(&normed, params, d, shape.vocab, &mut logits, Store::Set);
    let mut loss = 0.0;
    for (row, (_, target)) in logits.chunks_exact_mut(shape.vocab).zip(&row.targets) {
        let of_target = row[*target as usize];
        loss += f64::from(ops::softmax(row) - of_target);
        row[*target as usize] -= 1.0;
        row.iter_mut().for_each(|v| *v *= scale);
    }
    let mut dnormed = vec![0.0; m * d];
    linear_backward(&normed, params, d, shape.vocab, &logits, &mut dnormed, grad);
    let mut dpicked = vec![0.0; m * d];
    let norm = shape.final_norm();
    ops::rms_norm_backward(&picked, gain, &dnormed, &mut dpicked, &mut grad[norm..]);
    let mut dx = vec![0.0; x.len()];
    for (dpicked, (at, _)) in dpicked.chunks_exact(d).zip(&row.targets) {
        dx[at * d..][..d].copy_from_slice(dpicked);
    }
    (loss, dx)
}

/// `y = x wᵀ` or `y += x wᵀ` with `w[outputs, inputs]`.
pub(super) fn linear(
    x: &[f32],
    w: &[f32],
    inputs: usize,
    outputs: usize,
    y: &mut [f32],
    store: Store,
) {
    let rows = x.len() / inputs;
    matmul(
        y,
        outputs,
        Matrix::new(x, rows, inputs, inputs),
        Matrix::new(w, outputs, inputs, inputs).t(),
        1.0,
        store,
    );
}

/// Sets `dx` and adds to `dw`.
fn linear_backward(
    x: &[f32],
    w: &[f32],
    inputs: usize,
    outputs: usize,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let rows = x.len() / inputs;
    let dy = Matrix::new(dy, rows, outputs, outputs);
    matmul(
        dx,
        inputs,
        dy,
        Matrix::new(w, outputs, inputs, inputs),
        1.0,
        Store::Set,
    );
    matmul(
        dw,
        inputs,
        dy.t(),
        Matrix::new(x, rows, inputs, inputs),
        1.0,
        Store::Add,
    );
}

/// Rotates the q and k heads of every row by its position in its document.
fn rotate(
    shape: &Shape,
    qkv: &mut [f32],
    lengths: &[usize],
    rope: &RopeTable,
    direction: Direction,
) {
    let positions = lengths.iter().flat_map(|len| 0..*len);
    for (row, position) in qkv.chunks_exact_mut(3 * shape.width).zip(positions) {
        for head in row[..2 * shape.width].chunks_exact_mut(shape.head_dim()) {
            rope.rotate(head, position, direction);
        }
    }
}
