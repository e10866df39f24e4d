//! Runs jobs on worker threads.
//!
//! A worker takes the next job and walks it in tiles that fit the cache: read, decode to f32,
//! round, transpose if asked, encode. Encoded tiles collect in a slab, which is written at an
//! offset of its own: few large writes, since writers of one file wait for each other. Memory is
//! a few tiles and a slab per worker, whatever the size of tensor or model.
//!
//! Beside the workers, one thread hashes the files, one syncs and keeps the journal, and one brings the
//! shards of a streamed source, or compares what was read of a local one with its files.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rayon::ThreadPoolBuilder;
use requant_formats::layout::Runs;
use serde::{Deserialize, Serialize};

use super::Progress;
use super::digest::{self, Digests};
use super::errors::Sums;
use super::intake::Intake;
use super::journal::{Done, Journal};
use super::maxima::Maxima;
use super::provenance::{self, Provenance};
use super::queue::Queue;
use super::refining::{Calibration, Counter, Handed};
use super::slab::{self, Slab, Tile, Worker};
use super::writeback::{self, Dirty, Finished};
use crate::checkpoint::{Catalogue, Unit};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::frontier::Frontier;
use crate::plan::{self, Blueprint, Job, OutputTensor, Placement};

/// Weights in a tile, at most (a single longer row makes a longer tile): 0.5 MiB of f32.
const TILE_ELEMS: usize = 1 << 17;

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
    /// For each job what an earlier run has recorded about it, if it has done it.
    pub(super) done: &'a [Option<Done>],
    /// Whether there is to be an error report.
    pub(super) error_report: bool,
    /// Whether the files are hashed while they are written: not by one of several machines.
    pub(super) follows: bool,
    /// Brings the source's files, if they have to be brought.
    pub(super) intake: Option<&'a Intake<'a>>,
    /// Encodes some of the jobs.
    pub(super) calibration: Option<&'a dyn Calibration>,
    /// Compares what jobs read with the source's files, if these may change.
    pub(super) provenance: Option<&'a Provenance<'a>>,
    pub(super) files: &'a [DiskFile],
    /// How often finished jobs are synced and recorded.
    pub(super) sync_interval: Duration,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a AtomicBool,
}

/// What the threads of a run share.
struct Shared {
    queue: Queue,
    /// Parts of the error report, by job; empty when there is none to be.
    sums: Vec<OnceLock<Sums>>,
    frontiers: Vec<Frontier>,
    dirty: Dirty,
    /// Jobs of the calibration that are at work.
    handed: Handed,
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
    /// Runs every job of `queue` that is not done and returns the digests of the result, if it [`Run::follows`], and
    /// what jobs say for an error report, if there is to be one.
    pub(super) fn execute(
        &self,
        threads: usize,
        queue: Queue,
        journal: &mut Journal,
    ) -> Result<(Option<Digests>, Option<Vec<Sums>>)> {
        let shared = self.share(queue);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("requant-{index}"))
            .build()
            .map_err(|error| Error::Request(format!("cannot start {threads} threads: {error}")))?;
        let (finished, to_record) = std::sync::mpsc::channel();
        let shared_ref = &shared;
        let followed = std::thread::scope(|scope| {
            let follower = self.follows.then(|| scope.spawn(|| self.follow(shared_ref)));
            scope.spawn(move || {
                let recorded = |job| {
                    shared_ref.handed.recorded(job);
                    self.intake.map_or(Ok(()), |intake| intake.recorded(job))
                };
                if let Err(error) = writeback::run(
                    self.files,
                    &shared_ref.dirty,
                    &to_record,
                    journal,
                    self.sync_interval,
                    recorded,
                ) {
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
            if let Some(calibration) = self.calibration {
                let Shared { handed, queue, failed, maxima, .. } = shared_ref;
                let finished = finished.clone();
                scope.spawn(move || {
                    let (source, stop) = (self.source, self.stop);
                    let desk = Counter { source, maxima, handed, queue, finished, failed, stop };
                    if let Err(error) = calibration.run(&desk) {
                        shared_ref.fail(error);
                    }
                });
            }
            if let Some(provenance) = self.provenance {
                for _ in 0..provenance::readers(threads) {
                    scope.spawn(move || {
                        if let Err(error) = provenance.run(&shared_ref.failed, self.stop, self.progress) {
                            shared_ref.fail(error);
                        }
                    });
                }
            }
            pool.broadcast(|_| self.work(shared_ref, &finished));
            drop(finished);
            if let Some(provenance) = self.provenance {
                provenance.left_alone(self.progress);
            }
            follower.map(std::thread::ScopedJoinHandle::join)
        });
        let digests = match followed.transpose() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let failure = shared.failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = failure {
            return Err(error);
        }
        let digests = match digests.transpose()? {
            Some(None) => return Err(Error::Interrupted),
            followed => followed.flatten(),
        };
        let sums = self.error_report.then(|| {
            let sums = shared.sums.into_iter().map(|sums| sums.into_inner().unwrap_or_default());
            sums.collect()
        });
        Ok((digests, sums))
    }

    /// Counts what an earlier run has done as progress.
    pub(super) fn report_done(&self) {
        for (job, _) in self.jobs.iter().zip(self.done).filter(|(_, done)| done.is_some()) {
            self.progress.advance(plan::source_bytes(self.blueprint, self.source.tensors(), job));
        }
    }

    fn share(&self, queue: Queue) -> Shared {
        let shared = Shared {
            queue,
            sums: if self.error_report {
                let known = self.done.iter().map(|done| done.map(|done| done.sums));
                known.map(|sums| sums.map_or_else(OnceLock::new, OnceLock::from)).collect()
            } else {
                Vec::new()
            },
            frontiers: self.blueprint.files.iter().map(|_| Frontier::new()).collect(),
            dirty: Dirty::new(self.blueprint.files.len()),
            handed: Handed::default(),
            maxima: Maxima::new(self.source.tensors().len()),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
        };
        for (file, start, end) in of_no_job(self.blueprint) {
            shared.frontiers[file].add(start, end);
        }
        for (job, _) in self.jobs.iter().zip(self.done).filter(|(_, done)| done.is_some()) {
            self.advance_frontiers(&shared, job);
        }
        shared
    }

    /// The bytes of `job` are in their files.
    fn advance_frontiers(&self, shared: &Shared, job: &Job) {
        if self.follows {
            written(self.source, self.blueprint, job).advance(self.blueprint, &shared.frontiers);
        }
    }

    /// Hashes files, one after the other, as they are finished, and the tensors in them.
    fn follow(&self, shared: &Shared) -> Result<Option<Digests>> {
        let mut digests = Digests::none(self.blueprint);
        for (number, staged) in self.files.iter().enumerate() {
            match digest::follow_result(self.blueprint, number, staged, &shared.frontiers[number]) {
                Ok(Some(found)) => digests.add(number, found),
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
    fn work(&self, shared: &Shared, finished: &Sender<Finished>) {
        let patient = || !self.stop.load(Ordering::Relaxed) && !shared.failed.load(Ordering::Relaxed);
        let mut worker = Worker::default();
        while let Some(number) = shared.queue.next(patient) {
            let done = match self.run_job(shared, number, &mut worker) {
                Ok(done) => done,
                Err(error) => return shared.fail(error),
            };
            if let Some(slot) = shared.sums.get(number) {
                // A job runs once, so nobody else sets this cell.
                let _ = slot.set(done.sums);
            }
            if let Some(provenance) = self.provenance
                && let Err(error) = provenance.finished(&done)
            {
                return shared.fail(error);
            }
            shared.handed.finished(number);
            // Only closed when recording has failed, which ends the run anyway.
            let _ = finished.send(Finished::Job(done));
        }
        if !patient() {
            shared.halt();
        }
    }

    /// Returns what is to be recorded about the job.
    fn run_job(&self, shared: &Shared, number: usize, worker: &mut Worker) -> Result<Done> {
        let job = &self.jobs[number];
        let output = &self.blueprint.tensors[job.tensor];
        let piece = &output.pieces[job.piece];
        let tile_rows = tile_rows(self.source, output, job);
        if let Some(provenance) = self.provenance {
            provenance.begun(number);
        }
        let (tensor_scale, read_for_scale) =
            shared.maxima.tensor_scale(self.source, output, &mut worker.reader)?;
        worker.reader.begin(self.source, &unit(self.source, output, job))?;
        let copies = output.copies(piece, &self.source.tensors()[piece.source]);
        let refinement = shared.handed.of(number);
        let mut slab = Slab::new(output, job.first_row, tensor_scale, refinement);
        let mut sums = Sums::default();
        let mut start = job.source_rows.start;
        while start < job.source_rows.end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let end = job.source_rows.end.min(start + tile_rows);
            let tile = Tile { source: self.source, piece, rows: start..end };
            let of_errors = self.error_report.then_some(&mut sums);
            let bytes = if copies {
                worker.copy(&mut slab, &tile, of_errors)?
            } else {
                let bytes = worker.read(&tile, output.rounding)?;
                worker.encode(&mut slab, &tile, of_errors)?;
                bytes
            };
            if slab.is_full() || end == job.source_rows.end {
                slab.write(self.files, &shared.dirty, &mut worker.parts)?;
            }
            self.progress.advance(bytes);
            start = end;
        }
        let read = worker.reader.finish().wrapping_add(read_for_scale);
        self.advance_frontiers(shared, job);
        Ok(Done { job: number, sums, wrote: slab.wrote(), read })
    }
}

/// Source rows of a tile of `job`.
fn tile_rows(source: &Catalogue, output: &OutputTensor, job: &Job) -> usize {
    let piece = &output.pieces[job.piece];
    let (_, cols) = source.tensors()[piece.source].matrix();
    if piece.turn.is_none() {
        plan::whole_bands(TILE_ELEMS / cols.max(1), output.layout.band_rows())
    } else {
        job.source_rows.len()
    }
}

/// What `job` reads of its weight.
pub(super) fn unit(source: &Catalogue, output: &OutputTensor, job: &Job) -> Unit {
    let piece = &output.pieces[job.piece];
    let tile_rows = tile_rows(source, output, job);
    Unit { id: piece.source, rows: job.source_rows.clone(), tile_rows, unscaled: piece.unscaled }
}

/// What a job writes: rows of an output tensor, and how many of them it encodes at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) tensor: usize,
    pub(super) rows: Range<usize>,
    tile_rows: usize,
}

/// What `job` writes.
pub(super) fn written(source: &Catalogue, blueprint: &Blueprint, job: &Job) -> Written {
    let output = &blueprint.tensors[job.tensor];
    let piece = &output.pieces[job.piece];
    let (_, cols) = source.tensors()[piece.source].matrix();
    let rows = plan::output_rows(piece, job.source_rows.len(), cols);
    let tile_rows = if piece.turn.is_none() { tile_rows(source, output, job) } else { rows };
    Written { tensor: job.tensor, rows: job.first_row..job.first_row + rows, tile_rows }
}

impl Written {
    /// Where in which files the bytes are, in the order in which they are written.
    pub(super) fn runs<'a>(&self, blueprint: &'a Blueprint) -> impl Iterator<Item = (Placement, Runs)> + 'a {
        let output = &blueprint.tensors[self.tensor];
        slab::bands(output, self.rows.clone(), self.tile_rows).flat_map(|band| output.runs(band))
    }

    /// Whether a job can write this to `output`.
    pub(super) fn fits(&self, output: &OutputTensor) -> bool {
        let (rows, band) = (output.matrix(1.0).rows(), output.layout.band_rows());
        let is_band = |row: usize| row.is_multiple_of(band) || row == rows;
        let is_range = self.rows.start <= self.rows.end && self.rows.end <= rows;
        let is_tile =
            (1..=rows.max(TILE_ELEMS)).contains(&self.tile_rows) && is_band(self.tile_rows.min(rows));
        is_range && is_tile && is_band(self.rows.start) && is_band(self.rows.end)
    }

    /// Number of bytes.
    pub(super) fn len_bytes(&self, blueprint: &Blueprint) -> u64 {
        self.runs(blueprint).map(|(_, runs)| runs.len_bytes() as u64).sum()
    }

    /// The bytes are in their files.
    pub(super) fn advance(&self, blueprint: &Blueprint, frontiers: &[Frontier]) {
        for (placement, runs) in blueprint.tensors[self.tensor].runs(self.rows.clone()) {
            for (offset, range) in runs.pieces() {
                let start = placement.offset_bytes + offset;
                frontiers[placement.file].add(start, start + range.len() as u64);
            }
        }
    }
}

/// Bytes that no job writes: [`gaps`], and tensors that follow from headers.
pub(super) fn of_no_job(blueprint: &Blueprint) -> Vec<(usize, u64, u64)> {
    let known = blueprint.tensors.iter().filter(|tensor| tensor.content.is_some());
    let places = known.flat_map(|tensor| &tensor.placements);
    let places = places.map(|place| (place.file, place.offset_bytes, place.offset_bytes + place.len_bytes));
    gaps(blueprint).into_iter().chain(places).collect()
}

/// Bytes of each file that no tensor covers (header, padding): file, start, end.
pub(super) fn gaps(blueprint: &Blueprint) -> Vec<(usize, u64, u64)> {
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
