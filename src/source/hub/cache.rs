//! The cache on disk that `huggingface_hub` and its relatives share.
//!
//! ```text
//! models--org--name/blobs/DIGEST
//! models--org--name/snapshots/COMMIT/NAME -> ../../blobs/DIGEST
//! models--org--name/refs/REVISION            (holds the commit)
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::id::{is_commit, is_revision};
use super::repository::is_safe_name;
use crate::disk::{Appender, Disk, parent_of};
use crate::error::{Error, Result};
use crate::source::RemoteFile;

/// Ends the name of a copy that is being made, after the number of the process.
const INCOMPLETE: &str = "incomplete";
/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A cache directory: the value of `HF_HUB_CACHE`.
#[derive(Debug, Clone)]
pub struct HubCache {
    root: PathBuf,
    disk: Disk,
}

impl HubCache {
    /// The cache at `cache_dir`, which need not exist.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { root: cache_dir.into(), disk: Disk::default() }
    }

    /// The same cache, written with `disk`.
    #[must_use]
    pub fn written_with(self, disk: Disk) -> Self {
        Self { disk, ..self }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.root
    }

    /// The commit that the cache knows `revision` (a branch, tag or commit) to be.
    pub fn commit_of(&self, repo: &str, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return self.snapshot(repo, revision).map(|_| revision.to_owned());
        }
        if !is_revision(revision) {
            return None;
        }
        let commit = fs::read_to_string(self.folder(repo).join("refs").join(revision)).ok()?;
        is_commit(commit.trim()).then(|| commit.trim().to_owned())
    }

    /// The folder of a commit's files, if there is one.
    pub fn snapshot(&self, repo: &str, commit: &str) -> Option<PathBuf> {
        Some(self.snapshot_path(repo, commit)).filter(|path| is_commit(commit) && path.is_dir())
    }

    /// The cached content of `file`. One of another length counts as absent; content is not hashed.
    ///
    /// # Errors
    /// When what is there must not be read.
    pub fn find(&self, repo: &str, commit: &str, file: &RemoteFile) -> Result<Option<PathBuf>> {
        if !is_safe_name(&file.name) {
            return Ok(None);
        }
        let blob = self.folder(repo).join("blobs").join(file.digest.hex());
        for path in [self.snapshot_path(repo, commit).join(&file.name), blob] {
            let metadata = match File::open(&path).and_then(|file| file.metadata()) {
                Ok(metadata) => metadata,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(error) => return Err(Error::io(path, "read from the cache")(error)),
            };
            if metadata.is_file() && metadata.len() == file.len_bytes {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Moves the verified content of `file` at `from` into the cache, links it into the snapshot
    /// and notes which commit `revision` was. Gives the path inside the snapshot. Content is on the disk before
    /// a blob's name vouches for it.
    ///
    /// # Errors
    /// When the cache cannot be written; `from` then still is where it was, or in the cache.
    pub fn deposit(
        &self,
        repo: &str,
        commit: &str,
        revision: &str,
        file: &RemoteFile,
        from: &Path,
    ) -> Result<PathBuf> {
        if !is_safe_name(&file.name) {
            return Err(Error::hub(repo, format!("{:?} is no name for a file in the cache", file.name)));
        }
        let blobs = self.folder(repo).join("blobs");
        self.disk.make_directories(&blobs)?;
        self.move_file(from, &blobs.join(file.digest.hex()))?;
        let link = self.snapshot_path(repo, commit).join(&file.name);
        self.disk.make_directories(parent_of(&link))?;
        // Out of the file's own folders, the commit's and `snapshots`.
        let up = "../".repeat(file.name.split('/').count() + 1);
        self.replace_link(&format!("{up}blobs/{}", file.digest.hex()), &link)?;
        if is_revision(revision) && !is_commit(revision) {
            self.note_revision(repo, revision, commit)?;
        }
        Ok(link)
    }

    fn note_revision(&self, repo: &str, revision: &str, commit: &str) -> Result<()> {
        let path = self.folder(repo).join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        self.disk.make_directories(parent_of(&path))?;
        self.disk.replace(&path, commit.as_bytes())
    }

    fn move_file(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.open(from)?.sync()?;
        match self.disk.rename(from, to) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::CrossesDevices => {
                let partial = beside(to, INCOMPLETE);
                remove_abandoned(&self.disk, to)?;
                if let Err(error) = self.copy(from, &partial).and_then(|()| self.disk.rename(&partial, to)) {
                    // What was copied so far is of no use; the original is still there.
                    let _ = self.disk.remove(&partial);
                    return Err(error);
                }
                self.disk.sync_parent(to)?;
                self.disk.remove(from)
            }
            Err(error) => Err(error),
            Ok(()) => self.disk.sync_parent(to),
        }
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(Error::io(from, "open"))?;
        let mut target = Appender::new(self.disk.create_new(to)?, 0);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return target.file().sync(),
                Ok(len) => target.append(&buffer[..len])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(from, "read")(error)),
            }
        }
    }

    /// Makes `link` point to `target`, in one step for whoever looks.
    fn replace_link(&self, target: &str, link: &Path) -> Result<()> {
        let partial = beside(link, "tmp");
        self.disk.remove(&partial)?;
        self.disk.link(Path::new(target), &partial)?;
        self.disk.rename(&partial, link)
    }

    fn folder(&self, repo: &str) -> PathBuf {
        self.root.join(format!("models--{}", repo.replace('/', "--")))
    }

    fn snapshot_path(&self, repo: &str, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }
}

/// A name next to `path` that no other process uses.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{extension}", std::process::id()));
    path.with_file_name(name)
}

/// Removes copies that a process which is gone has begun of the blob at `to`.
fn remove_abandoned(disk: &Disk, to: &Path) -> Result<()> {
    let folder = parent_of(to);
    let blob = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let process = name.strip_prefix(&format!("{blob}.")).and_then(|rest| rest.strip_suffix(INCOMPLETE));
        let process = process.and_then(|process| process.strip_suffix('.'));
        let Some(process) = process.and_then(|process| process.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(process.to_string()).exists() {
            disk.remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ContentDigest;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn file(name: &str, len_bytes: u64) -> RemoteFile {
        RemoteFile {
            name: name.to_owned(),
            len_bytes,
            digest: ContentDigest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned()),
            xet_hash: None,
        }
    }

    #[test]
    fn deposits_in_the_layout_of_huggingface_hub_and_finds_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HubCache::new(dir.path().join("hub"));
        assert_eq!(cache.find("org/name", COMMIT, &file("a", 6)).unwrap(), None);
        assert_eq!(cache.commit_of("org/name", "main"), None);
        for (name, target) in [("a", "../../blobs/"), ("sub/dir/b", "../../../../blobs/")] {
            let from = dir.path().join("spooled");
            fs::write(&from, "hello\n").unwrap();
            let path = cache.deposit("org/name", COMMIT, "refs/pr/1", &file(name, 6), &from).unwrap();
            let target = format!("{target}ce013625030ba8dba906f756967f9e9ca394464a");
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(&target));
            assert_eq!(fs::read_to_string(&path).unwrap(), "hello\n");
            assert!(!from.exists());
            assert_eq!(cache.find("org/name", COMMIT, &file(name, 6)).unwrap(), Some(path));
            assert_eq!(cache.find("org/name", COMMIT, &file(name, 7)).unwrap(), None);
        }
        let folder = dir.path().join("hub/models--org--name");
        assert_eq!(fs::read_to_string(folder.join("refs/refs/pr/1")).unwrap(), COMMIT);
        assert_eq!(cache.commit_of("org/name", "refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit_of("org/name", COMMIT).as_deref(), Some(COMMIT));
        assert_eq!(cache.commit_of("org/name", "../../x"), None);
        // A file of this commit that only another commit has linked so far.
        let blob = cache.find("org/name", COMMIT, &file("elsewhere", 6)).unwrap().unwrap();
        assert!(blob.starts_with(folder.join("blobs")));
    }
}
