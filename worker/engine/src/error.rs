//! What can go wrong in the engine, by what the user can do about it.

use modelprofile_kernels::KernelError;
use thiserror::Error;

/// An error of the engine crate.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A checkpoint file is malformed, incomplete or hostile. Names the file and, where there is one, the tensor.
    #[error("{file}: {message}")]
    Checkpoint {
        /// The file.
        file: String,
        /// What is wrong, with the tensor's name.
        message: String,
    },
    /// The checkpoint is sound, but this build cannot run it. Names what is missing.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A profile, format or budget that does not fit the model. Says what would.
    #[error("{0}")]
    Config(String),
    /// An artifact is missing, damaged or of another version; it is rebuilt by `quantize`.
    #[error("artifact {path}: {message}")]
    Artifact {
        /// The directory or file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The checkpoint's weight files were removed after its artifacts were made, and something needs them again.
    #[error(
        "{name}: the original's weights were pruned (spec.cache.keepOriginal is false) and are needed again: they are \
         downloaded by the next command that takes the model's URI"
    )]
    Pruned {
        /// The checkpoint's name.
        name: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A chat template failed on a request's messages.
    #[error("chat template: {0}")]
    Template(String),
    /// The device failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl EngineError {
    /// A checkpoint error at `file`.
    pub fn checkpoint(file: impl std::fmt::Display, message: impl Into<String>) -> Self {
        Self::Checkpoint { file: file.to_string(), message: message.into() }
    }

    /// An input/output error at `path`.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().display().to_string(), source }
    }
}

/// Result of the engine crate.
pub type Result<T> = std::result::Result<T, EngineError>;
