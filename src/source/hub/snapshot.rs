//! A snapshot of the Hugging Face cache as a source, without asking the hub.
//!
//! The cache names each blob as its content: SHA-256 for LFS files, git's blob id for the others. No byte of a file is
//! used before the whole file was held against that name. Large files are the exception as far as they must be: their
//! headers are read first, so that a plan need not read every weight, and are compared with the verified file as soon
//! as a weight is read.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rayon::prelude::*;

use super::local_dir::{blob_name, files_below, linked};
use crate::error::{Error, Result};
use crate::small;
use crate::source::notice::Notices;
use crate::source::{ContentDigest, ContentHasher, Source, SourceFile, last_component};

/// Files up to this length are held against their names before anything of them is read, headers included.
const AT_ONCE_BYTES: u64 = 256 << 20;
/// Longest header: safetensors headers end at 100 MB.
const MAX_HEAD_BYTES: u64 = 128 << 20;
/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// The files of a snapshot.
pub struct Snapshot {
    root: PathBuf,
    name: String,
    files: Vec<SourceFile>,
    entries: Vec<Entry>,
    /// Files that nothing vouches for are read as any local file is.
    is_lenient: bool,
    sampling: AtomicBool,
    notices: Notices,
    stop: Arc<AtomicBool>,
}

struct Entry {
    digest: Option<ContentDigest>,
    opened: OnceLock<File>,
    /// First bytes, read before the file was verified.
    head: Mutex<Vec<u8>>,
    /// What the system said about the file when it was verified.
    verified: Mutex<Option<Stamp>>,
}

/// Changes with every write to a file: length, times of the last change of content and of the file's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(Error::io(path, "stat"))?;
        Ok(Self {
            len_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Snapshot {
    /// The snapshot at `root` of a model called `name`. A file that no link to a blob vouches for cannot be read.
    /// `stop` ends every reading.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn open(root: &Path, name: &str, notices: Notices, stop: Arc<AtomicBool>) -> Result<Self> {
        let mut snapshot = Self {
            root: root.to_owned(),
            name: name.to_owned(),
            files: Vec::new(),
            entries: Vec::new(),
            is_lenient: false,
            sampling: AtomicBool::new(false),
            notices,
            stop,
        };
        let links = linked(root)?;
        for name in files_below(root)? {
            let path = root.join(&name);
            let metadata = match path.metadata() {
                Ok(metadata) => metadata,
                // A dangling link counts as a file that is not there: whoever needs it says so.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(path, "stat")(error)),
            };
            if !metadata.is_file() {
                continue;
            }
            let link = links.iter().find(|link| link.name == name);
            let digest = link.and_then(|link| ContentDigest::from_hex(&link.etag));
            let sha256 = match &digest {
                Some(ContentDigest::Sha256(hex)) => Some(hex.clone()),
                _ => None,
            };
            // Content that is pinned by its digest is not told by its date.
            let modified = if sha256.is_some() { None } else { metadata.modified().ok() };
            snapshot.files.push(SourceFile { name, len_bytes: metadata.len(), sha256, modified });
            snapshot.entries.push(Entry {
                digest,
                opened: OnceLock::new(),
                head: Mutex::default(),
                verified: Mutex::default(),
            });
        }
        Ok(snapshot)
    }

    /// The directory at `root` that a user has named, if its files are links to blobs named as their content. Files
    /// of its own may lie beside them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn named_by_path(root: &Path) -> Result<Option<Self>> {
        // Looks at the directory alone: what a user names may have a whole disk below it.
        let mut is_snapshot = false;
        for entry in std::fs::read_dir(root).map_err(Error::io(root, "list"))? {
            let path = entry.map_err(Error::io(root, "list"))?.path();
            let target = std::fs::read_link(&path).ok();
            is_snapshot |= target.as_deref().and_then(blob_name).and_then(ContentDigest::from_hex).is_some();
        }
        if !is_snapshot {
            return Ok(None);
        }
        let name = last_component(&root.display().to_string());
        Ok(Some(Self { is_lenient: true, ..Self::open(root, &name, Notices::default(), Arc::default())? }))
    }

    fn path(&self, file: usize) -> PathBuf {
        self.root.join(&self.files[file].name)
    }

    fn handle(&self, file: usize) -> Result<&File> {
        let opened = &self.entries[file].opened;
        if let Some(handle) = opened.get() {
            return Ok(handle);
        }
        let path = self.path(file);
        let handle = small::open(&path)?;
        Ok(opened.get_or_init(|| handle))
    }

    fn unvouched(&self, file: usize) -> Error {
        let message = "no link to a blob that is named as its content, so that it cannot be verified; \
                       HF_HUB_OFFLINE is set: unset it to ask the hub";
        Error::Request(format!("{}: {message}", self.path(file).display()))
    }

    /// Bytes of the header, and of what says how long it is; 0 for files without one that can be read by itself.
    fn head_bytes(&self, file: usize) -> Result<u64> {
        if !self.files[file].name.ends_with(".safetensors") {
            return Ok(0);
        }
        let mut len = [0; 8];
        self.read(file, 0, &mut len)?;
        Ok(u64::from_le_bytes(len).saturating_add(8).min(MAX_HEAD_BYTES))
    }

    /// Reads what is there, verified or not.
    fn read(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.handle(file)?.read_exact_at(buf, offset_bytes);
        read.map_err(|error| Error::io(self.path(file), "read")(error))
    }

    /// Reads from the first bytes and remembers them: what was read is what must be verified later.
    fn read_head(&self, file: usize, start: u64, buf: &mut [u8]) -> Result<()> {
        let end = start as usize + buf.len();
        let mut head = lock(&self.entries[file].head);
        let there = head.len();
        if there < end {
            head.resize(end, 0);
            if let Err(error) = self.read(file, there as u64, &mut head[there..]) {
                head.truncate(there);
                return Err(error);
            }
        }
        buf.copy_from_slice(&head[start as usize..end]);
        Ok(())
    }

    /// Holds the file against its name, once; `on_bytes` is told what was hashed, and its error ends it.
    fn verify(&self, file: usize, on_bytes: &dyn Fn(u64) -> Result<()>) -> Result<Stamp> {
        let entry = &self.entries[file];
        let path = self.path(file);
        let mut verified = lock(&entry.verified);
        if let Some(stamp) = *verified {
            return Ok(stamp);
        }
        let digest = entry.digest.as_ref().ok_or_else(|| self.unvouched(file))?;
        let handle = self.handle(file)?;
        let stamp = Stamp::of(handle, &path)?;
        let mut hasher = ContentHasher::new(digest, stamp.len_bytes);
        let mut buffer = vec![0; HASH_BYTES.min(usize::try_from(stamp.len_bytes).unwrap_or(HASH_BYTES))];
        let mut done = 0;
        while done < stamp.len_bytes {
            let len = buffer.len().min(usize::try_from(stamp.len_bytes - done).unwrap_or(HASH_BYTES));
            self.read(file, done, &mut buffer[..len])?;
            hasher.update(&buffer[..len]);
            done += len as u64;
            on_bytes(len as u64)?;
        }
        let found = hasher.finish();
        if found != digest.hex() {
            return Err(self.damaged(file, digest, &found));
        }
        let mut head = lock(&entry.head);
        let mut whole = vec![0; head.len()];
        self.read(file, 0, &mut whole)?;
        if whole != *head || Stamp::of(handle, &path)? != stamp {
            return Err(self.changed(file));
        }
        *head = Vec::new();
        *verified = Some(stamp);
        Ok(stamp)
    }

    fn damaged(&self, file: usize, digest: &ContentDigest, found: &str) -> Error {
        let path = self.path(file);
        let blob = path.canonicalize().unwrap_or_else(|_| path.clone());
        let message = format!(
            "damaged in the cache: {} found {found}, expected {}; delete {} and fetch the file again (with \
             HF_HUB_OFFLINE unset)",
            digest.kind(),
            digest.hex(),
            blob.display()
        );
        Error::hub(path.display().to_string(), message)
    }

    fn changed(&self, file: usize) -> Error {
        let message =
            "changed in the cache while it was read; run the same command again when nothing writes to it";
        Error::hub(self.path(file).display().to_string(), message)
    }

    fn unless_stopped(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Whether a file is to be held against its name, and has not been yet.
    fn is_open_question(&self, file: usize) -> bool {
        let entry = &self.entries[file];
        (entry.digest.is_some() || !self.is_lenient) && lock(&entry.verified).is_none()
    }
}

impl Source for Snapshot {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn model_name(&self) -> String {
        self.name.clone()
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.unless_stopped()?;
        if self.entries[file].digest.is_none() && self.is_lenient {
            return self.read(file, offset_bytes, buf);
        }
        if self.files[file].len_bytes > AT_ONCE_BYTES && self.is_open_question(file) {
            if self.sampling.load(Ordering::Relaxed) {
                return self.read(file, offset_bytes, buf);
            }
            if offset_bytes + buf.len() as u64 <= self.head_bytes(file)?.max(8) {
                return self.read_head(file, offset_bytes, buf);
            }
            self.notices.say(&self.path(file).display().to_string(), "held against its digest");
        }
        let stamp = self.verify(file, &|_| self.unless_stopped())?;
        self.read(file, offset_bytes, buf)?;
        // Any write since, of whatever bytes, has changed the stamp before it could be read.
        if Stamp::of(self.handle(file)?, &self.path(file))? != stamp {
            return Err(self.changed(file));
        }
        Ok(())
    }

    fn sample(&self, on: bool) -> bool {
        self.sampling.store(on, Ordering::Relaxed);
        true
    }

    fn reread(&self, file: usize) -> Result<bool> {
        if self.is_open_question(file) {
            self.verify(file, &|_| self.unless_stopped())?;
        }
        Ok(false)
    }

    fn unverified_bytes(&self, files: &[usize]) -> u64 {
        let files = files.iter().filter(|&&file| self.is_open_question(file));
        files.map(|&file| self.files[file].len_bytes).sum()
    }

    fn verify(&self, files: &[usize], on_bytes: &(dyn Fn(u64) + Sync), stop: &AtomicBool) -> Result<()> {
        let on_bytes = |bytes| {
            on_bytes(bytes);
            if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
        };
        let files = files.par_iter().filter(|&&file| self.is_open_question(file));
        files.try_for_each(|&file| self.verify(file, &on_bytes).map(|_| ()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello\n' | git hash-object --stdin`
    const HELLO: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    fn snapshot(directory: &Path) -> PathBuf {
        let root = directory.join("snapshots/0");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(directory.join("blobs")).unwrap();
        std::fs::write(directory.join("blobs").join(HELLO), "hello\n").unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{HELLO}"), root.join("a")).unwrap();
        std::os::unix::fs::symlink("../../blobs/nothing", root.join("dangling")).unwrap();
        std::fs::write(root.join("own"), "own").unwrap();
        root
    }

    fn read(snapshot: &Snapshot, name: &str) -> Result<Vec<u8>> {
        snapshot.read_small(name).map(Option::unwrap)
    }

    #[test]
    fn files_are_read_as_their_names_say_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let root = snapshot(directory.path());
        let open = || Snapshot::open(&root, "model", Notices::default(), Arc::default()).unwrap();
        let (strict, lenient) = (open(), Snapshot::named_by_path(&root).unwrap().unwrap());
        assert_eq!(strict.files().iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "own"]);
        assert_eq!((strict.model_name().as_str(), lenient.model_name().as_str()), ("model", "0"));
        for source in [&strict, &lenient] {
            assert_eq!(read(source, "a").unwrap(), b"hello\n");
            assert_eq!(source.read_small("dangling").unwrap(), None);
        }
        let error = read(&strict, "own").unwrap_err().to_string();
        assert!(error.contains("own") && error.contains("cannot be verified"), "{error}");
        assert_eq!(read(&lenient, "own").unwrap(), b"own");
        assert!(Snapshot::named_by_path(directory.path()).unwrap().is_none());

        // Once verified, still watched; and verified anew by every run.
        let blob = directory.path().join("blobs").join(HELLO);
        std::fs::write(&blob, "hellO\n").unwrap();
        let error = read(&strict, "a").unwrap_err().to_string();
        assert!(error.contains("changed"), "{error}");
        let error = read(&open(), "a").unwrap_err().to_string();
        assert!(
            error.contains("damaged") && error.contains(blob.canonicalize().unwrap().to_str().unwrap()),
            "{error}"
        );
    }

    #[test]
    fn a_check_counts_what_it_reads_and_stops() {
        let directory = tempfile::tempdir().unwrap();
        let root = snapshot(directory.path());
        let open = || Snapshot::open(&root, "model", Notices::default(), Arc::default()).unwrap();
        let counted = std::sync::atomic::AtomicU64::new(0);
        let count = |bytes| {
            counted.fetch_add(bytes, Ordering::Relaxed);
        };
        let source = open();
        assert_eq!(source.unverified_bytes(&[0]), 6);
        Source::verify(&source, &[0], &count, &AtomicBool::new(false)).unwrap();
        assert_eq!((counted.into_inner(), source.unverified_bytes(&[0])), (6, 0));
        let error = Source::verify(&open(), &[0], &|_| {}, &AtomicBool::new(true)).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
    }
}
