//! The closed enums a decoder layer is described with. A family is data in these terms.

/// Which statistics a norm uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) · weight` (Zhang and Sennrich 2019).
    Rms,
    /// `(x − mean) / sqrt(var + eps) · weight + bias` (Ba et al. 2016).
    Layer,
}

/// A norm over each consecutive run of `width` features of a row.
#[derive(Debug, Clone)]
pub struct Norm<T> {
    /// Which statistics.
    pub kind: NormKind,
    /// Features per statistic: the whole row, or one head.
    pub width: usize,
    /// As long as the row.
    pub weight: T,
    /// As long as the row, where the checkpoint has one.
    pub bias: Option<T>,
    /// Added to the variance.
    pub eps: f32,
}

/// Rotary position embedding in half pairing: feature `i` turns with `i + rotary_dim/2`.
#[derive(Debug, Clone)]
pub struct Rope<T> {
    /// Features of one head.
    pub head_dim: usize,
    /// Features of each head that turn; the rest pass through. Even.
    pub rotary_dim: usize,
    /// `[max_positions, rotary_dim]`: the cosines of a position, then its sines, each already
    /// multiplied by the scaling method's attention factor.
    pub table: T,
}

/// One layer's attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; `num_heads` is a multiple, and query head `h` reads `h·num_kv_heads/num_heads`.
    pub num_kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Multiplies `q·k`.
    pub scale: f32,
    /// Query `i` sees keys `j` with `i − window < j ≤ i`.
    pub window: Option<usize>,
    /// `s ← cap · tanh(s / cap)` before the mask.
    pub soft_cap: Option<f32>,
}

/// How the experts of a token are chosen from its router logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// Experts of a token.
    pub top_k: usize,
    /// The weights of the chosen ones are divided by their sum.
    pub renormalise: bool,
}

/// Gated feed-forward networks of which a token uses a few.
#[derive(Debug)]
pub struct Experts<L> {
    /// In the order of the router's outputs.
    pub experts: Vec<Expert<L>>,
    /// Features between the projections.
    pub width: usize,
    /// Of the gate.
    pub activation: Activation,
}

/// `down(activation(gate(x)) ⊙ up(x))`.
#[derive(Debug)]
pub struct Expert<L> {
    /// Gate, then up, as rows of one matrix `[2·width, hidden]`.
    pub gate_up: L,
    /// `[hidden, width]`.
    pub down: L,
}

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// The tanh approximation of GELU (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `cap · tanh(x / cap)`: caps logits.
    SoftCap(f32),
}
