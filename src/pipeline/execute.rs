//! Runs jobs on worker threads.
//!
//! A worker takes the next job and walks it in tiles that fit the cache: read, decode to f32,
//! round, transpose if asked, encode. Encoded tiles collect in a slab, which is written at an
//! offset of its own: few large writes, since writers of one file wait for each other. Memory is
//! a few tiles and a slab per worker, whatever the size of tensor or model.
//!
//! Beside the workers, one thread hashes the files, one syncs and keeps the journal, and for a
//! streamed source one brings the shards.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock};

use rayon::ThreadPoolBuilder;

use super::Progress;
use super::digest::{self, Digests};
use super::errors::{ErrorReport, Sums};
use super::intake::Intake;
use super::journal::{Done, Journal};
use super::maxima::Maxima;
use super::queue::Queue;
use super::slab::{self, Slab, Tile, Worker};
use super::staging::StagedFile;
use super::writeback::{self, Dirty};
use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};
use crate::frontier::Frontier;
use crate::plan::{self, Blueprint, Job};

/// Weights in a tile, at most (a single longer row makes a longer tile): 1 MiB of f32.
const TILE_ELEMS: usize = 1 << 18;

/// Memory beside the tiles: headers, catalogue, code, allocator.
const BASE_RAM_BYTES: u64 = 64 << 20;

/// Upper bound on resident memory of a run: what `requant plan` states.
pub fn peak_ram_bytes(source: &Catalogue, blueprint: &Blueprint, threads: usize) -> u64 {
    let headers: u64 = blueprint.files.iter().map(|file| file.header.len() as u64).sum();
    let catalogue = 1024 * (source.tensors().len() + blueprint.tensors.len()) as u64;
    let widest = source.tensors().iter().map(|tensor| tensor.matrix().1).max().unwrap_or(0);
    // f32 tile, its turned copy, source bytes, and for an error report the tile before rounding and after
    // decoding: at most 4 bytes a weight each.
    let turned =
        blueprint.tensors.iter().flat_map(|tensor| &tensor.pieces).filter(|piece| !piece.turn.is_none());
    let turned =
        turned.map(|piece| piece.rows.len() * source.tensors()[piece.source].matrix().1).max().unwrap_or(0);
    let tiles = 20 * widest.max(TILE_ELEMS).max(turned) as u64;
    let slab = blueprint.tensors.iter().map(|tensor| slab::most_bytes(tensor, TILE_ELEMS)).max().unwrap_or(0);
    BASE_RAM_BYTES + 3 * headers + catalogue + threads as u64 * (tiles + slab)
}

/// Everything a run needs.
pub(super) struct Run<'a> {
    pub(super) source: &'a Catalogue,
    pub(super) blueprint: &'a Blueprint,
    pub(super) jobs: &'a [Job],
    /// For each job whether an earlier run has done it.
    pub(super) done: &'a [bool],
    /// For each job that an earlier run has done its part of the error report; `None` when there is none to be.
    pub(super) sums: Option<&'a [Sums]>,
    /// Brings the source's files, if they have to be brought.
    pub(super) intake: Option<&'a Intake<'a>>,
    pub(super) files: &'a [StagedFile],
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a AtomicBool,
}

/// What the threads of a run share.
struct Shared {
    queue: Queue,
    /// Jobs left, by tensor.
    remaining: Vec<AtomicUsize>,
    /// Tensors that an earlier run has finished: their digests are computed anew.
    finished: Mutex<Vec<usize>>,
    /// Digests of parts, by tensor.
    parts: Vec<OnceLock<Vec<String>>>,
    /// Parts of the error report, by job; empty when there is none to be.
    sums: Vec<OnceLock<Sums>>,
    frontiers: Vec<Frontier>,
    dirty: Dirty,
    /// Largest magnitudes, for codecs with a factor on a whole tensor.
    maxima: Maxima,
    /// The first error; set once.
    failure: Mutex<Option<Error>>,
    failed: AtomicBool,
}

impl Shared {
    fn fail(&self, error: Error) {
        let mut failure = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failure.get_or_insert(error);
        self.halt();
    }

    /// Ends every thread of the run.
    fn halt(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.queue.close();
        self.frontiers.iter().for_each(Frontier::close);
    }
}

impl Run<'_> {
    /// Runs every job of `queue` that is not done and returns the digests of the result, and the error report if
    /// there is to be one.
    pub(super) fn execute(
        &self,
        threads: usize,
        queue: Queue,
        journal: &mut Journal,
    ) -> Result<(Digests, Option<ErrorReport>)> {
        let shared = self.share(queue);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("requant-{index}"))
            .build()
            .map_err(|error| Error::Request(format!("cannot start {threads} threads: {error}")))?;
        let (finished, to_record) = std::sync::mpsc::channel();
        let shared_ref = &shared;
        let followed = std::thread::scope(|scope| {
            let follower = scope.spawn(|| self.follow(shared_ref));
            scope.spawn(move || {
                let recorded = |job| self.intake.map_or(Ok(()), |intake| intake.recorded(job));
                if let Err(error) =
                    writeback::run(self.files, &shared_ref.dirty, &to_record, journal, recorded)
                {
                    shared_ref.fail(error);
                }
            });
            if let Some(intake) = self.intake {
                scope.spawn(move || {
                    if let Err(error) = intake.run(&shared_ref.queue, &shared_ref.failed, self.progress) {
                        shared_ref.fail(error);
                    }
                });
            }
            pool.broadcast(|_| self.work(shared_ref, &finished));
            drop(finished);
            follower.join()
        });
        let files = match followed {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let failure = shared.failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = failure {
            return Err(error);
        }
        let files = files?.ok_or(Error::Interrupted)?;
        let parts = shared.parts.into_iter().map(|digests| digests.into_inner().unwrap_or_default());
        let digests = Digests { files, parts: parts.collect() };
        let report = self.sums.map(|_| {
            let sums = shared.sums.into_iter().map(|sums| sums.into_inner().unwrap_or_default());
            ErrorReport::new(self.blueprint, self.jobs, &sums.collect::<Vec<_>>())
        });
        Ok((digests, report))
    }

    /// Counts what an earlier run has done as progress.
    pub(super) fn report_done(&self) {
        for (job, _) in self.jobs.iter().zip(self.done).filter(|(_, done)| **done) {
            let tensor = &self.source.tensors()[self.blueprint.tensors[job.tensor].pieces[job.piece].source];
            let rows = tensor.matrix().0.max(1) as u64;
            self.progress.advance(tensor.len_bytes * job.source_rows.len() as u64 / rows);
        }
    }

    fn share(&self, queue: Queue) -> Shared {
        let remaining: Vec<AtomicUsize> =
            self.blueprint.tensors.iter().map(|_| AtomicUsize::new(0)).collect();
        for (job, _) in self.jobs.iter().zip(self.done).filter(|(_, done)| !**done) {
            remaining[job.tensor].fetch_add(1, Ordering::Relaxed);
        }
        let finished = (0..remaining.len()).filter(|&tensor| remaining[tensor].load(Ordering::Relaxed) == 0);
        let shared = Shared {
            queue,
            finished: Mutex::new(finished.collect()),
            remaining,
            parts: self.blueprint.tensors.iter().map(|_| OnceLock::new()).collect(),
            sums: self.sums.map_or(Vec::new(), |sums| {
                let known = sums.iter().zip(self.done).map(|(sums, done)| done.then_some(*sums));
                known.map(|sums| sums.map_or_else(OnceLock::new, OnceLock::from)).collect()
            }),
            frontiers: self.blueprint.files.iter().map(|_| Frontier::new()).collect(),
            dirty: Dirty::new(self.blueprint.files.len()),
            maxima: Maxima::new(self.source.tensors().len()),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
        };
        for (file, start, end) in gaps(self.blueprint) {
            shared.frontiers[file].add(start, end);
        }
        for (job, _) in self.jobs.iter().zip(self.done).filter(|(_, done)| **done) {
            self.advance_frontiers(&shared, job);
        }
        shared
    }

    /// The bytes of `job` are in their files.
    fn advance_frontiers(&self, shared: &Shared, job: &Job) {
        let output = &self.blueprint.tensors[job.tensor];
        let (_, cols) = self.source.tensors()[output.pieces[job.piece].source].matrix();
        let rows = plan::output_rows(&output.pieces[job.piece], job.source_rows.len(), cols);
        for (placement, runs) in output.runs(job.first_row..job.first_row + rows) {
            for (offset, range) in runs.pieces() {
                let start = placement.offset_bytes + offset;
                shared.frontiers[placement.file].add(start, start + range.len() as u64);
            }
        }
    }

    /// Hashes files, one after the other, as they are finished.
    fn follow(&self, shared: &Shared) -> Result<Option<Vec<String>>> {
        let mut digests = Vec::new();
        let files = self.files.iter().zip(&self.blueprint.files).zip(&shared.frontiers);
        for ((staged, file), frontier) in files {
            match digest::follow(&staged.file, &staged.path, file.len_bytes, frontier) {
                Ok(Some(digest)) => digests.push(digest),
                Ok(None) => return Ok(None),
                Err(error) => {
                    shared.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(Some(digests))
    }

    /// One worker: jobs until there are none.
    fn work(&self, shared: &Shared, finished: &Sender<Done>) {
        let patient = || !self.stop.load(Ordering::Relaxed) && !shared.failed.load(Ordering::Relaxed);
        let take_finished =
            || shared.finished.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        while let Some(tensor) = take_finished() {
            if !patient() {
                break;
            }
            if let Err(error) = self.digest_parts(shared, tensor) {
                return shared.fail(error);
            }
        }
        let mut worker = Worker::default();
        while let Some(number) = shared.queue.next(patient) {
            let sums = match self.run_job(shared, &self.jobs[number], &mut worker) {
                Ok(sums) => sums,
                Err(error) => return shared.fail(error),
            };
            if let Some(slot) = shared.sums.get(number) {
                // A job runs once, so nobody else sets this cell.
                let _ = slot.set(sums);
            }
            // Only closed when recording has failed, which ends the run anyway.
            let _ = finished.send(Done { job: number, sums });
        }
        if !patient() {
            shared.halt();
        }
    }

    /// Returns the job's part of the error report, if there is to be one.
    fn run_job(&self, shared: &Shared, job: &Job, worker: &mut Worker) -> Result<Sums> {
        let output = &self.blueprint.tensors[job.tensor];
        let piece = &output.pieces[job.piece];
        let (_, cols) = self.source.tensors()[piece.source].matrix();
        let tile_rows = if piece.turn.is_none() {
            plan::whole_bands(TILE_ELEMS / cols.max(1), output.layout.band_rows())
        } else {
            job.source_rows.len()
        };
        let tensor_scale = shared.maxima.tensor_scale(self.source, output, &mut worker.reader)?;
        let copies = output.copies(piece, &self.source.tensors()[piece.source]);
        let mut slab = Slab::new(output, job.first_row, tensor_scale);
        let mut sums = Sums::default();
        let mut start = job.source_rows.start;
        while start < job.source_rows.end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let end = job.source_rows.end.min(start + tile_rows);
            let tile = Tile { source: self.source, piece, rows: start..end };
            let of_errors = self.sums.is_some().then_some(&mut sums);
            let bytes = if copies {
                worker.copy(&mut slab, &tile, of_errors)?
            } else {
                let bytes = worker.read(&tile)?;
                worker.encode(&mut slab, &tile, of_errors);
                bytes
            };
            if slab.is_full() || end == job.source_rows.end {
                slab.write(self.files, &shared.dirty, &mut worker.parts)?;
            }
            self.progress.advance(bytes);
            start = end;
        }
        self.advance_frontiers(shared, job);
        if shared.remaining[job.tensor].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.digest_parts(shared, job.tensor)?;
        }
        Ok(sums)
    }

    fn digest_parts(&self, shared: &Shared, tensor: usize) -> Result<()> {
        let digests = self.blueprint.tensors[tensor].placements.iter().map(|placement| {
            let staged = &self.files[placement.file];
            digest::range(&staged.file, &staged.path, placement.offset_bytes, placement.len_bytes)
        });
        let digests = digests.collect::<Result<Vec<_>>>()?;
        // The counter reaches zero once, so nobody else sets this cell.
        let _ = shared.parts[tensor].set(digests);
        Ok(())
    }
}

/// Bytes of each file that no tensor covers (header, padding): file, start, end.
fn gaps(blueprint: &Blueprint) -> Vec<(usize, u64, u64)> {
    let mut covered: Vec<(usize, u64, u64)> = blueprint
        .tensors
        .iter()
        .flat_map(|tensor| &tensor.placements)
        .map(|placement| {
            (placement.file, placement.offset_bytes, placement.offset_bytes + placement.len_bytes)
        })
        .collect();
    covered.sort_unstable();
    let mut gaps = Vec::new();
    let mut covered = covered.into_iter().peekable();
    for (file, description) in blueprint.files.iter().enumerate() {
        let mut position = 0;
        while let Some((_, start, end)) = covered.next_if(|&(owner, _, _)| owner == file) {
            gaps.push((file, position, start));
            position = end;
        }
        gaps.push((file, position, description.len_bytes));
    }
    gaps
}
