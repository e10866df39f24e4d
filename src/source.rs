//! Where the bytes of a checkpoint come from.
//!
//! A [`Source`] is a named set of files that can be read at any offset. Everything above
//! this floor is the same for a local directory and for any other place.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};

mod digest;
mod download;
mod feed;
mod feed_state;
pub mod hub;
mod local;
mod remote;
mod spool;
mod streamed;
mod supply;

pub use digest::{ContentHasher, file_digest, file_digest_with};
pub use download::Download;
pub use feed::{Arrival, Feed};
pub use local::LocalDirectory;
pub use remote::{ContentDigest, Remote, RemoteFile};
pub use spool::Spool;
pub use streamed::{Deposit, Streamed};
pub use supply::Supply;

/// One file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name relative to the checkpoint's root: `model-00001-of-000163.safetensors`.
    pub name: String,
    /// Length.
    pub len_bytes: u64,
    /// Lower-case hex digest where the place states one, else `None`.
    pub sha256: Option<String>,
    /// Time of the last change, where the place has one: tells a later run that it met other bytes.
    pub modified: Option<std::time::SystemTime>,
}

/// Bytes of a file that are read for one purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// File number.
    pub file: usize,
    /// Where they are in it.
    pub range: Range<u64>,
    /// Few enough to be kept in memory: a vector, the scales of a matrix.
    pub is_small: bool,
}

/// A set of files that can be read at any offset from several threads.
pub trait Source: Send + Sync {
    /// The place, for messages: a path or a hub id.
    fn location(&self) -> String;

    /// The model's name, as its directory is called: `DeepSeek-V3-0324`.
    fn model_name(&self) -> String {
        last_component(&self.location())
    }

    /// The files, sorted by name. Their position is the file id of [`Source::read_at`].
    fn files(&self) -> &[SourceFile];

    /// Fills `buf` from `offset_bytes` of file number `file`.
    ///
    /// # Errors
    /// When the file cannot be read or ends early; the message names it.
    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()>;

    /// Position of the file called `name`.
    fn find(&self, name: &str) -> Option<usize> {
        self.files().iter().position(|file| file.name == name)
    }

    /// The whole of a small file such as `config.json`; `None` when there is no such file.
    ///
    /// # Errors
    /// As [`Source::read_at`].
    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(id) = self.find(name) else { return Ok(None) };
        let mut bytes = vec![0; self.files()[id].len_bytes as usize];
        self.read_at(id, 0, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Whether every byte can be read right now.
    fn is_at_hand(&self) -> bool {
        true
    }

    /// Lets single ranges of files that are not at hand be read, or ends that: to look at samples, never for
    /// results, since such bytes are not verified. Says whether everything can be read now.
    fn sample(&self, on: bool) -> bool {
        let _ = on;
        self.is_at_hand()
    }

    /// How files come and go, for a source whose files are not there all the time.
    fn supply(&self) -> Option<&dyn Supply> {
        None
    }
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn location(&self) -> String {
        (**self).location()
    }

    fn model_name(&self) -> String {
        (**self).model_name()
    }

    fn files(&self) -> &[SourceFile] {
        (**self).files()
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(file, offset_bytes, buf)
    }

    fn find(&self, name: &str) -> Option<usize> {
        (**self).find(name)
    }

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        (**self).read_small(name)
    }

    fn is_at_hand(&self) -> bool {
        (**self).is_at_hand()
    }

    fn sample(&self, on: bool) -> bool {
        (**self).sample(on)
    }

    fn supply(&self) -> Option<&dyn Supply> {
        (**self).supply()
    }
}

/// What a place without a file that every checkpoint has may be, and what to do.
pub(crate) fn what_it_is(source: &dyn Source) -> String {
    match source.files().iter().find(|file| file.name.ends_with(".gguf")) {
        None => "is this a Hugging Face checkpoint?".to_owned(),
        Some(file) => format!(
            "it holds GGUF files; name one of them, such as {} (of a repository on the hub, once `requant fetch` has \
             downloaded it)",
            file.name
        ),
    }
}

/// What follows the last slash, a trailing one aside.
fn last_component(location: &str) -> String {
    location.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// Reads one file of a source from its start, for parsers that want a [`Read`].
///
/// A [`Read`] can only fail with an [`std::io::Error`]; the source's own error, which names the
/// file, is kept for [`SourceReader::take_error`].
pub struct SourceReader<'a> {
    source: &'a dyn Source,
    file: usize,
    position: u64,
    error: Option<Error>,
}

impl<'a> SourceReader<'a> {
    /// Starts at the first byte of file number `file`.
    pub fn new(source: &'a dyn Source, file: usize) -> Self {
        Self { source, file, position: 0, error: None }
    }

    /// The source's error behind the last failed read, if it was the source that failed.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }
}

impl Read for SourceReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let remaining = self.source.files()[self.file].len_bytes.saturating_sub(self.position);
        let len = buf.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
        if let Err(error) = self.source.read_at(self.file, self.position, &mut buf[..len]) {
            let message = error.to_string();
            self.error = Some(error);
            return Err(std::io::Error::other(message));
        }
        self.position += len as u64;
        Ok(len)
    }
}
