//! What can go wrong between a URI and an open checkpoint, by what the user can do about it.

use std::path::Path;

use thiserror::Error;

/// An error of fetching a model. Each is one sentence that says what to do next.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The URI, or a setting beside it, is of no use here.
    #[error("{0}")]
    Config(String),
    /// The licence was not accepted; nothing of the weights was transferred.
    #[error(transparent)]
    Licence(#[from] crate::licence::Refusal),
    /// The repository wants its terms accepted, or is private.
    #[error(
        "{page} is gated or private: open that page, accept its terms with your account, and give an access token of that \
         account by spec.model.tokenSecretRef (locally: the environment variable HF_TOKEN); {token}"
    )]
    Gated {
        /// The model's page.
        page: String,
        /// Whether a token was sent.
        token: &'static str,
    },
    /// Repository, revision or file do not exist.
    #[error("{0}")]
    NotFound(String),
    /// The repository has nothing that this build reads, or more than one thing.
    #[error("{0}")]
    Selection(String),
    /// What arrived is not what was promised.
    #[error("{file}: {message}; the file was not used, start again to fetch it anew")]
    Corrupt {
        /// Name in the repository, or the URL.
        file: String,
        /// What differs.
        message: String,
    },
    /// The server cannot be reached, or kept failing.
    #[error(
        "{what}: {reason}; gave up after {attempts} attempts, what arrived is kept and the next start goes on from there"
    )]
    Unreachable {
        /// What was fetched.
        what: String,
        /// The last failure.
        reason: String,
        /// Attempts in a row without a byte of progress.
        attempts: u32,
    },
    /// The server answered what the protocol does not know.
    #[error("{what}: {message}")]
    Protocol {
        /// What was fetched.
        what: String,
        /// What the answer was.
        message: String,
    },
    /// A file of the cache could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl SourceError {
    /// An input/output error at `path`, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source }
    }
}

/// A file of more than `most` bytes, which no file of its name has.
pub(super) fn too_large(what: &str, most: u64) -> SourceError {
    SourceError::Selection(format!(
        "{what} is larger than {} MiB, which no such file is: look for another repository of the same model",
        most >> 20
    ))
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, SourceError>;
