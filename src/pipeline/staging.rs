//! Files under temporary names, and the journal of what is in them, from the first byte to the seal.
//!
//! What the journal says is on the disk: files and their headers are synced before there is a journal, and the
//! bytes of a job before its record. What an earlier run has left is held against the journal again when it is
//! gone on with (`digest`), and everything that follows from the plan alone is written anew.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::journal::{Done, Journal, Progress as Recorded};
use super::manifest::Manifest;
use super::names::{self, Names};
use super::output::check_replace;
use super::request::RequestRecord;
use super::{CARD, Card, execute, placing};
use crate::disk::{Disk, DiskFile, parent_of, with_suffix};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::plan::Blueprint;

/// Zeros compared or written at a time.
const ZEROS: [u8; 1 << 12] = [0; 1 << 12];

/// Output files under temporary names, and the journal. Dropping it removes both unless [`Stage::keep`] was
/// called; `placing` gives the files their names.
pub(super) struct Stage {
    pub(super) disk: Disk,
    pub(super) names: Names,
    files: Vec<DiskFile>,
    pub(super) force: bool,
    /// Fingerprint of the manifest under which everything was sealed.
    pub(super) sealed: Option<u128>,
    keep: bool,
    /// Held, locked, until the end: a second run on the same output fails at once.
    lock: Option<File>,
}

/// What an earlier run has left, or nothing.
pub(super) struct Begun {
    /// Where finished jobs are recorded.
    pub(super) journal: Journal,
    /// For each job what is recorded about it, if it is done.
    pub(super) done: Vec<Option<Done>>,
}

/// What there is to do.
pub(super) enum Opened {
    /// Jobs, or what follows when all are done.
    Work(Stage, Begun),
    /// Nothing but names: an earlier run was cut off while it gave them.
    Complete(Stage, Box<Manifest>),
}

/// What an earlier run has left.
enum Began {
    /// A journal to go on with, if any.
    Work(Stage, Option<(Journal, Recorded)>),
    /// All that is needed.
    Complete(Stage, Box<Manifest>),
}

/// What [`Stage::open`] is asked for.
pub(super) struct Request<'a> {
    pub(super) disk: &'a Disk,
    pub(super) blueprint: &'a Blueprint,
    pub(super) output: &'a Path,
    pub(super) record: &'a RequestRecord,
    pub(super) force: bool,
    pub(super) restart: bool,
}

impl Stage {
    /// Locks the output and goes on with the files of an unfinished run of the same request, or
    /// creates every file of the blueprint at its full size with its header.
    pub(super) fn open(request: &Request<'_>, progress: &dyn super::Progress) -> Result<Opened> {
        let Request { disk, blueprint, output, record, .. } = *request;
        let (mut stage, earlier) = match Self::begin(request, progress)? {
            Began::Complete(stage, manifest) => return Ok(Opened::Complete(stage, manifest)),
            Began::Work(stage, earlier) => (stage, earlier),
        };
        if names::shares(output).join("plan").exists() {
            return Err(Error::Request(format!(
                "{}: shares of it are there. Do the others with --job I/N and join them, or remove {} to throw their work away",
                output.display(),
                names::shares(output).display()
            )));
        }
        if let Some((journal, progress_made)) = earlier
            && stage.reopen(blueprint)?
        {
            return Ok(Opened::Work(stage, Begun { journal, done: progress_made.done }));
        }
        stage.keep = false;
        stage.create(blueprint)?;
        let journal = Journal::create(disk, &stage.names.journal(), record)?;
        disk.sync_parent(output)?;
        Ok(Opened::Work(stage, Begun { journal, done: vec![None; record.jobs] }))
    }

    /// As [`Stage::open`], with the files that several machines have written together: they are taken as they are, and
    /// what follows from the plan alone is written into them. They are always kept.
    pub(super) fn adopt(request: &Request<'_>, progress: &dyn super::Progress) -> Result<Opened> {
        let Request { disk, blueprint, output, record, .. } = *request;
        let (mut stage, earlier) = match Self::begin(request, progress)? {
            Began::Complete(stage, manifest) => return Ok(Opened::Complete(stage, manifest)),
            Began::Work(stage, earlier) => (stage, earlier),
        };
        stage.files = open_shared(disk, &stage.names, blueprint)?;
        if blueprint.is_directory {
            stage.remove_strangers(blueprint)?;
        }
        stage.write_what_the_plan_knows(blueprint)?;
        let journal = match earlier {
            Some((journal, _)) => journal,
            None => Journal::create(disk, &stage.names.journal(), record)?,
        };
        disk.sync_parent(output)?;
        Ok(Opened::Work(stage, Begun { journal, done: vec![None; record.jobs] }))
    }

    /// Locks the output and finds out what an earlier run has left.
    fn begin(request: &Request<'_>, progress: &dyn super::Progress) -> Result<Began> {
        let Request { disk, blueprint, output, record, force, restart } = *request;
        let parent = parent_of(output);
        if !parent.is_dir() {
            let message = format!("{}: the directory {} does not exist", output.display(), parent.display());
            return Err(Error::Request(message));
        }
        let names = Names::new(blueprint, output);
        let lock =
            lock(&names.lock(), || format!("{}: another requant is writing it right now", output.display()))?;
        // Until the state of an earlier run is known to be ours, it is not ours to remove.
        let keep = true;
        let mut stage = Self {
            disk: disk.clone(),
            names,
            files: Vec::new(),
            force,
            sealed: None,
            keep,
            lock: Some(lock),
        };
        let journal = stage.names.journal();
        let earlier = if restart { None } else { Journal::resume(disk, &journal, output, record)? };
        let earlier = match earlier {
            Some((_, progress_made)) if progress_made.sealed.is_some() => {
                stage.sealed = progress_made.sealed;
                if let Some(manifest) = placing::whole(&stage.names, progress_made.sealed, progress)? {
                    return Ok(Began::Complete(stage, Box::new(manifest)));
                }
                // Sealed and damaged since.
                stage.sealed = None;
                None
            }
            earlier => earlier,
        };
        placing::restore_replaced(disk, &stage.names)?;
        let finals: Vec<PathBuf> = stage.names.pairs.iter().map(|pair| pair.final_path.clone()).collect();
        check_replace(output, &finals, blueprint.is_directory, force)?;
        Ok(Began::Work(stage, earlier))
    }

    /// Removes from an unfinished directory what the result has not: what another run has left there.
    fn remove_strangers(&self, blueprint: &Blueprint) -> Result<()> {
        let directory = &self.names.pairs[0].temporary;
        let files = blueprint.files.iter().map(|file| &file.name);
        let ours: Vec<&String> =
            files.chain(blueprint.sidecars.iter().map(|sidecar| &sidecar.name)).collect();
        for entry in std::fs::read_dir(directory).map_err(Error::io(directory, "list"))? {
            let name = entry.map_err(Error::io(directory, "list"))?.file_name();
            if !ours.iter().any(|&ours| name == **ours) {
                self.disk.remove(&directory.join(name))?;
            }
        }
        Ok(())
    }

    /// Opens the files of an earlier run; `false` when they are not all there.
    fn reopen(&mut self, blueprint: &Blueprint) -> Result<bool> {
        for (path, expected) in self.names.files(blueprint).into_iter().zip(&blueprint.files) {
            if !path.metadata().is_ok_and(|metadata| metadata.len() == expected.len_bytes) {
                self.files.clear();
                return Ok(false);
            }
            self.files.push(self.disk.open(&path)?);
        }
        self.write_what_the_plan_knows(blueprint)?;
        Ok(true)
    }

    fn create(&mut self, blueprint: &Blueprint) -> Result<()> {
        self.remove_unfinished()?;
        if blueprint.is_directory {
            self.disk.make_directory(&self.names.pairs[0].temporary)?;
        }
        for (path, file) in self.names.files(blueprint).into_iter().zip(&blueprint.files) {
            let staged = self.disk.create_new(&path)?;
            staged.set_len(file.len_bytes)?;
            self.files.push(staged);
        }
        self.write_what_the_plan_knows(blueprint)
    }

    /// Headers, tensors that follow from them, padding, sidecars: written, synced, and their names too.
    fn write_what_the_plan_knows(&self, blueprint: &Blueprint) -> Result<()> {
        for (staged, file) in self.files.iter().zip(&blueprint.files) {
            staged.write_all_at(&file.header, 0)?;
        }
        for tensor in &blueprint.tensors {
            for (content, place) in tensor.content.iter().zip(&tensor.placements) {
                self.files[place.file].write_all_at(content, place.offset_bytes)?;
            }
        }
        for (file, start, end) in execute::gaps(blueprint) {
            let start = start.max(blueprint.files[file].header.len() as u64);
            clear(&self.files[file], start, end)?;
        }
        self.files.iter().try_for_each(DiskFile::sync)?;
        if blueprint.is_directory {
            let directory = &self.names.pairs[0].temporary;
            for sidecar in &blueprint.sidecars {
                let file = self.disk.create(&directory.join(&sidecar.name))?;
                file.write_all_at(&sidecar.bytes, 0)?;
                file.sync()?;
            }
            self.disk.sync_directory(directory)?;
        }
        self.disk.sync_parent(&self.names.output)
    }

    /// Removes what an unfinished run has left, what speaks of it first.
    pub(super) fn remove_unfinished(&self) -> Result<()> {
        self.disk.remove(&self.names.journal())?;
        self.disk.sync_parent(&self.names.output)?;
        self.remove_temporary()
    }

    fn remove_temporary(&self) -> Result<()> {
        self.disk.remove(&self.names.view())?;
        self.disk.remove(&with_suffix(&self.names.walk(), ".new"))?;
        self.disk.remove(&self.names.walk())?;
        self.disk.remove(&self.names.pending_manifest())?;
        self.names.pairs.iter().try_for_each(|pair| self.disk.remove(&pair.temporary))
    }

    /// Leaves everything for a later run to go on with.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// The files, in the order of the blueprint.
    pub(super) fn files(&self) -> &[DiskFile] {
        &self.files
    }

    /// Links to the complete files under their final names, for whoever reads a result by its names; gives the
    /// directory or the (first) file. They go with [`Stage::unview`].
    pub(super) fn view(&self) -> Result<PathBuf> {
        if self.names.is_directory {
            return Ok(self.names.pairs[0].temporary.clone());
        }
        let view = self.names.view();
        self.disk.remove(&view)?;
        self.disk.make_directory(&view)?;
        let named = |path: &Path| Path::new("..").join(path.file_name().unwrap_or_default());
        for pair in &self.names.pairs {
            let link = view.join(pair.final_path.file_name().unwrap_or_default());
            self.disk.link(&named(&pair.temporary), &link)?;
        }
        Ok(view.join(self.names.pairs[0].final_path.file_name().unwrap_or_default()))
    }

    /// Writes the card of a complete directory that has none, and lists it in the manifest.
    pub(super) fn add_card(&self, manifest: &mut Manifest, card: Card) -> Result<()> {
        if !self.names.is_directory || manifest.has(CARD) {
            return Ok(());
        }
        let bytes = card(manifest).into_bytes();
        let file = self.disk.create(&self.names.pairs[0].temporary.join(CARD))?;
        file.write_all_at(&bytes, 0)?;
        file.sync()?;
        manifest.add(CARD, &bytes);
        Ok(())
    }

    /// Removes what [`Stage::view`] made.
    pub(super) fn unview(&self) -> Result<()> {
        self.disk.remove(&self.names.view())
    }

    /// Everything is in place: nothing is left to go on with.
    pub(super) fn close(mut self) -> Result<()> {
        self.keep = true;
        // The journal last: as long as it is there, the next run comes back to this.
        self.remove_temporary()?;
        self.disk.remove(&self.names.journal())?;
        // If it comes back after a power cut, the next run removes it again.
        let _ = self.disk.sync_parent(&self.names.output);
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Best effort: a name that cannot be removed now is removed by the next run.
        if !self.keep {
            let _ = self.remove_unfinished();
        }
        if let Some(lock) = self.lock.take() {
            let _ = self.disk.remove(&self.names.lock());
            drop(lock);
        }
    }
}

/// The temporary files of a result at their full lengths, whoever makes them: for several processes at once.
pub(super) fn open_shared(disk: &Disk, names: &Names, blueprint: &Blueprint) -> Result<Vec<DiskFile>> {
    if names.is_directory {
        disk.make_directories(&names.pairs[0].temporary)?;
    }
    let mut files = Vec::new();
    for (path, file) in names.files(blueprint).into_iter().zip(&blueprint.files) {
        let opened = disk.open_or_create(&path)?;
        // Only ever to the same length: what another process has written stays.
        if opened.len_bytes()? != file.len_bytes {
            opened.set_len(file.len_bytes)?;
        }
        // Whoever made it may not have come so far.
        opened.sync()?;
        files.push(opened);
    }
    if names.is_directory {
        disk.sync_directory(&names.pairs[0].temporary)?;
    }
    disk.sync_parent(&names.output)?;
    Ok(files)
}

/// Writes zeros to `start..end` of `file` wherever there are none.
fn clear(file: &DiskFile, start: u64, end: u64) -> Result<()> {
    let mut found = ZEROS;
    let mut position = start;
    while position < end {
        let len = ZEROS.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
        file.read_exact_at(&mut found[..len], position)?;
        if found[..len] != ZEROS[..len] {
            file.write_all_at(&ZEROS[..len], position)?;
        }
        position += len as u64;
    }
    Ok(())
}

/// Something is there that may not be replaced.
pub(super) fn exists(path: &Path) -> Error {
    Error::Request(format!("{} exists; --force replaces it", path.display()))
}
