//! Runs jobs on worker threads.
//!
//! A worker takes the next job and walks it in tiles that fit the cache: read, decode to f32,
//! round, transpose if asked, encode. Encoded tiles collect in a slab, which is written at an
//! offset of its own: few large writes, since writers of one file wait for each other. Memory is
//! a few tiles and a slab per worker, whatever the size of tensor or model.
//!
//! Beside the workers, one thread hashes the files, one syncs and keeps the journal, and for a
//! streamed source one brings the shards.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock};

use rayon::ThreadPoolBuilder;
use requant_formats::codec;

use super::Progress;
use super::digest::{self, Digests};
use super::intake::Intake;
use super::journal::Journal;
use super::queue::Queue;
use super::staging::StagedFile;
use super::writeback::{self, Dirty};
use crate::checkpoint::{Checkpoint, TileReader};
use crate::error::{Error, Result};
use crate::frontier::Frontier;
use crate::plan::{self, Blueprint, Job, OutputTensor, Rounding};

/// Weights in a tile, at most (a single longer row makes a longer tile): 1 MiB of f32.
const TILE_ELEMS: usize = 1 << 18;

/// Weights in a slab: 2.4 MB in a 4-bit format.
const SLAB_ELEMS: usize = 1 << 22;

/// Memory beside the tiles: headers, catalogue, code, allocator.
const BASE_RAM_BYTES: u64 = 64 << 20;

/// Upper bound on resident memory of a run: what `requant plan` states.
pub fn peak_ram_bytes(source: &Checkpoint, blueprint: &Blueprint, threads: usize) -> u64 {
    let headers: u64 = blueprint.files.iter().map(|file| file.header.len() as u64).sum();
    let catalogue = 1024 * (source.tensors().len() + blueprint.tensors.len()) as u64;
    let widest = source.tensors().iter().map(|tensor| tensor.matrix().1).max().unwrap_or(0);
    // f32 tile, its transposed copy and source bytes: at most 4 bytes a weight each.
    let tiles = 12 * widest.max(TILE_ELEMS) as u64;
    let slab = blueprint.tensors.iter().map(slab_bytes).max().unwrap_or(0);
    BASE_RAM_BYTES + 3 * headers + catalogue + threads as u64 * (tiles + slab)
}

/// Everything a run needs.
pub(super) struct Run<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) blueprint: &'a Blueprint,
    pub(super) jobs: &'a [Job],
    /// For each job whether an earlier run has done it.
    pub(super) done: &'a [bool],
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
    frontiers: Vec<Frontier>,
    dirty: Dirty,
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
    /// Runs every job of `queue` that is not done and returns the digests of the result.
    pub(super) fn execute(&self, threads: usize, queue: Queue, journal: &mut Journal) -> Result<Digests> {
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
        Ok(Digests { files, parts: parts.collect() })
    }

    /// Counts what an earlier run has done as progress.
    pub(super) fn report_done(&self) {
        for (job, _) in self.jobs.iter().zip(self.done).filter(|(_, done)| **done) {
            let tensor = &self.source.tensors()[self.blueprint.tensors[job.tensor].pieces[job.piece].source];
            let row_bytes = tensor.matrix().1 * tensor.dtype.size_bytes();
            self.progress.advance((job.source_rows.len() * row_bytes) as u64);
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
            frontiers: self.blueprint.files.iter().map(|_| Frontier::new()).collect(),
            dirty: Dirty::new(self.blueprint.files.len()),
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
        for (file, offset, len) in plan::destinations(output, job.first_row, rows) {
            shared.frontiers[file].add(offset, offset + len);
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
    fn work(&self, shared: &Shared, finished: &Sender<usize>) {
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
            if let Err(error) = self.run_job(shared, &self.jobs[number], &mut worker) {
                return shared.fail(error);
            }
            // Only closed when recording has failed, which ends the run anyway.
            let _ = finished.send(number);
        }
        if !patient() {
            shared.halt();
        }
    }

    fn run_job(&self, shared: &Shared, job: &Job, worker: &mut Worker) -> Result<()> {
        let output = &self.blueprint.tensors[job.tensor];
        let piece = &output.pieces[job.piece];
        let (_, cols) = self.source.tensors()[piece.source].matrix();
        let tile_rows =
            if piece.transposed { job.source_rows.len() } else { (TILE_ELEMS / cols.max(1)).max(1) };
        let mut slab = Slab::new(output, job.first_row);
        let mut start = job.source_rows.start;
        while start < job.source_rows.end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let end = job.source_rows.end.min(start + tile_rows);
            let bytes = worker.reader.read(self.source, piece.source, start..end, &mut worker.tile)?;
            if piece.transposed {
                transpose(&worker.tile, end - start, cols, &mut worker.transposed);
                std::mem::swap(&mut worker.tile, &mut worker.transposed);
            }
            worker.round(output.rounding)?;
            slab.encode(&worker.tile, &mut worker.parts);
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
        Ok(())
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

/// Buffers of one worker, reused from tile to tile.
#[derive(Default)]
struct Worker {
    reader: TileReader,
    tile: Vec<f32>,
    transposed: Vec<f32>,
    /// Encoded bytes of the slab, by part.
    parts: Vec<Vec<u8>>,
}

impl Worker {
    /// Gives the tile the precision that the encoder is to see.
    fn round(&mut self, rounding: Rounding) -> Result<()> {
        match rounding {
            Rounding::Exact => {}
            Rounding::Bf16 => codec::round_to_bf16(&mut self.tile),
            Rounding::F16 => {
                let half = codec::find("F16").ok_or_else(|| Error::Request("codec F16 is missing".into()))?;
                let mut bytes = vec![0; 2 * self.tile.len()];
                half.encode(&self.tile, &mut [&mut bytes]);
                half.decode(&[&bytes], &mut self.tile);
            }
        }
        Ok(())
    }
}

/// Encoded rows on their way to the file. The bytes are in [`Worker::parts`].
struct Slab<'a> {
    output: &'a OutputTensor,
    /// First row that is not yet written.
    first_row: u64,
    /// Rows encoded since.
    rows: u64,
}

impl<'a> Slab<'a> {
    fn new(output: &'a OutputTensor, first_row: u64) -> Self {
        Self { output, first_row, rows: 0 }
    }

    fn is_full(&self) -> bool {
        self.rows * self.output.row_len_elems() as u64 >= SLAB_ELEMS as u64
    }

    /// Encodes whole rows at the end of the slab.
    fn encode(&mut self, tile: &[f32], parts: &mut Vec<Vec<u8>>) {
        let codec = self.output.codec;
        parts.resize_with(codec.parts().len().max(parts.len()), Vec::new);
        if self.rows == 0 {
            parts.iter_mut().for_each(Vec::clear);
        }
        let mut ends = Vec::with_capacity(codec.parts().len());
        for (number, part) in parts.iter_mut().take(codec.parts().len()).enumerate() {
            let start = part.len();
            part.resize(start + codec::part_len_bytes(codec, number, tile.len() as u64) as usize, 0);
            ends.push(&mut part[start..]);
        }
        codec.encode(tile, &mut ends);
        self.rows += (tile.len() / self.output.row_len_elems()) as u64;
    }

    /// Writes what was encoded and starts afresh.
    fn write(&mut self, files: &[StagedFile], dirty: &Dirty, parts: &mut [Vec<u8>]) -> Result<()> {
        let destinations = plan::destinations(self.output, self.first_row, self.rows);
        for ((file, offset, _), part) in destinations.into_iter().zip(parts) {
            let staged = &files[file];
            staged.file.write_all_at(part, offset).map_err(Error::io(&staged.path, "write"))?;
            dirty.mark(file);
            part.clear();
        }
        self.first_row += self.rows;
        self.rows = 0;
        Ok(())
    }
}

/// Most bytes that a slab of `output` holds: a tile may go past [`SLAB_ELEMS`].
fn slab_bytes(output: &OutputTensor) -> u64 {
    let elems = (SLAB_ELEMS + TILE_ELEMS.max(output.row_len_elems())) as u64;
    (0..output.codec.parts().len()).map(|part| codec::part_len_bytes(output.codec, part, elems)).sum()
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

/// `[rows, cols]` to `[cols, rows]`.
fn transpose(matrix: &[f32], rows: usize, cols: usize, transposed: &mut Vec<f32>) {
    transposed.clear();
    transposed.resize(rows * cols, 0.0);
    for (row, values) in matrix.chunks_exact(cols).enumerate() {
        for (col, &value) in values.iter().enumerate() {
            transposed[col * rows + row] = value;
        }
    }
}
