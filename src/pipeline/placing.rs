//! The step that makes a complete result final: seal, names, manifest.
//!
//! 1. The manifest is written and synced under a temporary name, then the journal is sealed with its digest. From
//!    here on the result is complete, and whoever comes next only finishes giving names.
//! 2. A directory changes places with the old one in one step; a file takes the place of the old one. The
//!    manifest of files follows: until it has, `verify` accepts the old manifest and the pending one, so that at
//!    every moment either the old result or the new one is there, whole.
//! 3. Names are synced; then the journal goes, and what was replaced.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::Progress;
use super::journal::Journal;
use super::manifest::{self, Manifest};
use super::names::{Names, Pair, manifest_beside, manifest_inside, partial};
use super::output::check_replaceable;
use super::staging::{Stage, exists};
use crate::disk::{Disk, DiskFile, parent_of};
use crate::error::Result;
use crate::fingerprint::Fingerprint;

impl Stage {
    /// Syncs everything and seals it: only names are missing then.
    pub(super) fn seal(&mut self, manifest: &Manifest, journal: &mut Journal) -> Result<()> {
        self.files().iter().try_for_each(DiskFile::sync)?;
        let bytes = manifest.to_bytes()?;
        let pending = self.names.pending_manifest();
        self.disk.replace(&pending, &bytes)?;
        if self.names.is_directory {
            self.disk.sync_directory(&self.names.pairs[0].temporary)?;
        }
        self.disk.sync_parent(&self.names.output)?;
        let sealed = fingerprint(&bytes);
        self.sealed = Some(sealed);
        journal.seal(sealed)
    }

    /// Gives a sealed result its names; gives the path of the manifest.
    ///
    /// # Errors
    /// When something that may not be replaced is there; the result stays sealed then.
    pub(super) fn place(&self) -> Result<PathBuf> {
        let Self { disk, names, force, .. } = self;
        for pair in &names.pairs {
            if names.is_directory {
                // Once the new one has its name, only an old one can have the temporary name.
                if is_sealed(&pair.temporary, self.sealed) {
                    place_directory(disk, names, pair, *force)?;
                }
            } else if pair.temporary.symlink_metadata().is_ok() {
                place_file(disk, pair, *force)?;
            }
        }
        disk.sync_parent(&names.output)?;
        let (manifest, pending) = (names.manifest(), names.pending_manifest());
        if names.is_directory {
            remove_manifest_beside(disk, &names.output)?;
        } else if pending.symlink_metadata().is_ok() {
            disk.rename(&pending, &manifest)?;
        }
        disk.sync_parent(&names.output)?;
        Ok(manifest)
    }
}

fn place_file(disk: &Disk, pair: &Pair, force: bool) -> Result<()> {
    let Pair { temporary, final_path } = pair;
    if force && final_path.is_file() {
        return disk.rename(temporary, final_path);
    }
    if disk.rename_new(temporary, final_path)? { Ok(()) } else { Err(exists(final_path)) }
}

fn place_directory(disk: &Disk, names: &Names, pair: &Pair, force: bool) -> Result<()> {
    let Pair { temporary, final_path } = pair;
    if disk.rename_new(temporary, final_path)? {
        return Ok(());
    }
    if !force {
        return Err(exists(final_path));
    }
    check_replaceable(std::slice::from_ref(final_path), true)?;
    if disk.exchange(temporary, final_path)? {
        return Ok(());
    }
    // A file system that cannot exchange names: for a moment only the other two names are there.
    let replaced = names.replaced();
    disk.rename(final_path, &replaced)?;
    disk.rename(temporary, final_path)?;
    disk.sync_parent(final_path)?;
    disk.remove(&replaced)
}

/// Whether the directory at `path` is the one that was sealed.
fn is_sealed(path: &Path, sealed: Option<u128>) -> bool {
    std::fs::read(manifest_inside(path)).is_ok_and(|bytes| Some(fingerprint(&bytes)) == sealed)
}

fn fingerprint(bytes: &[u8]) -> u128 {
    Fingerprint::of(0, bytes)
}

/// Whether a manifest says that the directory at `path` is a result.
fn is_result(path: &Path) -> bool {
    let of = |manifest: PathBuf| Manifest::read(&manifest).is_ok_and(|manifest| manifest.is_directory);
    of(manifest_inside(path)) || of(manifest_beside(path))
}

/// The manifest of an old directory lay beside it; the new one has its own inside.
fn remove_manifest_beside(disk: &Disk, output: &Path) -> Result<()> {
    let beside = manifest_beside(output);
    let is_stale = Manifest::read(&beside).is_ok_and(|manifest| manifest.is_directory);
    if is_stale { disk.remove(&beside) } else { Ok(()) }
}

/// The manifest of a sealed result, if everything it lists is there and is what it says.
pub(super) fn whole(
    names: &Names,
    sealed: Option<u128>,
    progress: &dyn Progress,
) -> Result<Option<Manifest>> {
    let candidates = [names.pending_manifest(), names.manifest()];
    let sealed_bytes = candidates.iter().find_map(|path| {
        let bytes = std::fs::read(path).ok()?;
        (Some(fingerprint(&bytes)) == sealed).then_some((path, bytes))
    });
    let Some((path, bytes)) = sealed_bytes else { return Ok(None) };
    let manifest = Manifest::parse(&bytes, path)?;
    progress.stage("check", manifest.files.iter().map(|file| file.bytes).sum());
    let is_whole = manifest.files.par_iter().map(|record| {
        let path = if names.is_directory {
            parent_of(path).join(&record.name)
        } else {
            let named = names.output.with_file_name(&record.name);
            let temporary = partial(&named);
            if temporary.symlink_metadata().is_ok() { temporary } else { named }
        };
        let is_whole = manifest::is_whole(record, &path)?;
        progress.advance(record.bytes);
        Ok(is_whole)
    });
    let is_whole = is_whole.collect::<Result<Vec<bool>>>()?.into_iter().all(|is_whole| is_whole);
    Ok(is_whole.then_some(manifest))
}

/// A run that was cut off between the two renames of a file system without exchange, and is not gone on with:
/// the old result gets its name back. One that is not needed any more goes.
pub(super) fn restore_replaced(disk: &Disk, names: &Names) -> Result<()> {
    let replaced = names.replaced();
    if !is_result(&replaced) {
        return Ok(());
    }
    if disk.rename_new(&replaced, &names.output)? {
        disk.sync_parent(&names.output)
    } else {
        disk.remove(&replaced)
    }
}
