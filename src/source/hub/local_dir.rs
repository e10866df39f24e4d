//! The bookkeeping of `huggingface_hub` inside a directory that files were downloaded to.
//!
//! ```text
//! DIR/.cache/huggingface/.gitignore, CACHEDIR.TAG
//! DIR/.cache/huggingface/requant.lock                      ours: held while a run downloads
//! DIR/.cache/huggingface/download/NAME.metadata            commit, digest, time: a line each
//! DIR/.cache/huggingface/download/DIGEST.requant           ours: a file that is arriving
//! ```
//!
//! `huggingface_hub` goes on with partial files of its own name without hashing the result, so
//! that ours, which are of full length from the start, must not be called the same.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::{Disk, parent_of};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::source::ContentDigest;

/// Where the bookkeeping is; no file of a repository is put there.
const BOOKKEEPING: &str = ".cache/huggingface";
/// Ends the names of records.
const METADATA: &str = ".metadata";
/// Follows the digest in names of files that are arriving.
const PARTIAL: &str = ".requant";
/// As the Cache Directory Tagging Specification wants it: backups leave out what lies beside.
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n";

/// A file and what it was when it was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Name relative to the directory, `/` between folders.
    pub name: String,
    /// As the hub stated it: SHA-256 or git's blob id, or what another place calls the content.
    pub etag: String,
}

/// A directory that files are downloaded to, locked.
#[derive(Debug)]
pub struct LocalDir {
    root: PathBuf,
    disk: Disk,
    _lock: File,
}

impl LocalDir {
    /// Opens or makes the directory at `root`.
    ///
    /// # Errors
    /// When it cannot be made or written, or another run downloads to it.
    pub fn open(disk: &Disk, root: &Path) -> Result<Self> {
        let bookkeeping = root.join(BOOKKEEPING);
        let downloads = bookkeeping.join("download");
        disk.make_directories(&downloads)?;
        let lock_path = bookkeeping.join("requant.lock");
        let lock = lock(&lock_path, || {
            format!("{}: another requant is downloading to this directory right now", root.display())
        })?;
        for (name, content) in [(".gitignore", "*"), ("CACHEDIR.TAG", CACHE_TAG)] {
            let path = bookkeeping.join(name);
            if !path.exists() {
                disk.replace(&path, content.as_bytes())?;
            }
        }
        Ok(Self { root: root.to_owned(), disk: disk.clone(), _lock: lock })
    }

    /// Where a file of the repository goes; its folder is made.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn target(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        self.disk.make_directories(parent_of(&path))?;
        Ok(path)
    }

    /// Where content with this digest grows.
    pub fn partial(&self, digest: &ContentDigest) -> PathBuf {
        self.root.join(BOOKKEEPING).join("download").join(format!("{}{PARTIAL}", digest.hex()))
    }

    /// Records that the file called `name` has this content now.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn record(&self, name: &str, commit: &str, digest: &ContentDigest) -> Result<()> {
        let path = self.metadata_path(name);
        self.disk.make_directories(parent_of(&path))?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let text = format!("{commit}\n{}\n{seconds}\n", digest.hex());
        self.disk.replace(&path, text.as_bytes())?;
        self.disk.sync_parent(&path)
    }

    /// Removes what is recorded about the file called `name`, which is about to change.
    ///
    /// # Errors
    /// When the record cannot be removed.
    pub fn forget(&self, name: &str) -> Result<()> {
        let path = self.metadata_path(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        // Gone for good before the file changes: a record must not outlive what it speaks of.
        self.disk.remove(&path)?;
        self.disk.sync_parent(&path)
    }

    /// Removes what is left of files that another revision had.
    ///
    /// # Errors
    /// When the folder cannot be read or a file not be removed.
    pub fn remove_partials(&self) -> Result<()> {
        let downloads = self.root.join(BOOKKEEPING).join("download");
        for entry in fs::read_dir(&downloads).map_err(Error::io(&downloads, "list"))? {
            let path = entry.map_err(Error::io(&downloads, "list"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_ours =
                name.split_once(PARTIAL).is_some_and(|(digest, _)| ContentDigest::from_hex(digest).is_some());
            if is_ours && !name.ends_with(METADATA) {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    fn metadata_path(&self, name: &str) -> PathBuf {
        metadata_path(&self.root, name)
    }
}

/// Where the file called `name` in the directory `root` is recorded.
pub(crate) fn metadata_path(root: &Path, name: &str) -> PathBuf {
    root.join(BOOKKEEPING).join("download").join(format!("{name}{METADATA}"))
}

/// Whether a file of this name would lie among the bookkeeping.
pub fn is_bookkeeping(name: &str) -> bool {
    name.strip_prefix(BOOKKEEPING).is_some_and(|rest| rest.starts_with('/'))
}

/// What is recorded about the files in `root`, sorted by name; nothing in most directories.
///
/// # Errors
/// When the records cannot be read.
pub fn recorded(root: &Path) -> Result<Vec<Recorded>> {
    let downloads = root.join(BOOKKEEPING).join("download");
    let mut records = Vec::new();
    if !downloads.is_dir() {
        return Ok(records);
    }
    for name in files_below(&downloads)? {
        let Some(of) = name.strip_suffix(METADATA) else { continue };
        let path = downloads.join(&name);
        let text = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let text = String::from_utf8_lossy(&text);
        let etag = text.lines().nth(1).unwrap_or_default().trim().to_owned();
        records.push(Recorded { name: of.to_owned(), etag });
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// What the links of a cache's snapshot say about the files in `root`: they point to blobs that are
/// named as their content. Sorted by name; nothing in other directories.
///
/// # Errors
/// When the directory cannot be read.
pub fn linked(root: &Path) -> Result<Vec<Recorded>> {
    let mut records = Vec::new();
    for name in files_below(root)? {
        let Ok(target) = fs::read_link(root.join(&name)) else { continue };
        if let Some(etag) = blob_name(&target) {
            records.push(Recorded { name, etag: etag.to_owned() });
        }
    }
    Ok(records)
}

/// The name of the blob that a link to `target` leads to, if it is one of a cache.
pub(super) fn blob_name(target: &Path) -> Option<&str> {
    let in_blobs = target.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
    target.file_name().and_then(|name| name.to_str()).filter(|_| in_blobs)
}

/// Names of the files in `root` and its folders, sorted; bookkeeping and `.git` left out. A link counts
/// as a file, also one that leads nowhere, and is not followed to a folder.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in fs::read_dir(&path).map_err(Error::io(&path, "list"))? {
            let entry = entry.map_err(Error::io(&path, "list"))?;
            let kind = entry.file_type().map_err(Error::io(entry.path(), "stat"))?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                if name != BOOKKEEPING && name != ".git" {
                    folders.push(format!("{name}/"));
                }
            } else if kind.is_file() || (kind.is_symlink() && !entry.path().is_dir()) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_and_bookkeeping_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("model");
        let local = LocalDir::open(&Disk::default(), &root).unwrap();
        let digest = ContentDigest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned());
        for name in ["sub/b", "a"] {
            fs::write(local.target(name).unwrap(), "hello\n").unwrap();
            local.record(name, "0123", &digest).unwrap();
        }
        let names: Vec<String> = recorded(&root).unwrap().into_iter().map(|record| record.name).collect();
        assert_eq!(names, ["a", "sub/b"]);
        assert_eq!(files_below(&root).unwrap(), ["a", "sub/b"]);
        assert_eq!(recorded(&root).unwrap()[0].etag, digest.hex());
        assert!(is_bookkeeping(".cache/huggingface/x") && !is_bookkeeping(".cache/huggingfaces"));
        local.forget("a").unwrap();
        local.forget("a").unwrap();
        assert_eq!(recorded(&root).unwrap().len(), 1);
        let second = LocalDir::open(&Disk::default(), &root).unwrap_err().to_string();
        assert!(second.contains("another requant"), "{second}");
    }

    #[test]
    fn links_to_blobs_say_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../../blobs/0123", directory.path().join("a")).unwrap();
        std::os::unix::fs::symlink("elsewhere", directory.path().join("b")).unwrap();
        let expected = Recorded { name: "a".to_owned(), etag: "0123".to_owned() };
        assert_eq!(linked(directory.path()).unwrap(), [expected]);
    }
}
