//! Why a model cannot be loaded. Messages name the file or tensor, what was found and what is needed.

use backend::BackendError;

/// Errors of reading and loading checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("{file}: {source}")]
    Io {
        /// File name.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not have the form it should have.
    #[error("{file}: {reason}")]
    Malformed {
        /// File name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The architecture is unknown.
    #[error("model type {found} is not supported; supported are {supported}")]
    UnknownArchitecture {
        /// What the checkpoint names.
        found: String,
        /// What could be loaded.
        supported: String,
    },
    /// A setting is understood but not supported; loading anyway would give wrong results.
    #[error("{key} = {value} is not supported: {reason}")]
    Unsupported {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        reason: String,
    },
    /// A setting is missing or has the wrong type.
    #[error("config: {key} {reason}")]
    Config {
        /// The setting.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cache cannot hold even one sequence.
    #[error(
        "a sequence of {max_model_len} tokens needs {needed} bytes of cache, {available} are available"
    )]
    CacheTooSmall {
        /// Tokens of the sequence.
        max_model_len: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The requested context is longer than the model's.
    #[error("a context of {requested} tokens exceeds the model's {max}")]
    ContextTooLong {
        /// Tokens asked for.
        requested: usize,
        /// Tokens the model was made for.
        max: usize,
    },
    /// A download failed.
    #[error("hub {repository}: {reason}")]
    Hub {
        /// The repository.
        repository: String,
        /// What failed.
        reason: String,
    },
    /// The target refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What loading returns.
pub type Result<T> = std::result::Result<T, ModelError>;

impl ModelError {
    pub(crate) fn io(file: &str, source: std::io::Error) -> Self {
        Self::Io {
            file: file.to_owned(),
            source,
        }
    }

    pub(crate) fn malformed(file: &str, reason: impl std::fmt::Display) -> Self {
        Self::Malformed {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn tensor(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn config(key: &str, reason: impl std::fmt::Display) -> Self {
        Self::Config {
            key: key.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn unsupported(key: &str, value: impl std::fmt::Display, reason: &str) -> Self {
        Self::Unsupported {
            key: key.to_owned(),
            value: value.to_string(),
            reason: reason.to_owned(),
        }
    }
}
