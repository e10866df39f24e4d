//! The spool: a directory in which a few shards lie while they are used, and the small parts of
//! others that are needed longer.
//!
//! ```text
//! SPOOL/lock             held while a run uses it
//! SPOOL/shards/NAME      a shard, whole and verified
//! SPOOL/shards/NAME.part a shard that is arriving, with NAME.part.segments
//! SPOOL/kept/KEY         bytes of a shard that is gone: a line of JSON that says what they are (place and
//!                        commit, file and its digest, range, SHA-256 of the bytes), then the bytes
//! ```
//!
//! A spool may hold what another run has left, of another model or commit: a shard is hashed again before it is
//! used, and kept bytes count only if they say to be what is asked for, and are.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RemoteFile;
use super::digest::hex;
use crate::disk::{Disk, with_suffix};
use crate::error::{Error, Result};
use crate::lock::lock;

/// Most bytes of a line that says what kept bytes are.
const MAX_LABEL_BYTES: usize = 16 << 10;

/// A spool directory, locked.
pub struct Spool {
    directory: PathBuf,
    limit_bytes: u64,
    disk: Disk,
    /// Kept bytes by what they are.
    kept: RwLock<BTreeMap<Part, Vec<u8>>>,
    _lock: File,
}

/// What kept bytes are: a range of a file with this content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Part {
    /// Repository and commit: `org/name@commit`.
    location: String,
    /// Name in the repository.
    file: String,
    /// Digest of the whole file.
    digest: String,
    start: u64,
    end: u64,
}

/// The first line of a kept file.
#[derive(Serialize, Deserialize)]
struct Label {
    #[serde(flatten)]
    part: Part,
    /// Of the bytes that follow.
    sha256: String,
}

impl Part {
    fn new(location: &str, file: &RemoteFile, range: Range<u64>) -> Self {
        Self {
            location: location.to_owned(),
            file: file.name.clone(),
            digest: file.digest.hex().to_owned(),
            start: range.start,
            end: range.end,
        }
    }

    /// Name of its file in the spool.
    fn key(&self) -> String {
        hex(&Sha256::digest(format!("{self:?}")))
    }
}

impl Spool {
    /// Opens the spool at `directory`, with what an earlier run left there.
    ///
    /// # Errors
    /// When it cannot be created or read, or another run uses it.
    pub fn open(disk: &Disk, directory: &Path, limit_bytes: u64) -> Result<Self> {
        let kept_directory = directory.join("kept");
        disk.make_directories(&kept_directory)?;
        let lock_path = directory.join("lock");
        let lock = lock(&lock_path, || {
            format!("{}: another requant is using this spool right now", directory.display())
        })?;
        let mut kept = BTreeMap::new();
        for entry in std::fs::read_dir(&kept_directory).map_err(Error::io(&kept_directory, "list"))? {
            let path = entry.map_err(Error::io(&kept_directory, "list"))?.path();
            let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
            // What is torn, or was written by an earlier version, counts as not kept.
            if let Some((part, content)) = kept_bytes(&bytes) {
                kept.insert(part, content.to_vec());
            }
        }
        let (directory, disk) = (directory.to_owned(), disk.clone());
        Ok(Self { directory, limit_bytes, disk, kept: RwLock::new(kept), _lock: lock })
    }

    /// Removes everything that an earlier run has left.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(&self) -> Result<()> {
        self.disk.remove(&self.directory.join("shards"))?;
        let kept = self.directory.join("kept");
        self.disk.remove(&kept)?;
        self.kept.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.disk.make_directories(&kept)
    }

    /// What it is written with.
    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Most bytes of shards at once.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Path of a verified shard; its folder is made.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join("shards").join(name);
        self.disk.make_directories(crate::disk::parent_of(&path))?;
        Ok(path)
    }

    /// Path of the same shard while it arrives.
    pub(super) fn partial_path(&self, target: &Path) -> PathBuf {
        with_suffix(target, ".part")
    }

    pub(super) fn is_kept(&self, location: &str, file: &RemoteFile, range: &Range<u64>) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.contains_key(&Part::new(location, file, range.clone()))
    }

    /// Copies kept bytes to `buf` if they cover it.
    pub(super) fn read_kept(
        &self,
        location: &str,
        file: &RemoteFile,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        // Kept ranges are whole tensors: the one that begins last before the offset is the one.
        let first = Part::new(location, file, 0..0);
        let last = Part { start: offset_bytes, end: u64::MAX, ..first.clone() };
        let before = kept.range(first..=last).next_back();
        let covering = before.and_then(|(part, bytes)| {
            let skip = usize::try_from(offset_bytes - part.start).ok()?;
            bytes.get(skip..skip.checked_add(buf.len())?)
        });
        covering.inspect(|bytes| buf.copy_from_slice(bytes)).is_some()
    }

    pub(super) fn keep(
        &self,
        location: &str,
        file: &RemoteFile,
        offset_bytes: u64,
        bytes: Vec<u8>,
    ) -> Result<()> {
        let part = Part::new(location, file, offset_bytes..offset_bytes + bytes.len() as u64);
        let path = self.directory.join("kept").join(part.key());
        let label = Label { part, sha256: hex(&Sha256::digest(&bytes)) };
        let mut content =
            serde_json::to_vec(&label).map_err(|error| Error::io(&path, "encode")(error.into()))?;
        content.push(b'\n');
        content.extend_from_slice(&bytes);
        // Not synced: a torn one is found out, and the shard comes again.
        self.disk.create(&path)?.write_all_at(&content, 0)?;
        self.kept.write().unwrap_or_else(PoisonError::into_inner).insert(label.part, bytes);
        Ok(())
    }

    /// Removes the spool and everything in it.
    ///
    /// The lock goes with it; it is held until this is dropped.
    pub(super) fn remove(&self) -> Result<()> {
        self.disk.remove(&self.directory)
    }
}

/// What the kept file with these `bytes` holds; `None` when it is torn.
fn kept_bytes(bytes: &[u8]) -> Option<(Part, &[u8])> {
    let end = bytes.iter().take(MAX_LABEL_BYTES).position(|&byte| byte == b'\n')?;
    let label: Label = serde_json::from_slice(&bytes[..end]).ok()?;
    let content = &bytes[end + 1..];
    let len_bytes = label.part.end.checked_sub(label.part.start)?;
    let is_whole = len_bytes == content.len() as u64 && label.sha256 == hex(&Sha256::digest(content));
    is_whole.then_some((label.part, content))
}

impl Drop for Spool {
    fn drop(&mut self) {
        // An empty spool is of no use to a later run. A directory that is not empty is not removed.
        let shards = self.directory.join("shards");
        let is_empty = |path: &Path| !path.exists() || self.disk.remove_directory(path).is_ok();
        if is_empty(&shards) && is_empty(&self.directory.join("kept")) {
            let _ = self.disk.remove(&self.directory.join("lock"));
            let _ = self.disk.remove_directory(&self.directory);
        }
    }
}
