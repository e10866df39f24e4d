//! A checkpoint at a remote place, used while it streams through a spool.
//!
//! Headers and small files are read by range, so that a plan needs a few megabytes. Weights are
//! readable only while their shard is in the spool, whole and verified, or lies in a cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::digest::{ContentHasher, file_digest, file_digest_with};
use super::download::Download;
use super::spool::Spool;
use super::{ContentDigest, Remote, Source, SourceFile, Supply};
use crate::error::{Error, Result};
use crate::small;

/// Bytes read first of a shard, in the hope that its header fits.
const HEAD_BYTES: u64 = 64 << 10;
/// Most bytes read of a file that is not whole: safetensors headers end at 100 MB.
const MAX_HEAD_BYTES: u64 = 128 << 20;

/// Files up to this length are held against their digests before even their headers are read from a cache.
const AT_ONCE_BYTES: u64 = 256 << 20;

/// Puts a released file elsewhere, into a cache, say, instead of deleting it; returns its new path.
pub type Deposit = Box<dyn Fn(usize, &Path) -> Result<PathBuf> + Send + Sync>;

/// A remote checkpoint with a spool.
pub struct Streamed {
    remote: Arc<dyn Remote>,
    files: Vec<SourceFile>,
    /// Where a file lies whole on this machine already, by number.
    cached: Vec<RwLock<Option<PathBuf>>>,
    /// Files that can be read now.
    present: Vec<RwLock<Option<Arc<File>>>>,
    /// First bytes of shards.
    heads: Vec<Mutex<Vec<u8>>>,
    /// Files whose copy on this machine is damaged.
    damaged: Vec<AtomicBool>,
    /// Small files that were fetched whole; only kept when there is a `deposit` for them.
    small: Mutex<BTreeMap<usize, Vec<u8>>>,
    spool: Option<Spool>,
    /// Ranges of weights may be read though nobody has verified them.
    sampling: AtomicBool,
    connections: usize,
    deposit: Option<Deposit>,
    stop: Arc<AtomicBool>,
}

impl Streamed {
    /// Wraps `remote`; `cached` says for each of its files where it lies on this machine, if it does.
    /// `stop` ends reads of headers and small files.
    pub fn new(
        remote: Arc<dyn Remote>,
        cached: Vec<Option<PathBuf>>,
        connections: usize,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let files: Vec<SourceFile> = remote
            .files()
            .iter()
            .map(|file| SourceFile {
                name: file.name.clone(),
                len_bytes: file.len_bytes,
                sha256: match &file.digest {
                    ContentDigest::Sha256(hex) => Some(hex.clone()),
                    ContentDigest::GitBlob(_) => None,
                },
                modified: None,
            })
            .collect();
        let cached = cached.into_iter().map(RwLock::new).collect();
        let present = files.iter().map(|_| RwLock::new(None)).collect();
        let heads = files.iter().map(|_| Mutex::new(Vec::new())).collect();
        let damaged = files.iter().map(|_| AtomicBool::new(false)).collect();
        let small = Mutex::default();
        Self {
            remote,
            files,
            cached,
            present,
            heads,
            damaged,
            small,
            spool: None,
            sampling: AtomicBool::new(false),
            connections,
            deposit: None,
            stop,
        }
    }

    /// Lets weights be streamed through `spool`; `deposit` takes files that would be deleted.
    #[must_use]
    pub fn with_spool(mut self, spool: Spool, deposit: Option<Deposit>) -> Self {
        self.spool = Some(spool);
        self.deposit = deposit;
        self
    }

    /// Whether a file lies on this machine already.
    pub fn is_cached(&self, file: usize) -> bool {
        self.cached_path(file).is_some()
    }

    fn cached_path(&self, file: usize) -> Option<PathBuf> {
        self.cached[file].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn handle(&self, file: usize) -> Option<Arc<File>> {
        self.present[file].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_handle(&self, file: usize, handle: Option<Arc<File>>) {
        *self.present[file].write().unwrap_or_else(PoisonError::into_inner) = handle;
    }

    fn spool(&self) -> Result<&Spool> {
        self.spool.as_ref().ok_or_else(|| {
            let message = "its weights are not on this machine; fetch it first (requant fetch)";
            Error::hub(self.remote.location(), message)
        })
    }

    fn head(&self, file: usize) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.heads[file])
    }

    /// Reads from the first bytes of a file, fetching as many of them as that takes.
    fn read_head(&self, file: usize, range: Range<u64>, buf: &mut [u8]) -> Result<()> {
        let len_bytes = self.files[file].len_bytes;
        if range.end > len_bytes.min(MAX_HEAD_BYTES) {
            // Only weights lie there.
            self.spool()?;
            let message = format!("bytes {} to {} are not at hand", range.start, range.end);
            return Err(Error::hub(self.place(file), message));
        }
        let mut head = self.head(file);
        let there = head.len() as u64;
        if there < range.end {
            let end = range.end.max(HEAD_BYTES).min(len_bytes);
            if let Some(path) = self.trusted_path(file)? {
                let mut bytes = vec![0; end as usize];
                let cached = File::open(&path).map_err(Error::io(&path, "open"))?;
                cached.read_exact_at(&mut bytes, 0).map_err(Error::io(&path, "read"))?;
                *head = bytes;
            } else {
                self.remote.read_awaited(file, there..end, &self.stop, &mut |bytes| {
                    head.extend_from_slice(bytes);
                    Ok(())
                })?;
            }
        }
        buf.copy_from_slice(&head[range.start as usize..range.end as usize]);
        Ok(())
    }

    /// Reads a range of a file that is not here.
    fn read_sample(&self, file: usize, range: Range<u64>, buf: &mut [u8]) -> Result<()> {
        if let Some(path) = self.trusted_path(file)? {
            let cached = File::open(&path).map_err(Error::io(&path, "open"))?;
            return cached.read_exact_at(buf, range.start).map_err(Error::io(&path, "read"));
        }
        let mut filled = 0;
        self.remote.read_range(file, range, &self.stop, &mut |bytes| {
            let end = filled + bytes.len();
            let Some(room) = buf.get_mut(filled..end) else {
                return Err(Error::hub(self.place(file), "more bytes came than were asked for"));
            };
            room.copy_from_slice(bytes);
            filled = end;
            Ok(())
        })?;
        if filled < buf.len() {
            let message = format!("{filled} of {} bytes came", buf.len());
            return Err(Error::hub(self.place(file), message));
        }
        Ok(())
    }

    fn place(&self, file: usize) -> String {
        format!("{}: {}", self.remote.location(), self.files[file].name)
    }

    /// The plan was made from the header as it was read first: it must be the verified one.
    fn check_head(&self, file: usize, brought: &File, path: &Path) -> Result<()> {
        let mut head = self.head(file);
        let mut found = vec![0; head.len()];
        brought.read_exact_at(&mut found, 0).map_err(Error::io(path, "read"))?;
        let same = found == *head;
        *head = Vec::new();
        if same {
            return Ok(());
        }
        Err(Error::StaleHeader { place: self.place(file) })
    }

    /// A cached file whose content is what the hub states.
    fn verified_cached(&self, file: usize, stop: &AtomicBool) -> Result<Option<PathBuf>> {
        let Some(path) = self.cached_path(file) else { return Ok(None) };
        let wanted = &self.remote.files()[file].digest;
        let mut unless_stopped =
            |_: &[u8]| if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
        let is_whole = file_digest_with(&path, wanted, &mut unless_stopped)? == wanted.hex();
        self.damaged[file].store(!is_whole, Ordering::Relaxed);
        Ok(is_whole.then_some(path))
    }

    /// A cached file that may be looked into: one that is not soon hashed is not hashed for that.
    fn trusted_path(&self, file: usize) -> Result<Option<PathBuf>> {
        if self.damaged[file].load(Ordering::Relaxed) {
            return Ok(None);
        }
        if self.files[file].len_bytes <= AT_ONCE_BYTES {
            self.verified_cached(file, &self.stop)
        } else {
            Ok(self.cached_path(file))
        }
    }
}

impl Source for Streamed {
    fn location(&self) -> String {
        self.remote.location()
    }

    fn model_name(&self) -> String {
        let location = self.remote.location();
        let repository = location.split('@').next().unwrap_or_default();
        repository.rsplit('/').next().unwrap_or_default().to_owned()
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(handle) = self.handle(file) {
            let read = handle.read_exact_at(buf, offset_bytes);
            return read.map_err(Error::io(self.files[file].name.clone(), "read"));
        }
        if let Some(spool) = &self.spool
            && spool.read_kept(&self.location(), &self.remote.files()[file], offset_bytes, buf)
        {
            return Ok(());
        }
        let range = offset_bytes..offset_bytes + buf.len() as u64;
        if self.sampling.load(Ordering::Relaxed) {
            return self.read_sample(file, range, buf);
        }
        self.read_head(file, range, buf)
    }

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(id) = self.find(name) else { return Ok(None) };
        let wanted = &self.remote.files()[id];
        let cap = small::cap_of(name);
        cap.check(&self.place(id), wanted.len_bytes)?;
        if let Some(path) = self.verified_cached(id, &self.stop)? {
            return small::read(&path, cap).map(Some);
        }
        let mut found = String::new();
        for _ in 0..3 {
            let mut bytes = Vec::with_capacity(wanted.len_bytes as usize);
            if wanted.len_bytes > 0 {
                self.remote.read_awaited(id, 0..wanted.len_bytes, &self.stop, &mut |chunk| {
                    bytes.extend_from_slice(chunk);
                    Ok(())
                })?;
            }
            let mut hasher = ContentHasher::new(&wanted.digest, wanted.len_bytes);
            hasher.update(&bytes);
            found = hasher.finish();
            if found == wanted.digest.hex() {
                if self.deposit.is_some() {
                    lock(&self.small).insert(id, bytes.clone());
                }
                return Ok(Some(bytes));
            }
            self.remote.mistrust(id);
        }
        let message = format!("found digest {found}, expected {}", wanted.digest.hex());
        Err(Error::hub(self.place(id), message))
    }

    fn is_at_hand(&self) -> bool {
        false
    }

    fn sample(&self, on: bool) -> bool {
        self.sampling.store(on, Ordering::Relaxed);
        on
    }

    fn reread(&self, file: usize) -> Result<bool> {
        if self.handle(file).is_some() {
            return Ok(false);
        }
        let is_of_cache = self.cached_path(file).is_some() && !self.damaged[file].load(Ordering::Relaxed);
        if is_of_cache && self.verified_cached(file, &self.stop)?.is_some() {
            // So the hub has it; there is nothing else to be read.
            return Ok(false);
        }
        *self.head(file) = Vec::new();
        Ok(true)
    }

    fn supply(&self) -> Option<&dyn Supply> {
        self.spool.is_some().then_some(self)
    }
}

impl Supply for Streamed {
    fn limit_bytes(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::limit_bytes)
    }

    fn room_bytes(&self, file: usize) -> u64 {
        if self.is_cached(file) { 0 } else { self.files[file].len_bytes }
    }

    fn is_owed(&self, file: usize) -> bool {
        self.deposit.is_some() && !self.is_cached(file)
    }

    fn bring(&self, file: usize, stop: &AtomicBool, on_bytes: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let spool = self.spool()?;
        let path = if let Some(path) = self.verified_cached(file, stop)? {
            on_bytes(self.files[file].len_bytes);
            path
        } else {
            let target = spool.path(&self.files[file].name)?;
            let partial = spool.partial_path(&target);
            let connections = self.connections;
            Download {
                remote: &*self.remote,
                file,
                disk: spool.disk(),
                target: &target,
                partial: &partial,
                is_durable: false,
                connections,
                stop,
                on_bytes,
            }
            .run()?;
            target
        };
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let handle = File::open(&path).map_err(Error::io(&path, "open"))?;
        self.check_head(file, &handle, &path)?;
        self.set_handle(file, Some(Arc::new(handle)));
        Ok(())
    }

    fn is_kept(&self, file: usize, range: &Range<u64>) -> bool {
        let known = &self.remote.files()[file];
        self.spool.as_ref().is_some_and(|spool| spool.is_kept(&self.location(), known, range))
    }

    fn keep(&self, file: usize, range: Range<u64>) -> Result<()> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read_at(file, range.start, &mut bytes)?;
        self.spool()?.keep(&self.location(), &self.remote.files()[file], range.start, bytes)
    }

    fn release(&self, file: usize) -> Result<()> {
        self.set_handle(file, None);
        let path = self.spool()?.path(&self.files[file].name)?;
        // Present in the spool unless it was used from the cache.
        if !path.exists() {
            return Ok(());
        }
        match &self.deposit {
            Some(deposit) => {
                let cached = deposit(file, &path)?;
                *self.cached[file].write().unwrap_or_else(PoisonError::into_inner) = Some(cached);
                Ok(())
            }
            None => self.spool()?.disk().remove(&path),
        }
    }

    fn finish(&self) -> Result<()> {
        let spool = self.spool()?;
        if let Some(deposit) = &self.deposit {
            // What an earlier run brought, and no later one needed, belongs into the cache as well, and what only
            // another commit has linked, or a run that was stopped before it did, into the snapshot.
            for (file, wanted) in self.remote.files().iter().enumerate() {
                let path = spool.path(&wanted.name)?;
                if path.is_file() && file_digest(&path, &wanted.digest)? == wanted.digest.hex() {
                    deposit(file, &path)?;
                } else if let Some(path) = self.cached_path(file)
                    && !self.damaged[file].load(Ordering::Relaxed)
                {
                    deposit(file, &path)?;
                }
            }
            for (file, bytes) in std::mem::take(&mut *lock(&self.small)) {
                let path = spool.path(&self.files[file].name)?;
                spool.disk().replace(&path, &bytes)?;
                deposit(file, &path)?;
            }
        }
        spool.remove()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
