//! What can go wrong around a training run.

use thiserror::Error;

/// An error of reading, writing or matching a run's files.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot access the run's files: {0}")]
    Io(#[from] std::io::Error),
    /// The checkpoint is not a safetensors file.
    #[error("cannot read or write tensors: {0}")]
    Tensors(#[from] safetensors::SafeTensorError),
    /// A file could not be written as JSON.
    #[error("cannot write json: {0}")]
    Json(#[from] serde_json::Error),
    /// The checkpoint lacks something, or it cannot be read.
    #[error("the checkpoint has no valid {0}")]
    Invalid(&'static str),
    /// The checkpoint belongs to another shape or vocabulary.
    #[error("the checkpoint has {found} parameters, the model has {expected}")]
    OtherShape {
        /// Parameters in the checkpoint.
        found: usize,
        /// Parameters of the model.
        expected: usize,
    },
}

/// The result of working with a run's files.
pub type Result<T> = std::result::Result<T, Error>;
