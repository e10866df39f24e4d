//! Where the bytes of a checkpoint come from.
//!
//! A [`Source`] is a named set of files that can be read at any offset. Everything above
//! this floor is the same for a local directory and for any other place.

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use requant_formats::FormatError;

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::small;

mod digest;
mod download;
mod feed;
mod feed_state;
pub mod hub;
mod local;
mod notice;
mod remote;
mod spool;
mod stated;
pub mod store;
mod streamed;
mod supply;

pub use digest::{ContentHasher, file_digest, file_digest_with};
pub use download::Download;
pub use feed::{Arrival, Feed};
pub use local::{FileState, LocalDirectory};
pub use remote::{ContentDigest, Remote, RemoteFile};
pub use spool::Spool;
pub(crate) use stated::{Stated, stated};
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
    /// As [`Source::read_at`], and when it is longer than such files are ([`crate::small::cap_of`]).
    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(id) = self.find(name) else { return Ok(None) };
        read_whole(self, id).map(Some)
    }

    /// The first `len_bytes` of a file, of this fingerprint, were read as a header or a small file: a source that
    /// is [`Source::changeable`] remembers it.
    fn was_read(&self, file: usize, len_bytes: u64, fingerprint: u128) {
        let _ = (file, len_bytes, fingerprint);
    }

    /// The directory, for a source whose files anybody may change while they are read. A source that compares each
    /// file with a digest of its own before it lets it be read has none.
    fn changeable(&self) -> Option<&LocalDirectory> {
        None
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

    /// The beginning of a file made no sense. Forgets what was read of it if that may have been damaged on its way;
    /// says whether reading it again may give something else.
    ///
    /// # Errors
    /// When the file itself is not what its place states; the message says what to do about it.
    fn reread(&self, file: usize) -> Result<bool> {
        let _ = file;
        Ok(false)
    }

    /// Bytes that [`Source::verify`] would read: of files whose place states what they are, and that were not held
    /// against it yet.
    fn unverified_bytes(&self, files: &[usize]) -> u64 {
        let _ = files;
        0
    }

    /// Holds files against what their place states, where that takes reading all of them. Otherwise each is held
    /// against it when its first weight is read.
    ///
    /// # Errors
    /// When one is something else, and [`Error::Interrupted`] once `stop` is set.
    fn verify(&self, files: &[usize], on_bytes: &(dyn Fn(u64) + Sync), stop: &AtomicBool) -> Result<()> {
        let _ = (files, on_bytes, stop);
        Ok(())
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

    fn was_read(&self, file: usize, len_bytes: u64, fingerprint: u128) {
        (**self).was_read(file, len_bytes, fingerprint);
    }

    fn changeable(&self) -> Option<&LocalDirectory> {
        (**self).changeable()
    }

    fn is_at_hand(&self) -> bool {
        (**self).is_at_hand()
    }

    fn sample(&self, on: bool) -> bool {
        (**self).sample(on)
    }

    fn reread(&self, file: usize) -> Result<bool> {
        (**self).reread(file)
    }

    fn unverified_bytes(&self, files: &[usize]) -> u64 {
        (**self).unverified_bytes(files)
    }

    fn verify(&self, files: &[usize], on_bytes: &(dyn Fn(u64) + Sync), stop: &AtomicBool) -> Result<()> {
        (**self).verify(files, on_bytes, stop)
    }

    fn supply(&self) -> Option<&dyn Supply> {
        (**self).supply()
    }
}

/// How often the beginning of a file is read when it makes no sense.
const HEADER_READS: usize = 3;

/// The directory at `root`; a snapshot of the Hugging Face cache is held against the names of its blobs.
///
/// # Errors
/// When it cannot be read.
pub fn open_directory(root: &Path) -> Result<Box<dyn Source>> {
    // What is no directory is for the other one to name.
    if root.is_dir()
        && let Some(snapshot) = hub::Snapshot::named_by_path(root)?
    {
        return Ok(Box::new(snapshot));
    }
    Ok(Box::new(LocalDirectory::open(root)?))
}

/// Reads the beginning of file number `file` with `parse`, again where it was damaged on its way. What is wrong with
/// the file itself is the inner error.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read_header<T>(
    source: &dyn Source,
    file: usize,
    parse: impl Fn(&mut SourceReader<'_>) -> std::result::Result<T, FormatError>,
) -> Result<std::result::Result<T, FormatError>> {
    let mut reads = 1;
    loop {
        let mut reader = SourceReader::new(source, file);
        let error = match parse(&mut reader) {
            Ok(header) => return Ok(Ok(header)),
            Err(error) => reader.take_error().map_or(Ok(error), Err)?,
        };
        if reads == HEADER_READS || !source.reread(file)? {
            return Ok(Err(error));
        }
        reads += 1;
    }
}

/// What a place without a file that every checkpoint has may be, and what to do.
pub(crate) fn what_it_is(source: &dyn Source) -> String {
    let find = |suffix: &str| source.files().iter().find(|file| file.name.ends_with(suffix));
    match find(".gguf") {
        None => match [".bin", ".pt", ".pth"].into_iter().find_map(find) {
            None => "is this a Hugging Face checkpoint?".to_owned(),
            Some(file) => format!(
                "weights pickled by PyTorch ({}) are not read, since unpickling can run code; save the model as \
                 safetensors first (transformers: from_pretrained, then save_pretrained)",
                file.name
            ),
        },
        Some(file) => format!(
            "it holds GGUF files; name one of them, such as {} (of a repository on the hub, once `requant fetch` has \
             downloaded it)",
            file.name
        ),
    }
}

/// All bytes of a small file.
fn read_whole<S: Source + ?Sized>(source: &S, file: usize) -> Result<Vec<u8>> {
    let SourceFile { name, len_bytes, .. } = &source.files()[file];
    small::cap_of(name).check(name, *len_bytes)?;
    let mut bytes = vec![0; *len_bytes as usize];
    source.read_at(file, 0, &mut bytes)?;
    source.was_read(file, *len_bytes, Fingerprint::of(0, &bytes));
    Ok(bytes)
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
    /// Of what was read, all bytes from the first on.
    fingerprint: Fingerprint,
    error: Option<Error>,
}

impl<'a> SourceReader<'a> {
    /// Starts at the first byte of file number `file`.
    pub fn new(source: &'a dyn Source, file: usize) -> Self {
        Self { source, file, position: 0, fingerprint: Fingerprint::new(), error: None }
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
        self.fingerprint.update(&buf[..len]);
        Ok(len)
    }
}

impl Drop for SourceReader<'_> {
    fn drop(&mut self) {
        self.source.was_read(self.file, self.position, self.fingerprint.finish());
    }
}
