//! Temporary names, locks, and the step that makes a result final.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::errors::Sums;
use super::journal::{Journal, RequestRecord};
use super::manifest::{Manifest, manifest_path};
use super::output::{check_replace, final_paths, with_suffix};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::plan::Blueprint;

/// A file being written.
pub(super) struct StagedFile {
    /// Handle for positioned reads and writes.
    pub(super) file: File,
    /// Temporary path.
    pub(super) path: PathBuf,
}

/// Output files under temporary names, and the journal of what is in them. Dropping it removes both
/// unless [`Stage::keep`] was called; [`Stage::commit`] makes the files final.
pub(super) struct Stage {
    files: Vec<StagedFile>,
    /// (temporary, final) names, in the order in which they are renamed.
    renames: Vec<(PathBuf, PathBuf)>,
    manifest: PathBuf,
    journal_path: PathBuf,
    force: bool,
    keep: bool,
    /// Held, locked, until the end: a second run on the same output fails at once.
    lock: Option<(File, PathBuf)>,
}

/// What an earlier run has left, or nothing.
pub(super) struct Begun {
    /// Where finished jobs are recorded.
    pub(super) journal: Journal,
    /// For each job whether it is done.
    pub(super) done: Vec<bool>,
    /// For each job that is done its part of the error report.
    pub(super) sums: Vec<Sums>,
}

impl Stage {
    /// Locks `output` and goes on with the files of an unfinished run of the same request, or
    /// creates every file of `blueprint` at its full size with its header.
    pub(super) fn open(
        blueprint: &Blueprint,
        output: &Path,
        request: &RequestRecord,
        force: bool,
        restart: bool,
    ) -> Result<(Self, Begun)> {
        let finals = final_paths(blueprint, output);
        if let Some(parent) =
            output.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir())
        {
            let message = format!("{}: the directory {} does not exist", output.display(), parent.display());
            return Err(Error::Request(message));
        }
        let lock_path = with_suffix(output, ".lock");
        let lock =
            lock(&lock_path, || format!("{}: another requant is writing it right now", output.display()))?;
        let renames: Vec<(PathBuf, PathBuf)> =
            finals.iter().map(|path| (with_suffix(path, ".partial"), path.clone())).collect();
        let mut stage = Self {
            files: Vec::new(),
            renames,
            manifest: manifest_path(output),
            journal_path: journal_path(output),
            force,
            // Until the state of an earlier run is known to be ours, it is not ours to remove.
            keep: true,
            lock: Some((lock, lock_path)),
        };
        let earlier = if restart { None } else { Journal::resume(&stage.journal_path, output, request)? };
        if let Some((_, progress)) = &earlier
            && progress.sealed
        {
            stage.take_names_back()?;
        }
        check_replace(output, &finals, blueprint.is_directory, force)?;
        if let Some((journal, progress)) = earlier
            && stage.reopen(blueprint)?
        {
            return Ok((stage, Begun { journal, done: progress.done, sums: progress.sums }));
        }
        stage.keep = false;
        stage.create(blueprint)?;
        let journal = Journal::create(&stage.journal_path, request)?;
        let (done, sums) = (vec![false; request.jobs], vec![Sums::default(); request.jobs]);
        Ok((stage, Begun { journal, done, sums }))
    }

    /// A run that was cut off while it gave final names: those files are ours.
    fn take_names_back(&self) -> Result<()> {
        for (temporary, final_path) in &self.renames {
            if temporary.symlink_metadata().is_err() && final_path.symlink_metadata().is_ok() {
                std::fs::rename(final_path, temporary).map_err(Error::io(temporary, "rename to"))?;
            }
        }
        Ok(())
    }

    /// Opens the files of an earlier run; `false` when they are not all there.
    fn reopen(&mut self, blueprint: &Blueprint) -> Result<bool> {
        for (path, expected) in self.paths(blueprint).into_iter().zip(&blueprint.files) {
            if !path.metadata().is_ok_and(|metadata| metadata.len() == expected.len_bytes) {
                self.files.clear();
                return Ok(false);
            }
            let file =
                OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io(&path, "open"))?;
            self.files.push(StagedFile { file, path });
        }
        if blueprint.is_directory {
            self.write_sidecars(blueprint)?;
        }
        Ok(true)
    }

    fn create(&mut self, blueprint: &Blueprint) -> Result<()> {
        // What an earlier run left behind.
        remove_any(&self.journal_path)?;
        for (temporary, _) in &self.renames {
            remove_any(temporary)?;
        }
        if blueprint.is_directory {
            let directory = &self.renames[0].0;
            std::fs::create_dir(directory).map_err(Error::io(directory, "create"))?;
        }
        for (path, file) in self.paths(blueprint).into_iter().zip(&blueprint.files) {
            self.add(path, &file.header, file.len_bytes)?;
        }
        if blueprint.is_directory {
            self.write_sidecars(blueprint)?;
        }
        Ok(())
    }

    /// Temporary path of each file with tensors.
    fn paths(&self, blueprint: &Blueprint) -> Vec<PathBuf> {
        if blueprint.is_directory {
            let directory = &self.renames[0].0;
            blueprint.files.iter().map(|file| directory.join(&file.name)).collect()
        } else {
            self.renames.iter().map(|(temporary, _)| temporary.clone()).collect()
        }
    }

    fn write_sidecars(&self, blueprint: &Blueprint) -> Result<()> {
        for sidecar in &blueprint.sidecars {
            let path = self.renames[0].0.join(&sidecar.name);
            let mut file = File::create(&path).map_err(Error::io(&path, "create"))?;
            file.write_all(&sidecar.bytes).map_err(Error::io(&path, "write"))?;
            file.sync_all().map_err(Error::io(&path, "sync"))?;
        }
        Ok(())
    }

    /// Leaves everything for a later run to go on with.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// The files, in the order of the blueprint.
    pub(super) fn files(&self) -> &[StagedFile] {
        &self.files
    }

    /// Syncs everything and gives it its final name, manifest first.
    pub(super) fn commit(
        &mut self,
        manifest: &Manifest,
        journal: &mut Journal,
        stop: &AtomicBool,
    ) -> Result<PathBuf> {
        for staged in &self.files {
            staged.file.sync_all().map_err(Error::io(&staged.path, "sync"))?;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        manifest.write(&self.manifest)?;
        journal.seal()?;
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
        remove_any(&self.journal_path)?;
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
        if !self.keep {
            for (temporary, _) in &self.renames {
                let _ = remove_any(temporary);
            }
            let _ = remove_any(&self.journal_path);
        }
        if let Some((file, path)) = self.lock.take() {
            let _ = std::fs::remove_file(path);
            drop(file);
        }
    }
}

/// Temporary path of each thing that is renamed.
pub(super) fn temporary_paths(blueprint: &Blueprint, output: &Path) -> Vec<PathBuf> {
    final_paths(blueprint, output).iter().map(|path| with_suffix(path, ".partial")).collect()
}

/// Where the journal of an unfinished `output` is.
pub(super) fn journal_path(output: &Path) -> PathBuf {
    with_suffix(output, ".journal")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::journal::Done;
    use crate::plan::OutputFile;

    fn blueprint() -> Blueprint {
        let file = |name: &str| OutputFile { name: name.into(), header: b"GGUF".to_vec(), len_bytes: 64 };
        let files = vec![file("m-00001-of-00002.gguf"), file("m-00002-of-00002.gguf")];
        Blueprint {
            is_directory: false,
            tensors: vec![],
            files,
            sidecars: vec![],
            dropped: vec![],
            kept: vec![],
        }
    }

    fn request(format: &str) -> RequestRecord {
        RequestRecord {
            requant_version: "1".into(),
            model: "org/name".into(),
            format: format.into(),
            pinned: None,
            source_sha256: "a".into(),
            blueprint_sha256: "b".into(),
            jobs: 3,
            error_report: false,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_run_cut_off_between_two_renames_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("m.gguf");
        let open = |format: &str| Stage::open(&blueprint(), &output, &request(format), false, false);
        let (mut stage, mut begun) = open("q4_0").unwrap();
        let done = [0, 1, 2].map(|job| Done { job, sums: Sums::default() });
        begun.journal.append(&done).unwrap();
        begun.journal.seal().unwrap();
        let (temporary, final_path) = stage.renames[0].clone();
        std::fs::rename(temporary, final_path).unwrap();
        stage.keep();
        drop(stage);
        assert!(names(directory.path()).contains(&"m-00001-of-00002.gguf".to_owned()));

        assert!(open("q8_0").is_err(), "another request");
        let (stage, begun) = open("q4_0").unwrap();
        assert_eq!(begun.done, [true; 3]);
        assert_eq!(stage.files().len(), 2);
        let expected = [
            "m-00001-of-00002.gguf.partial",
            "m-00002-of-00002.gguf.partial",
            "m.gguf.journal",
            "m.gguf.lock",
        ];
        assert_eq!(names(directory.path()), expected);
    }

    #[test]
    fn without_a_seal_a_final_name_is_somebody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("m.gguf");
        let open = || Stage::open(&blueprint(), &output, &request("q4_0"), false, false);
        let (mut stage, _) = open().unwrap();
        stage.keep();
        drop(stage);
        std::fs::write(directory.path().join("m-00001-of-00002.gguf"), b"precious").unwrap();
        assert!(open().err().unwrap().to_string().contains("--force"));
        // Nothing of the unfinished run is lost by that.
        assert_eq!(names(directory.path()).len(), 4);
    }
}
