//! The one error type of this crate.

/// What can be wrong with bytes that claim to be a tensor, a block or a container.
///
/// The callers of this crate know which file the bytes came from; they add its path.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes end before a structure that they announce.
    #[error("{what}: needs {needed} bytes but only {available} are there (truncated file?)")]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes needed for it.
        needed: u64,
        /// Bytes that remain.
        available: u64,
    },
    /// A field has a value that the format does not allow.
    #[error("{what}: found {found}, expected {expected}")]
    Invalid {
        /// Which field of which structure.
        what: String,
        /// The value in the file.
        found: String,
        /// What the format allows.
        expected: String,
    },
    /// A valid file of a kind this crate does not read.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// The value found.
        what: String,
        /// What would be accepted.
        supported: String,
    },
    /// The bytes could not be read at all.
    #[error("{what}: {source}")]
    Io {
        /// What was being read.
        what: String,
        /// What the reader said.
        source: std::io::Error,
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, FormatError>;
