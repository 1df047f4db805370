//! What can go wrong below the engine.

use thiserror::Error;

/// An error of the kernels crate.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A shape that the format or the kernel cannot hold (K not a multiple of the group, zero rows, ...).
    #[error("shape: {0}")]
    Shape(String),
    /// Bytes that do not describe what they claim to (wrong length, bad magic, overflowing offsets).
    #[error("format: {0}")]
    Format(String),
    /// The device has no room for an allocation.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A file could not be opened, mapped or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The device refused or failed an operation.
    #[error("device: {0}")]
    Device(String),
}

/// Result of the kernels crate.
pub type Result<T> = std::result::Result<T, KernelError>;
