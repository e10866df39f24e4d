//! Proves that the files of a local source are what the result was made from.
//!
//! Anybody may write to a local file while it is converted, or between a stop and the resume. So every job
//! digests what it reads, and beside the jobs each file is read once from its first byte to its last: that gives
//! the SHA-256 for the manifest, and once more the digest of every range that a job has read, of headers and of
//! small files. Where two digests differ, bytes were used that are not the file's, and nothing is sealed. What an
//! earlier run has read is in the journal and is compared in the same way.
//!
//! A file is read when the first job needs it, or beside the file before it, so that it comes from the disk once
//! while the system's cache holds the files at work: two files hashed at once take little longer than one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::journal::Done;
use super::statements::Statements;
use super::walk::{Segment, Target, Walk};
use super::{Progress, execute, maxima};
use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};
use crate::plan::{Blueprint, Job, files_of};
use crate::source::{ContentDigest, FileState, LocalDirectory, Source, file_digest};

/// How long a reader without a file sleeps before it asks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);
/// Worker threads for which one reader is fast enough.
const WORKERS_PER_READER: usize = 16;

/// Fewer bytes are read before anybody misses a line about it.
const SHOWN_BYTES: u64 = 64 << 20;

/// The way out of every error here, for a run of one machine.
pub(super) const WAY_OUT: &str = "Nothing is under the final name. Put the file back as it was and repeat the command, or \
                                  add --restart to convert it as it is now";

/// The files of a local source, and what was read of them.
pub(super) struct Provenance<'a> {
    source: &'a Catalogue,
    local: &'a LocalDirectory,
    blueprint: &'a Blueprint,
    jobs: &'a [Job],
    /// The jobs that count.
    is_own: &'a [bool],
    way_out: &'a str,
    /// For each job whether an earlier run has done it.
    is_earlier: Vec<bool>,
    /// Jobs that read a file, by the file; every file that counts is a key.
    readers: BTreeMap<usize, Vec<u32>>,
    /// Headers and small files as they were read: file, length, fingerprint.
    prefixes: Vec<(usize, u64, u128)>,
    statements: Statements,
    /// Bytes of files that were read to their ends or so far.
    walked_bytes: AtomicU64,
    /// Nothing else shows progress any more.
    is_alone: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Files that no job has needed yet, by the first job that will.
    waiting: BTreeSet<(usize, usize)>,
    /// Files to be read now.
    ready: BTreeSet<usize>,
    /// What jobs have read.
    read: Vec<Option<u128>>,
    /// What lies in the files where jobs read their weights.
    found: Vec<u128>,
    /// The same for tensors that are read whole for a factor on their scales.
    found_whole: BTreeMap<usize, u128>,
    /// SHA-256 of files that were read to the end.
    finished: BTreeMap<usize, String>,
}

/// How many threads are to call [`Provenance::run`] beside so many workers.
pub(super) fn readers(threads: usize) -> usize {
    threads.div_ceil(WORKERS_PER_READER)
}

impl<'a> Provenance<'a> {
    /// For the jobs that `is_own`, of which `done` says what an earlier run has read, and `files` that count beside
    /// those that they read. `None` for a source that verifies its files by itself.
    pub(super) fn new(
        source: &'a Catalogue,
        blueprint: &'a Blueprint,
        (jobs, is_own): (&'a [Job], &'a [bool]),
        files: &BTreeSet<usize>,
        done: &[Option<Done>],
        way_out: &'a str,
    ) -> Option<Self> {
        let local = source.source().changeable()?;
        let prefixes = local.prefixes();
        let mut readers: BTreeMap<usize, Vec<u32>> = files.iter().map(|&file| (file, Vec::new())).collect();
        let mut first_job: BTreeMap<usize, usize> = BTreeMap::new();
        for (number, job) in jobs.iter().enumerate().filter(|&(number, _)| is_own[number]) {
            for file in files_of(blueprint, source.tensors(), job) {
                readers.entry(file).or_default().push(number as u32);
                if done[number].is_none() {
                    first_job.entry(file).or_insert(number);
                }
            }
        }
        let ready = readers.keys().copied().filter(|file| !first_job.contains_key(file)).collect();
        let state = State {
            waiting: first_job.into_iter().map(|(file, job)| (job, file)).collect(),
            ready,
            read: done.iter().map(|done| done.map(|done| done.read)).collect(),
            found: vec![0; jobs.len()],
            found_whole: BTreeMap::new(),
            finished: BTreeMap::new(),
        };
        let is_earlier = done.iter().map(Option::is_some).collect();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let statements = Statements::read(local);
        Some(Self {
            source,
            local,
            blueprint,
            jobs,
            is_own,
            way_out,
            is_earlier,
            readers,
            prefixes,
            statements,
            walked_bytes: AtomicU64::new(0),
            is_alone: AtomicBool::new(false),
            state,
            changed,
        })
    }

    /// A job is about to read its files.
    pub(super) fn begun(&self, job: usize) {
        let files = files_of(self.blueprint, self.source.tensors(), &self.jobs[job]);
        let mut state = self.lock();
        let needed: Vec<(usize, usize)> =
            state.waiting.iter().copied().filter(|(_, file)| files.contains(file)).collect();
        for file in needed {
            state.waiting.remove(&file);
            state.ready.insert(file.1);
            self.changed.notify_all();
        }
    }

    /// A job has read its files.
    ///
    /// # Errors
    /// When the files have other bytes than it has read.
    pub(super) fn finished(&self, done: &Done) -> Result<()> {
        let mut state = self.lock();
        state.read[done.job] = Some(done.read);
        self.judge(&state, done.job)
    }

    /// All jobs are done: what is left to be read is shown as a stage of its own.
    pub(super) fn left_alone(&self, progress: &dyn Progress) {
        let total: u64 = self.readers.keys().map(|&file| self.local.files()[file].len_bytes).sum();
        // A chunk more or less is counted twice or not at all.
        let left = total - self.walked_bytes.load(Ordering::Relaxed).min(total);
        if left >= SHOWN_BYTES {
            progress.stage("check", left);
            self.is_alone.store(true, Ordering::Relaxed);
        }
    }

    /// Reads files until all are read, or one of the flags is set.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what was read of it or is stated about it.
    pub(super) fn run(&self, halt: &AtomicBool, stop: &AtomicBool, progress: &dyn Progress) -> Result<()> {
        let mut lanes: [Option<Walk<'_>>; 2] = [None, None];
        while !halt.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
            for lane in 0..lanes.len() {
                if lanes[lane].is_none() {
                    let is_second = lanes.iter().any(Option::is_some);
                    lanes[lane] = self.next_file(is_second).map(|file| self.walk(file)).transpose()?;
                }
            }
            let read_bytes = match &mut lanes {
                [Some(one), Some(other)] => {
                    Walk::step_both(one, other).map_err(|error| self.if_cut_off(error))?
                }
                [Some(only), None] | [None, Some(only)] => {
                    only.step().map_err(|error| self.if_cut_off(error))?
                }
                [None, None] => {
                    let state = self.lock();
                    if state.ready.is_empty() {
                        if state.waiting.is_empty() {
                            return Ok(());
                        }
                        drop(
                            self.changed
                                .wait_timeout(state, PATIENCE)
                                .unwrap_or_else(PoisonError::into_inner),
                        );
                    }
                    0
                }
            };
            self.walked_bytes.fetch_add(read_bytes, Ordering::Relaxed);
            if self.is_alone.load(Ordering::Relaxed) {
                progress.advance(read_bytes);
            }
            for lane in &mut lanes {
                if let Some(walk) = lane.take_if(|walk| walk.is_at_end()) {
                    self.conclude(walk)?;
                }
            }
        }
        Ok(())
    }

    /// SHA-256 of every file that counts, once all are read, none has changed since, and every job has read what is
    /// in them.
    ///
    /// # Errors
    /// When that is not so.
    pub(super) fn finish(self) -> Result<BTreeMap<usize, String>> {
        for &file in self.readers.keys() {
            self.still_the_same(file)?;
        }
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let all_read = self.readers.keys().all(|file| state.finished.contains_key(file));
        let all_judged = state.read.iter().zip(self.is_own).all(|(read, is_own)| !is_own || read.is_some());
        if all_read && all_judged { Ok(state.finished) } else { Err(Error::Interrupted) }
    }

    /// The next file to be read: one that is needed now, or beside one of those the one that is needed next, since
    /// two are read nearly as fast as one.
    fn next_file(&self, is_second: bool) -> Option<usize> {
        let mut state = self.lock();
        let ready = state.ready.pop_first();
        ready.or_else(|| if is_second { state.waiting.pop_first().map(|(_, file)| file) } else { None })
    }

    /// Begins to read a file.
    fn walk(&self, file: usize) -> Result<Walk<'_>> {
        let mut segments = Vec::new();
        for &job in self.readers.get(&file).into_iter().flatten() {
            let plan = &self.jobs[job as usize];
            let unit = execute::unit(self.source, &self.blueprint.tensors[plan.tensor], plan);
            let own = self.source.extents(&unit).into_iter().filter(|extent| extent.file == file);
            segments.extend(own.map(|extent| Segment::new(extent, Target::Job(job as usize))));
        }
        let whole: BTreeSet<usize> =
            self.blueprint.tensors.iter().flat_map(|tensor| tensor.scale_sources.iter().copied()).collect();
        for id in whole {
            if is_of_weight(self.source, id, file) {
                let extents = self.source.extents(&maxima::unit(self.source, id));
                let own = extents.into_iter().filter(|extent| extent.file == file);
                segments.extend(own.map(|extent| Segment::new(extent, Target::Whole(id))));
            }
        }
        let prefixes = self.prefixes.iter().filter(|prefix| prefix.0 == file);
        segments.extend(prefixes.map(|&(_, len, fingerprint)| Segment::prefix(len, fingerprint)));
        Walk::new(self.local, file, segments)
    }

    /// A file that ends before the end it had when it was opened has changed; other errors are what they are.
    fn if_cut_off(&self, error: Error) -> Error {
        let path = match &error {
            Error::Io { path, source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => path,
            _ => return error,
        };
        let file = (0..self.local.files().len()).find(|&file| self.local.path(file) == *path);
        let Some(file) = file else { return error };
        let message = format!(
            "it is shorter now than when it was opened: it was cut off while it was read. {}",
            self.way_out
        );
        Error::changed(&self.local.files()[file].name, message)
    }

    /// A file was read to its end.
    fn conclude(&self, walk: Walk<'_>) -> Result<()> {
        let (file, sha256, found) = walk.finish();
        let name = &self.local.files()[file].name;
        let mut state = self.lock();
        for (target, fingerprint) in found {
            match target {
                Target::Job(job) => state.found[job] = state.found[job].wrapping_add(fingerprint),
                Target::Whole(id) => {
                    let sum = state.found_whole.entry(id).or_default();
                    *sum = sum.wrapping_add(fingerprint);
                }
                Target::Prefix(read) if read == fingerprint => {}
                Target::Prefix(_) => {
                    let message = format!(
                        "its first bytes, from which the conversion was planned, are other ones now: it was changed \
                         while it was read. {}",
                        self.way_out
                    );
                    return Err(Error::changed(name, message));
                }
            }
        }
        state.finished.insert(file, sha256.clone());
        self.readers
            .get(&file)
            .into_iter()
            .flatten()
            .try_for_each(|&job| self.judge(&state, job as usize))?;
        drop(state);
        self.as_stated(file, &sha256)
    }

    /// Compares what a job has read with what its files have, once both are known.
    fn judge(&self, state: &State, number: usize) -> Result<()> {
        let job = &self.jobs[number];
        let Some(read) = state.read[number] else { return Ok(()) };
        let files = files_of(self.blueprint, self.source.tensors(), job);
        if !files.iter().all(|file| state.finished.contains_key(file)) {
            return Ok(());
        }
        let output = &self.blueprint.tensors[job.tensor];
        let whole = output.scale_sources.iter().map(|id| state.found_whole.get(id).copied().unwrap_or(0));
        if whole.fold(state.found[number], u128::wrapping_add) == read {
            return Ok(());
        }
        let names: Vec<&str> = files.iter().map(|&file| self.local.files()[file].name.as_str()).collect();
        let tensor = &self.source.tensors()[output.pieces[job.piece].source].name;
        let when = if self.is_earlier[number] {
            "an earlier run has converted other bytes of it: the file was changed after that run stopped"
        } else {
            "other bytes of it were converted: the file was changed while it was read"
        };
        Err(Error::changed(names.join(" or "), format!("tensor {tensor}: {when}. {}", self.way_out)))
    }

    /// Compares a file with what is stated about it.
    fn as_stated(&self, file: usize, sha256: &str) -> Result<()> {
        let is_weights = self.source.tensors().iter().any(|tensor| tensor.file == file);
        for stated in self.statements.about(self.local, file, is_weights) {
            let wanted = &stated.digest;
            let found = match wanted {
                ContentDigest::Sha256(_) => sha256.to_owned(),
                ContentDigest::GitBlob(_) => file_digest(&self.local.path(file), wanted)?,
            };
            if found != wanted.hex() {
                let message = format!(
                    "found {} {found}, but {} says {}: the file is damaged, or was replaced. Nothing is under the final \
                     name. Fetch it again; if it was changed on purpose, remove what says otherwise",
                    wanted.kind(),
                    stated.by.display(),
                    wanted.hex()
                );
                return Err(Error::changed(&self.local.files()[file].name, message));
            }
        }
        Ok(())
    }

    /// Whether the file under the name is still the one that was read. One that was touched, or replaced by an
    /// equal copy, is.
    fn still_the_same(&self, file: usize) -> Result<()> {
        let path = self.local.path(file);
        let state = self.lock().finished.get(&file).cloned();
        let Some(read) = state else { return Ok(()) };
        let changed = |what: &str| {
            let message = format!("{what} while it was read. {}", self.way_out);
            Err(Error::changed(&self.local.files()[file].name, message))
        };
        let listed = self.local.listed(file);
        match path.metadata() {
            Ok(metadata) if FileState::from(&metadata) == listed => Ok(()),
            Ok(metadata) if metadata.len() != listed.len_bytes => changed(&format!(
                "it had {} bytes and has {} now: it was changed",
                listed.len_bytes,
                metadata.len()
            )),
            Ok(_) if file_digest(&path, &ContentDigest::Sha256(String::new()))? == read => Ok(()),
            Ok(_) => changed("it was changed or replaced"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => changed("it was removed"),
            Err(error) => Err(Error::io(path, "stat")(error)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Files that count for a conversion of `source`: those with tensors, and those that were read for the plan. `None`
/// for a source that verifies its files by itself.
pub(super) fn files(source: &Catalogue) -> Option<BTreeSet<usize>> {
    let local = source.source().changeable()?;
    let with_tensors = source.tensors().iter().map(|tensor| tensor.file);
    Some(with_tensors.chain(local.prefixes().iter().map(|&(file, ..)| file)).collect())
}

/// Whether weight number `id` or its scales are in `file`.
fn is_of_weight(source: &Catalogue, id: usize, file: usize) -> bool {
    let tensors = source.tensors();
    [id].iter().chain(tensors[id].companions()).any(|&id| tensors[id].file == file)
}
