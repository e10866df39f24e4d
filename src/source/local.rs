//! A checkpoint in a local directory, or some files of one.

use std::fs::File;
use std::fs::Metadata;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Source, SourceFile};
use crate::error::{Error, Result};

/// The files directly inside one directory.
#[derive(Debug)]
pub struct LocalDirectory {
    root: PathBuf,
    name: Option<String>,
    /// The file after which the place is called, if it is not the directory.
    first_file: Option<String>,
    files: Vec<SourceFile>,
    /// What the files were when they were listed.
    states: Vec<FileState>,
    handles: Vec<OnceLock<File>>,
    /// Headers and small files that were read: file, length from its start, fingerprint.
    was_read: Mutex<Vec<(usize, u64, u128)>>,
}

/// What tells, without reading it, that a file is another one or was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// Device and inode.
    place: (u64, u64),
    /// Length.
    pub len_bytes: u64,
    /// Time of the last change of content, in seconds and nanoseconds.
    modified: (i64, i64),
    /// Time of the last change of anything, which no program can set.
    changed: (i64, i64),
}

impl From<&Metadata> for FileState {
    fn from(metadata: &Metadata) -> Self {
        Self {
            place: (metadata.dev(), metadata.ino()),
            len_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl LocalDirectory {
    /// Lists `root`; nothing is read yet. Symbolic links are followed, as the Hugging Face
    /// cache needs.
    ///
    /// # Errors
    /// When `root` is not a readable directory.
    pub fn open(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(root).map_err(Error::io(root, "list"))? {
            let path = entry.map_err(Error::io(root, "list"))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                // A dangling link counts as a file that is not there: whoever needs it says so.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(path, "stat")(error)),
            };
            if metadata.is_file() {
                let file = SourceFile {
                    name: name.to_owned(),
                    len_bytes: metadata.len(),
                    sha256: None,
                    modified: metadata.modified().ok(),
                };
                files.push((file, FileState::from(&metadata)));
            }
        }
        files.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(Self::of(root, files, None))
    }

    fn of(root: &Path, files: Vec<(SourceFile, FileState)>, first_file: Option<String>) -> Self {
        let handles = files.iter().map(|_| OnceLock::new()).collect();
        let (files, states) = files.into_iter().unzip();
        let was_read = Mutex::default();
        Self { root: root.to_owned(), name: None, first_file, files, states, handles, was_read }
    }

    /// Those of the files called `names` that are in `root`. Their place is the first one's path.
    ///
    /// # Errors
    /// When `root` is not a readable directory.
    pub fn open_files(root: &Path, names: &[String]) -> Result<Self> {
        let Self { files, states, .. } = Self::open(root)?;
        let mut files: Vec<_> = files.into_iter().zip(states).collect();
        files.retain(|(file, _)| names.contains(&file.name));
        Ok(Self::of(root, files, names.first().cloned()))
    }

    /// Calls the model `name`, for a directory that is called otherwise: a snapshot of a cache.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file is.
    pub fn path(&self, file: usize) -> PathBuf {
        self.root.join(&self.files[file].name)
    }

    /// What a file was when it was listed.
    pub fn listed(&self, file: usize) -> FileState {
        self.states[file]
    }

    /// Headers and small files that were read so far: file, length from its start, fingerprint.
    pub fn prefixes(&self) -> Vec<(usize, u64, u128)> {
        self.was_read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The open file that [`Source::read_at`] reads.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn handle(&self, file: usize) -> Result<&File> {
        if let Some(handle) = self.handles[file].get() {
            return Ok(handle);
        }
        let path = self.root.join(&self.files[file].name);
        let opened = File::open(&path).map_err(Error::io(path, "open"))?;
        Ok(self.handles[file].get_or_init(|| opened))
    }
}

impl Source for LocalDirectory {
    fn location(&self) -> String {
        match &self.first_file {
            Some(name) => self.root.join(name).display().to_string(),
            None => self.root.display().to_string(),
        }
    }

    fn model_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| super::last_component(&self.location()))
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn was_read(&self, file: usize, len_bytes: u64, fingerprint: u128) {
        let mut was_read = self.was_read.lock().unwrap_or_else(PoisonError::into_inner);
        let read = (file, len_bytes, fingerprint);
        if !was_read.contains(&read) {
            was_read.push(read);
        }
    }

    fn changeable(&self) -> Option<&LocalDirectory> {
        Some(self)
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let handle = self.handle(file)?;
        handle
            .read_exact_at(buf, offset_bytes)
            .map_err(Error::io(self.root.join(&self.files[file].name), "read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_files_sorted_and_reads_ranges() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b"), b"0123456789").unwrap();
        std::fs::write(dir.path().join("a"), b"").unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let source = LocalDirectory::open(dir.path()).unwrap();
        assert_eq!(source.files().iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let mut buf = [0; 3];
        source.read_at(1, 4, &mut buf).unwrap();
        assert_eq!(&buf, b"456");
        assert_eq!(source.read_small("b").unwrap().unwrap(), b"0123456789");
        assert_eq!(source.read_small("c").unwrap(), None);
    }

    #[test]
    fn reading_past_the_end_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("short"), b"01").unwrap();
        let source = LocalDirectory::open(dir.path()).unwrap();
        let error = source.read_at(0, 1, &mut [0; 8]).unwrap_err().to_string();
        assert!(error.contains("short"), "{error}");
    }
}
