//! Temporary names, locks, and the step that makes a result final.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::manifest::{Manifest, manifest_path};
use crate::error::{Error, Result};
use crate::plan::Blueprint;

/// A file being written.
pub(super) struct StagedFile {
    /// Handle for positioned reads and writes.
    pub(super) file: File,
    /// Temporary path.
    pub(super) path: PathBuf,
}

/// Output files under temporary names. Dropping it removes them; [`Stage::commit`] makes them final.
pub(super) struct Stage {
    files: Vec<StagedFile>,
    /// (temporary, final) names, in the order in which they are renamed.
    renames: Vec<(PathBuf, PathBuf)>,
    manifest: PathBuf,
    force: bool,
    /// Held, locked, until the end: a second run on the same output fails at once.
    lock: Option<(File, PathBuf)>,
}

impl Stage {
    /// Creates every file of `blueprint` at its full size with its header.
    pub(super) fn create(blueprint: &Blueprint, output: &Path, force: bool) -> Result<Self> {
        let finals = final_paths(blueprint, output);
        refuse_existing(&finals, force)?;
        if let Some(parent) =
            output.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir())
        {
            let message = format!("{}: the directory {} does not exist", output.display(), parent.display());
            return Err(Error::Request(message));
        }
        let lock_path = with_suffix(output, ".lock");
        let lock = lock(&lock_path, output)?;
        let renames: Vec<(PathBuf, PathBuf)> =
            finals.into_iter().map(|path| (with_suffix(&path, ".partial"), path)).collect();
        let mut stage = Self {
            files: Vec::new(),
            renames,
            manifest: manifest_path(output),
            force,
            lock: Some((lock, lock_path)),
        };
        // What an earlier run that was killed left behind.
        for (temporary, _) in &stage.renames {
            remove_any(temporary)?;
        }
        if blueprint.is_directory {
            let directory = stage.renames[0].0.clone();
            std::fs::create_dir(&directory).map_err(Error::io(&directory, "create"))?;
            for file in &blueprint.files {
                stage.add(directory.join(&file.name), &file.header, file.len_bytes)?;
            }
            for sidecar in &blueprint.sidecars {
                let path = directory.join(&sidecar.name);
                let mut file = File::create(&path).map_err(Error::io(&path, "create"))?;
                file.write_all(&sidecar.bytes).map_err(Error::io(&path, "write"))?;
                file.sync_all().map_err(Error::io(&path, "sync"))?;
            }
        } else {
            let temporaries: Vec<PathBuf> = stage.renames.iter().map(|(path, _)| path.clone()).collect();
            for (path, file) in temporaries.into_iter().zip(&blueprint.files) {
                stage.add(path, &file.header, file.len_bytes)?;
            }
        }
        Ok(stage)
    }

    /// The files, in the order of the blueprint.
    pub(super) fn files(&self) -> &[StagedFile] {
        &self.files
    }

    /// Syncs everything and gives it its final name, manifest first.
    pub(super) fn commit(mut self, manifest: &Manifest, stop: &AtomicBool) -> Result<PathBuf> {
        for staged in &self.files {
            staged.file.sync_all().map_err(Error::io(&staged.path, "sync"))?;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        manifest.write(&self.manifest)?;
        for (temporary, final_path) in &self.renames {
            if temporary.is_dir() {
                sync_directory(temporary)?;
            }
            // A rename replaces a file by a file; anything else has to make room first.
            let both_files = temporary.is_file() && final_path.is_file();
            if self.force && !both_files && final_path.symlink_metadata().is_ok() {
                let old = with_suffix(final_path, ".replaced");
                remove_any(&old)?;
                std::fs::rename(final_path, &old).map_err(Error::io(final_path, "move away"))?;
                std::fs::rename(temporary, final_path).map_err(Error::io(final_path, "rename to"))?;
                remove_any(&old)?;
            } else {
                std::fs::rename(temporary, final_path).map_err(Error::io(final_path, "rename to"))?;
            }
        }
        let parent = match self.manifest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        sync_directory(&parent)?;
        self.renames.clear();
        Ok(self.manifest.clone())
    }

    fn add(&mut self, path: PathBuf, header: &[u8], len_bytes: u64) -> Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io(&path, "create"))?;
        file.set_len(len_bytes).map_err(Error::io(&path, "resize"))?;
        file.write_all_at(header, 0).map_err(Error::io(&path, "write"))?;
        self.files.push(StagedFile { file, path });
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Best effort: a name that cannot be removed now is removed by the next run.
        for (temporary, _) in &self.renames {
            let _ = remove_any(temporary);
        }
        if let Some((file, path)) = self.lock.take() {
            let _ = std::fs::remove_file(path);
            drop(file);
        }
    }
}

/// Final path of each thing that is renamed: the directory, or each file.
fn final_paths(blueprint: &Blueprint, output: &Path) -> Vec<PathBuf> {
    if blueprint.is_directory {
        return vec![output.to_owned()];
    }
    let name_of = |file: &crate::plan::OutputFile| {
        if file.name.is_empty() { output.to_owned() } else { output.with_file_name(&file.name) }
    };
    blueprint.files.iter().map(name_of).collect()
}

fn refuse_existing(finals: &[PathBuf], force: bool) -> Result<()> {
    let existing = finals.iter().find(|path| path.symlink_metadata().is_ok());
    match existing {
        Some(path) if !force => {
            Err(Error::Request(format!("{} exists; --force replaces it", path.display())))
        }
        _ => Ok(()),
    }
}

fn lock(path: &Path, output: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io(path, "create"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!("{}: another requant is writing it right now", output.display());
            Err(Error::Request(message))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(path, "lock")(error)),
    }
}

/// `path` with `suffix` after its last component (`model/` counts as `model`).
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn remove_any(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    removed.map_err(Error::io(path, "remove"))
}

fn sync_directory(path: &Path) -> Result<()> {
    let directory = File::open(path).map_err(Error::io(path, "open"))?;
    directory.sync_all().map_err(Error::io(path, "sync"))
}
