//! What can go wrong below the trait.

/// Errors of a compute target.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Operands do not fit together; always a bug above the trait or a malformed checkpoint.
    #[error("shapes do not fit: {0}")]
    Shape(String),
    /// A batch breaks the promises of [`crate::Batch::validate`].
    #[error("invalid batch: {0}")]
    InvalidBatch(String),
    /// Memory for weights, cache or activations cannot be had.
    #[error("out of memory: {requested} bytes requested for {purpose}")]
    OutOfMemory {
        /// Bytes asked for.
        requested: usize,
        /// What they were for.
        purpose: &'static str,
    },
    /// Weights that this target cannot hold in its precision.
    #[error("weights cannot be used: {0}")]
    InvalidWeights(String),
    /// The target does not support what was asked.
    #[error("{0} is not supported by this device")]
    Unsupported(String),
    /// The device failed; nothing on it can be trusted any more.
    #[error("device failure: {0}")]
    Device(String),
}
