//! The arithmetic of W8A8: 8-bit weights with one scale per output or per output and group of inputs,
//! 8-bit activations with one scale per token or per token and group of inputs.
//!
//! Everything here is a pure function in plain loops. It is the definition that kernels are compared
//! with bit for bit, so it is written to be read; fast forms live with the targets. It knows nothing
//! of files, models, threads or instruction sets.

pub mod guard;
mod linear;
mod matrix;
mod measure;
mod rounding;

pub use linear::{MAX_INPUTS, linear};
pub use matrix::Quantised;
pub use measure::{relative_error, snr_db};
pub use rounding::{BLOCK, GROUP, Granularity, LARGEST, SMALLEST_ABSMAX, Scale, quantise_row};

/// What is wrong with numbers that should be quantised or multiplied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// NaN or an infinity has no 8-bit form.
    #[error("row {row} holds {count} numbers that are not finite")]
    NonFinite {
        /// Where.
        row: usize,
        /// How many.
        count: usize,
    },
    /// A scale from outside is negative or not finite.
    #[error("scale {index} is {scale}, expected a finite number that is not negative")]
    InvalidScale {
        /// Position among the scales.
        index: usize,
        /// Its value.
        scale: f32,
    },
    /// Lengths do not fit together.
    #[error("{found} {what} where {expected} are expected")]
    Length {
        /// Of what.
        what: &'static str,
        /// As found.
        found: usize,
        /// As the shapes say.
        expected: usize,
    },
    /// Weights have scales for other groups of inputs than activations.
    #[error("weights have scales for {weights:?}, activations for {activations:?}")]
    Groups {
        /// Of the weights.
        weights: Granularity,
        /// Of the activations.
        activations: Granularity,
    },
    /// A 32-bit sum of products could overflow.
    #[error("{inputs} inputs of one 32-bit sum, at most {MAX_INPUTS} are safe")]
    TooManyInputs {
        /// Inputs that share a scale.
        inputs: usize,
    },
}

/// Fails with both numbers when they differ.
fn expect_len(what: &'static str, found: usize, expected: usize) -> Result<(), QuantError> {
    if found == expected {
        return Ok(());
    }
    Err(QuantError::Length {
        what,
        found,
        expected,
    })
}
