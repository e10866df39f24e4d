//! The one error type of this crate: every message names the tensor and the file, what was
//! found and expected, and the way out where there is one.

use std::path::PathBuf;

use requant_formats::FormatError;

/// Everything that can go wrong, sorted by what the user has to look at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {action} failed: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done: `"open"`, `"read"`, `"write"`, ...
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is there but its bytes are not what its format demands.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// The checkpoint contradicts itself, its config or its index.
    #[error("{file}: {message}")]
    Checkpoint {
        /// The file the message is about, as named in the checkpoint.
        file: String,
        /// Tensor, expected, found, way out.
        message: String,
    },
    /// Files of the source are not what was read of them before, or not what is recorded about them.
    #[error("{file}: {message}")]
    Changed {
        /// The file the message is about.
        file: String,
        /// What was found, and the way out.
        message: String,
    },
    /// A valid request or input that this version does not handle.
    #[error("{what} is not supported: {hint}")]
    Unsupported {
        /// The thing.
        what: String,
        /// What is supported, or what to do instead.
        hint: String,
    },
    /// The request contradicts itself or the file system: existing output, bad option value.
    #[error("{0}")]
    Request(String),
    /// Options that do not go with the request, as a wrong option is: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A finished artifact does not match its manifest.
    #[error("{}: {problems} of {checked} checks failed", path.display())]
    Verification {
        /// The artifact.
        path: PathBuf,
        /// How many checks failed; each was reported on its own line.
        problems: usize,
        /// How many checks there were.
        checked: usize,
    },
    /// A hub, or the way to it, refused or failed.
    #[error("{place}: {message}")]
    Hub {
        /// Repository and file: `org/name@commit: model-00001-of-000163.safetensors`.
        place: String,
        /// What happened, and what to do.
        message: String,
    },
    /// A plan was made from a header that turned out, once the whole file was verified, to have been damaged on its way.
    #[error("{place}: its header was damaged on the way when the plan was made; run the command again")]
    StaleHeader {
        /// Repository and file.
        place: String,
    },
    /// The user stopped the run.
    #[error("interrupted; nothing is under the final name, and the same command goes on from here")]
    Interrupted,
}

impl Error {
    /// A closure that wraps an [`std::io::Error`], for `map_err`.
    pub fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }

    /// A closure that wraps a [`FormatError`], for `map_err`.
    pub fn format(path: impl Into<PathBuf>) -> impl FnOnce(FormatError) -> Self {
        let path = path.into();
        move |source| Self::Format { path, source }
    }

    /// Something at a hub went wrong.
    pub fn hub(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Hub { place: place.into(), message: message.into() }
    }

    /// `file` of the source is not what it was, or is said to be.
    pub fn changed(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Changed { file: file.into(), message: message.into() }
    }

    /// Something in `file` of a checkpoint is wrong.
    pub fn checkpoint(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Checkpoint { file: file.into(), message: message.into() }
    }
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
