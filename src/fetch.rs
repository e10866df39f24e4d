//! Brings every file of a repository to a directory, verified, without converting anything.
//!
//! What is there already and matches is left alone; what the Hugging Face cache has is copied;
//! the rest is downloaded. The directory is then as `huggingface_hub` would have left it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;

use crate::disk::{Appender, Disk, with_suffix};
use crate::error::{Error, Result};
use crate::pipeline::{self, Need, Progress, Transfer};
use crate::source::hub::{LocalDir, is_bookkeeping};
use crate::source::{Download, Remote, RemoteFile, file_digest_with};

mod offline;

pub use offline::cached_files;

/// What to bring, and where to.
pub struct Request<'a> {
    /// The place, for messages: `org/name@commit`.
    pub location: String,
    /// Its commit, for the records.
    pub commit: &'a str,
    /// The files; those that would lie among the bookkeeping of the directory are left out.
    pub files: &'a [RemoteFile],
    /// Where each of them lies in the cache, if it does.
    pub cached: &'a [Option<PathBuf>],
    /// Where the others are, under the same file numbers; `None` without the network.
    pub remote: Option<&'a dyn Remote>,
    /// The directory.
    pub output: &'a Path,
    /// What it is written with.
    pub disk: &'a Disk,
    /// Requests under way at once.
    pub connections: usize,
    /// Go ahead on a disk that seems too full.
    pub ignore_space: bool,
}

/// Brings what `request` asks for; gives how many bytes were downloaded.
///
/// # Errors
/// When another run downloads to the same directory, the disk has too little room, a file cannot be
/// had or written, its digest does not match time and again, or [`Error::Interrupted`] once `stop`
/// is set. Files that are done stay; what has come of the others is gone on with later.
pub fn fetch(request: &Request<'_>, progress: &dyn Progress, stop: &AtomicBool) -> Result<u64> {
    let local = LocalDir::open(request.disk, request.output)?;
    let present = present(request, progress, stop)?;
    let absent: Vec<usize> = (0..request.files.len())
        .filter(|&file| !present[file] && !is_bookkeeping(&request.files[file].name))
        .collect();
    if !request.ignore_space {
        let partial = |file: &RemoteFile| pipeline::allocated_bytes(&local.partial(&file.digest));
        let missing = absent.iter().map(|&file| &request.files[file]);
        let bytes = missing.map(|file| file.len_bytes.saturating_sub(partial(file))).sum();
        let need = Need { what: "the files", directory: request.output.to_owned(), bytes };
        pipeline::check_space(&[need], pipeline::OR_IGNORE_SPACE)?;
    }
    for (file, _) in request.files.iter().zip(&present).filter(|(_, present)| **present) {
        local.record(&file.name, request.commit, &file.digest)?;
    }
    let counting = request.remote.map(|remote| Counting { remote, bytes: AtomicU64::new(0) });
    let job = Job { request, local: &local, remote: counting.as_ref(), stop };
    let total_bytes = absent.iter().map(|&file| request.files[file].len_bytes).sum();
    for (index, &file) in absent.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let on_bytes = |bytes| {
            progress.transfer(&Transfer {
                name: &request.files[file].name,
                number: index + 1,
                files: absent.len(),
                bytes,
                total_bytes,
                held_bytes: 0,
            });
        };
        on_bytes(0);
        job.bring(file, &on_bytes)?;
    }
    local.remove_partials()?;
    Ok(counting.map_or(0, |counting| counting.bytes.into_inner()))
}

/// Which files are in the directory already, content and all.
fn present(request: &Request<'_>, progress: &dyn Progress, stop: &AtomicBool) -> Result<Vec<bool>> {
    let is_candidate = |file: &RemoteFile| {
        let metadata = request.output.join(&file.name).metadata();
        !is_bookkeeping(&file.name)
            && metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.len_bytes)
    };
    let candidates: Vec<bool> = request.files.iter().map(is_candidate).collect();
    let there = request.files.iter().zip(&candidates).filter(|(_, there)| **there);
    progress.stage("check", there.map(|(file, _)| file.len_bytes).sum());
    let checks = request.files.par_iter().zip(candidates).map(|(file, there)| {
        if !there {
            return Ok(false);
        }
        let path = request.output.join(&file.name);
        let found = file_digest_with(&path, &file.digest, &mut |bytes| {
            progress.advance(bytes.len() as u64);
            unless_stopped(stop)
        })?;
        Ok(found == file.digest.hex())
    });
    checks.collect()
}

/// What the files of one request share.
struct Job<'a> {
    request: &'a Request<'a>,
    local: &'a LocalDir,
    remote: Option<&'a Counting<'a>>,
    stop: &'a AtomicBool,
}

impl Job<'_> {
    /// Brings one file under its name, and records it.
    fn bring(&self, number: usize, on_bytes: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let file = &self.request.files[number];
        let target = self.local.target(&file.name)?;
        self.local.forget(&file.name)?;
        let cached = self.request.cached[number].as_deref();
        let copied = cached.map(|cached| self.copy(cached, file, &target, on_bytes)).transpose()?;
        match (copied, self.remote) {
            (Some(None), _) => {}
            (_, Some(remote)) => Download {
                remote,
                file: number,
                disk: self.request.disk,
                target: &target,
                partial: &self.local.partial(&file.digest),
                is_durable: true,
                connections: self.request.connections,
                stop: self.stop,
                on_bytes,
            }
            .run()?,
            (found, None) => return Err(self.unavailable(file, cached, found.flatten())),
        }
        self.local.record(&file.name, self.request.commit, &file.digest)
    }

    /// Copies a file from the cache and hashes it on the way; gives the digest found if it is wrong.
    fn copy(
        &self,
        cached: &Path,
        file: &RemoteFile,
        target: &Path,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<Option<String>> {
        let partial = with_suffix(&self.local.partial(&file.digest), ".copy");
        let disk = self.request.disk;
        let mut copy = Appender::new(disk.create(&partial)?, 0);
        let copied = file_digest_with(cached, &file.digest, &mut |bytes| {
            unless_stopped(self.stop)?;
            copy.append(bytes)?;
            on_bytes(bytes.len() as u64);
            Ok(())
        });
        if let Ok(found) = &copied
            && found == file.digest.hex()
        {
            copy.file().sync()?;
            disk.rename(&partial, target)?;
            return disk.sync_parent(target).map(|()| None);
        }
        // A copy is soon made anew; the cache still has what it had.
        let _ = disk.remove(&partial);
        copied.map(Some)
    }

    /// Without the network, a file that the cache cannot give.
    fn unavailable(&self, file: &RemoteFile, cached: Option<&Path>, found: Option<String>) -> Error {
        let what = match (cached, found) {
            (Some(cached), Some(found)) => format!(
                "{} is damaged: {} found {found}, expected {}",
                cached.display(),
                file.digest.kind(),
                file.digest.hex()
            ),
            _ => "not in the cache".to_owned(),
        };
        let message = format!("{what}; HF_HUB_OFFLINE is set: unset it to download the file");
        Error::hub(format!("{}: {}", self.request.location, file.name), message)
    }
}

fn unless_stopped(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Counts what really comes from a remote.
struct Counting<'a> {
    remote: &'a dyn Remote,
    bytes: AtomicU64,
}

impl Remote for Counting<'_> {
    fn location(&self) -> String {
        self.remote.location()
    }

    fn files(&self) -> &[RemoteFile] {
        self.remote.files()
    }

    fn read_range(
        &self,
        file: usize,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.remote.read_range(file, range, stop, &mut |bytes| {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            sink(bytes)
        })
    }
}
