//! What a place on the network offers: named files of known length and digest, readable by range.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crate::error::Result;

/// What a place states about a file's content, lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentDigest {
    /// SHA-256 of the content: LFS files.
    Sha256(String),
    /// SHA-1 of `"blob <length>\0"` and the content: files that git itself holds.
    GitBlob(String),
}

impl ContentDigest {
    /// Reads the hex text; its length tells which digest it is. `None` when it is neither.
    pub fn from_hex(text: &str) -> Option<Self> {
        let hex = text.to_ascii_lowercase();
        match (text.len(), text.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            (64, true) => Some(Self::Sha256(hex)),
            (40, true) => Some(Self::GitBlob(hex)),
            _ => None,
        }
    }

    /// What the digest is called.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::GitBlob(_) => "git blob id",
        }
    }

    /// The hex text, as the cache of `huggingface_hub` names its blobs.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

/// A file of a [`Remote`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Name relative to the repository's root, `/` between folders.
    pub name: String,
    /// Length.
    pub len_bytes: u64,
    /// What its content must hash to.
    pub digest: ContentDigest,
    /// Hash under which Xet storage knows the file, where it does.
    pub xet_hash: Option<String>,
}

/// A pinned set of remote files.
pub trait Remote: Send + Sync {
    /// The place, for messages: `org/name@commit`.
    fn location(&self) -> String;

    /// The files, sorted by name.
    fn files(&self) -> &[RemoteFile];

    /// Hands `range` of file number `file` to `sink`, every byte once and in order.
    ///
    /// Dropped connections, stalls, transfers below a floor rate, short bodies, refused links, 429 and 5xx
    /// are retried with back-off from the first byte that is missing; the content itself is not verified
    /// here.
    ///
    /// # Errors
    /// When attempts without progress are used up, the file is not there any more or has changed,
    /// `sink` fails, or [`crate::Error::Interrupted`] once `stop` is set.
    fn read_range(
        &self,
        file: usize,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;

    /// As [`Remote::read_range`], for what someone waits for and no progress is shown of: headers, small files. A
    /// place that can be slow sets a deadline and says what it waits for.
    ///
    /// # Errors
    /// As there, and when it takes too long.
    fn read_awaited(
        &self,
        file: usize,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.read_range(file, range, stop, sink)
    }
}
