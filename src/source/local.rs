//! A checkpoint in a local directory, or some files of one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Source, SourceFile};
use crate::error::{Error, Result};
use crate::small;

/// The files directly inside one directory.
#[derive(Debug)]
pub struct LocalDirectory {
    root: PathBuf,
    name: Option<String>,
    /// The file after which the place is called, if it is not the directory.
    first_file: Option<String>,
    files: Vec<SourceFile>,
    /// Directories, pipes and devices, and what each is.
    others: Vec<(String, &'static str)>,
    handles: Vec<OnceLock<File>>,
}

impl LocalDirectory {
    /// Lists `root`; nothing is read yet. Symbolic links are followed, as the Hugging Face
    /// cache needs.
    ///
    /// # Errors
    /// When `root` is not a readable directory.
    pub fn open(root: &Path) -> Result<Self> {
        let (mut files, mut others) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(root).map_err(Error::io(root, "list"))? {
            let path = entry.map_err(Error::io(root, "list"))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                // A dangling link counts as a file that is not there: whoever needs it says so.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(path, "stat")(error)),
            };
            if let Some(kind) = small::not_ordinary(&metadata) {
                others.push((name.to_owned(), kind));
            } else {
                files.push(SourceFile {
                    name: name.to_owned(),
                    len_bytes: metadata.len(),
                    sha256: None,
                    modified: metadata.modified().ok(),
                });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let handles = files.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { root: root.to_owned(), name: None, first_file: None, files, others, handles })
    }

    /// Those of the files called `names` that are in `root`. Their place is the first one's path.
    ///
    /// # Errors
    /// When `root` is not a readable directory.
    pub fn open_files(root: &Path, names: &[String]) -> Result<Self> {
        let mut source = Self::open(root)?;
        source.files.retain(|file| names.contains(&file.name));
        source.handles.truncate(source.files.len());
        source.first_file = names.first().cloned();
        Ok(source)
    }

    /// Calls the model `name`, for a directory that is called otherwise: a snapshot of a cache.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    fn handle(&self, file: usize) -> Result<&File> {
        if let Some(handle) = self.handles[file].get() {
            return Ok(handle);
        }
        let path = self.root.join(&self.files[file].name);
        let opened = small::open(&path)?;
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

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(id) = self.find(name) else {
            // Not as if nothing were there.
            return match self.others.iter().find(|(other, _)| other == name) {
                Some((_, kind)) => {
                    let path = self.root.join(name);
                    Err(Error::checkpoint(
                        path.display().to_string(),
                        format!("is {kind}, expected an ordinary file"),
                    ))
                }
                None => Ok(None),
            };
        };
        let cap = small::cap_of(name);
        cap.check(name, self.files[id].len_bytes)?;
        // It may have grown since it was listed.
        cap.read_from(&self.root.join(name), small::open(&self.root.join(name))?).map(Some)
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
