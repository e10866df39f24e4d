//! The cache on disk that `huggingface_hub` and its relatives share.
//!
//! ```text
//! models--org--name/blobs/DIGEST
//! models--org--name/snapshots/COMMIT/NAME -> ../../blobs/DIGEST
//! models--org--name/refs/REVISION            (holds the commit)
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::id::{is_commit, is_revision};
use super::repository::is_safe_name;
use crate::error::{Error, Result};
use crate::small;
use crate::source::RemoteFile;

/// A cache directory: the value of `HF_HUB_CACHE`.
#[derive(Debug, Clone)]
pub struct HubCache {
    root: PathBuf,
}

impl HubCache {
    /// The cache at `cache_dir`, which need not exist.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { root: cache_dir.into() }
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
        let commit = small::read_text(&self.folder(repo).join("refs").join(revision), small::LINE).ok()?;
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
    /// and notes which commit `revision` was. Gives the path inside the snapshot.
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
        create_folder(&blobs)?;
        move_file(from, &blobs.join(file.digest.hex()))?;
        let link = self.snapshot_path(repo, commit).join(&file.name);
        if let Some(folder) = link.parent() {
            create_folder(folder)?;
        }
        // Out of the file's own folders, the commit's and `snapshots`.
        let up = "../".repeat(file.name.split('/').count() + 1);
        replace_link(&format!("{up}blobs/{}", file.digest.hex()), &link)?;
        if is_revision(revision) && !is_commit(revision) {
            self.note_revision(repo, revision, commit)?;
        }
        Ok(link)
    }

    fn note_revision(&self, repo: &str, revision: &str, commit: &str) -> Result<()> {
        let path = self.folder(repo).join("refs").join(revision);
        if small::read_text(&path, small::LINE).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            create_folder(folder)?;
        }
        let partial = beside(&path, "tmp");
        fs::write(&partial, commit).map_err(Error::io(&partial, "write"))?;
        fs::rename(&partial, &path).map_err(Error::io(path, "rename into place"))
    }

    fn folder(&self, repo: &str) -> PathBuf {
        self.root.join(format!("models--{}", repo.replace('/', "--")))
    }

    fn snapshot_path(&self, repo: &str, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path, "create"))
}

/// A name next to `path` that no other process uses.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{extension}", std::process::id()));
    path.with_file_name(name)
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let partial = beside(to, "incomplete");
            let copied = fs::copy(from, &partial)
                .and_then(|_| File::open(&partial)?.sync_all())
                .and_then(|()| fs::rename(&partial, to));
            if let Err(error) = copied {
                // What was copied so far is of no use; the original is still there.
                let _ = fs::remove_file(&partial);
                return Err(Error::io(partial, "copy into the cache")(error));
            }
            fs::remove_file(from).map_err(Error::io(from, "remove"))
        }
        Err(error) => Err(Error::io(to, "move into the cache")(error)),
    }
}

/// Makes `link` point to `target`, in one step for whoever looks.
fn replace_link(target: &str, link: &Path) -> Result<()> {
    let partial = beside(link, "tmp");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(partial, "remove")(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &partial).map_err(Error::io(&partial, "link"))?;
    fs::rename(&partial, link).map_err(Error::io(link, "link"))
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
