//! The spool: a directory in which a few shards lie while they are used, and the small parts of
//! others that are needed longer.
//!
//! ```text
//! SPOOL/lock             held while a run uses it
//! SPOOL/shards/NAME      a shard, whole and verified
//! SPOOL/shards/NAME.part a shard that is arriving, with NAME.part.segments
//! SPOOL/kept/FILE-OFFSET bytes of a shard that is gone: SHA-256 (32 bytes), then the bytes
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::lock::lock;

/// A spool directory, locked.
pub struct Spool {
    directory: PathBuf,
    limit_bytes: u64,
    /// Kept bytes by file and offset.
    kept: RwLock<BTreeMap<(usize, u64), Vec<u8>>>,
    _lock: File,
}

impl Spool {
    /// Opens the spool at `directory`, with what an earlier run left there.
    ///
    /// # Errors
    /// When it cannot be created or read, or another run uses it.
    pub fn open(directory: &Path, limit_bytes: u64) -> Result<Self> {
        let kept_directory = directory.join("kept");
        std::fs::create_dir_all(&kept_directory).map_err(Error::io(&kept_directory, "create"))?;
        let lock_path = directory.join("lock");
        let lock = lock(&lock_path, || {
            format!("{}: another requant is using this spool right now", directory.display())
        })?;
        let mut kept = BTreeMap::new();
        for entry in std::fs::read_dir(&kept_directory).map_err(Error::io(&kept_directory, "list"))? {
            let path = entry.map_err(Error::io(&kept_directory, "list"))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
            let Some((Ok(file), Ok(offset))) = name.map(|(file, offset)| (file.parse(), offset.parse()))
            else {
                continue;
            };
            let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
            // A torn file counts as not kept.
            if let Some((digest, content)) = bytes.split_at_checked(32)
                && digest == Sha256::digest(content).as_slice()
            {
                kept.insert((file, offset), content.to_vec());
            }
        }
        Ok(Self { directory: directory.to_owned(), limit_bytes, kept: RwLock::new(kept), _lock: lock })
    }

    /// Removes the shards of an earlier run, whole or not.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let shards = self.directory.join("shards");
        match std::fs::remove_dir_all(&shards) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(shards, "remove")(error))
            }
            _ => Ok(()),
        }
    }

    /// Most bytes of shards at once.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Path of a verified shard; its folder is made.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join("shards").join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        }
        Ok(path)
    }

    /// Path of the same shard while it arrives.
    pub(super) fn partial_path(&self, target: &Path) -> PathBuf {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        target.with_file_name(name)
    }

    pub(super) fn is_kept(&self, file: usize, range: &Range<u64>) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(&(file, range.start)).is_some_and(|bytes| bytes.len() as u64 == range.end - range.start)
    }

    /// Copies kept bytes to `buf` if they cover it.
    pub(super) fn read_kept(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        // Kept ranges are whole tensors: the one that begins last before the offset is the one.
        let before = kept.range((file, 0)..=(file, offset_bytes)).next_back();
        let covering = before.and_then(|(&(_, start), bytes)| {
            let skip = usize::try_from(offset_bytes - start).ok()?;
            bytes.get(skip..skip.checked_add(buf.len())?)
        });
        covering.inspect(|bytes| buf.copy_from_slice(bytes)).is_some()
    }

    pub(super) fn keep(&self, file: usize, offset_bytes: u64, bytes: Vec<u8>) -> Result<()> {
        let path = self.directory.join("kept").join(format!("{file}-{offset_bytes}"));
        let mut content = Sha256::digest(&bytes).to_vec();
        content.extend_from_slice(&bytes);
        std::fs::write(&path, content).map_err(Error::io(&path, "write"))?;
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.insert((file, offset_bytes), bytes);
        Ok(())
    }

    /// Removes the spool and everything in it.
    ///
    /// The lock goes with it; it is held until this is dropped.
    pub(super) fn remove(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.directory).map_err(Error::io(&self.directory, "remove"))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // An empty spool is of no use to a later run. `remove_dir` refuses one that is not empty.
        let shards = self.directory.join("shards");
        let is_empty = |path: &Path| !path.exists() || std::fs::remove_dir(path).is_ok();
        if is_empty(&shards) && is_empty(&self.directory.join("kept")) {
            let _ = std::fs::remove_file(self.directory.join("lock"));
            let _ = std::fs::remove_dir(&self.directory);
        }
    }
}
