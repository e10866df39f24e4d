//! Executes a blueprint: reads, decodes, encodes and writes every job, then seals the result.
//!
//! Nothing appears under a final name before it is complete and on disk:
//!
//! 1. `staging`: files of exact size under temporary names, with their headers, or those of an
//!    unfinished run with its `journal`.
//! 2. `execute`: jobs on worker threads, each writing byte ranges of its own, while `digest` hashes
//!    what is finished, `writeback` records it, and `intake` brings the shards of a streamed source.
//! 3. The manifest is written, everything is synced, and the temporary names become final.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};
use crate::plan::{self, Blueprint};
use crate::source::Supply;

mod digest;
mod errors;
mod execute;
mod intake;
mod journal;
mod manifest;
mod maxima;
pub mod output;
mod queue;
mod slab;
mod space;
mod staging;
mod verify;
mod writeback;

pub use errors::{ErrorReport, TensorError};
pub use execute::peak_ram_bytes;
pub use journal::{Pinned, RequestRecord};
pub use manifest::{FileRecord, Manifest, SourceRecord, TensorRecord, manifest_path};
pub use space::{Need, OR_IGNORE_SPACE, allocated_bytes, check_space};
pub use verify::{Check, has_manifest, verify};

/// Receives what a long run has done so far. Called from several threads.
pub trait Progress: Sync {
    /// A stage begins: its name and how many bytes it will go through.
    fn stage(&self, name: &str, total_bytes: u64);
    /// So many bytes of the stage are done.
    fn advance(&self, bytes: u64);
    /// A shard is on its way, beside the stage.
    fn transfer(&self, _: &Transfer<'_>) {}
}

/// What has come of a streamed source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer<'a> {
    /// The file.
    pub name: &'a str,
    /// It is number so many, from 1 ...
    pub number: usize,
    /// ... of so many.
    pub files: usize,
    /// Bytes that came since the last call.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Bytes of files in the spool, this one included.
    pub held_bytes: u64,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Worker threads.
    pub threads: usize,
    /// Replace an existing output.
    pub force: bool,
    /// Throw away what an unfinished run has left instead of going on with it.
    pub restart: bool,
    /// The hub revision of a streamed source, for the journal.
    pub pinned: Option<Pinned>,
    /// The command, for the manifest.
    pub command: Vec<String>,
    /// The value of `--to`, for the manifest.
    pub format: String,
    /// The rules of the plan as a recipe, for the manifest.
    pub recipe: Option<String>,
    /// Measure how far what is written is from the source.
    pub error_report: bool,
}

/// What a conversion did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Bytes of source tensors read.
    pub bytes_in: u64,
    /// The manifest beside the result.
    pub manifest_path: PathBuf,
    /// Its content.
    pub manifest: Manifest,
}

/// Bytes that an unfinished run at `output` has on the disk already.
pub fn begun_bytes(blueprint: &Blueprint, output: &Path) -> u64 {
    staging::temporary_paths(blueprint, output).iter().map(|path| allocated_bytes(path)).sum()
}

/// What an unfinished run at `output` was asked for, if there is one that can be gone on with.
pub fn unfinished(output: &Path) -> Option<RequestRecord> {
    journal::Journal::peek(&staging::journal_path(output))
}

/// Writes the result that `blueprint` describes at `output`, or goes on with an unfinished one.
///
/// # Errors
/// When `output` exists and may not be replaced, when another run is writing it, when an unfinished
/// run of another request is there, when a file cannot be read or written, or
/// [`Error::Interrupted`] once `stop` is set. Whatever the error, there is nothing new under the
/// final name; what is done is kept for the same request, unless it came from a broken source.
pub fn convert(
    source: &Catalogue,
    blueprint: &Blueprint,
    output: &Path,
    settings: &Settings,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let jobs = plan::jobs(blueprint, source.tensors());
    let conversion = Conversion { source, blueprint, output, settings, progress, stop, jobs: &jobs };
    let pinned = settings.pinned.clone();
    let request =
        RequestRecord::new(source, blueprint, &settings.format, pinned, jobs.len(), settings.error_report);
    let (mut stage, begun) =
        staging::Stage::open(blueprint, output, &request, settings.force, settings.restart)?;
    let result = conversion.run(&mut stage, begun);
    if result.as_ref().err().is_some_and(can_go_on) {
        stage.keep();
    }
    result
}

/// Whether the same command may succeed later with what is done: not if the source is broken.
fn can_go_on(error: &Error) -> bool {
    match error {
        Error::Interrupted | Error::Hub { .. } => true,
        Error::Io { action, .. } => *action != "read",
        _ => false,
    }
}

/// The arguments of [`convert`], and the jobs they amount to.
struct Conversion<'a> {
    source: &'a Catalogue,
    blueprint: &'a Blueprint,
    output: &'a Path,
    settings: &'a Settings,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    jobs: &'a [plan::Job],
}

impl Conversion<'_> {
    /// Does what `begun` has not done, and makes the result final.
    fn run(&self, stage: &mut staging::Stage, begun: staging::Begun) -> Result<Outcome> {
        let Self { source, blueprint, jobs, progress, stop, .. } = *self;
        let staging::Begun { mut journal, done, sums } = begun;
        let supply = source.source().supply();
        let schedule = supply.map_or_else(plan::Schedule::default, |supply| self.schedule(supply, &done));
        let intake = supply.map(|supply| intake::Intake::new(source.source(), supply, &schedule));
        let at_once = (0..jobs.len()).filter(|&job| supply.is_none() && !done[job]).collect();
        let queue = queue::Queue::new(at_once, &schedule.needs);
        let bytes_in = bytes_read(source, blueprint);
        progress.stage("convert", bytes_in);
        let (intake, files, done) = (intake.as_ref(), stage.files(), done.as_slice());
        let sums = self.settings.error_report.then_some(sums.as_slice());
        let run = execute::Run { source, blueprint, jobs, done, sums, intake, files, progress, stop };
        run.report_done();
        // A thread without a job would only look for one.
        let threads = self.settings.threads.min(jobs.len().max(1));
        let (digests, errors) = run.execute(threads, queue, &mut journal)?;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        progress.stage("sync", 0);
        let manifest = Manifest::new(source, blueprint, self.output, self.settings, &digests, errors);
        let manifest_path = stage.commit(&manifest, &mut journal, stop)?;
        if let Some(supply) = supply {
            supply.finish()?;
        }
        Ok(Outcome { bytes_in, manifest_path, manifest })
    }

    /// When the files of a streamed source come.
    fn schedule(&self, supply: &dyn Supply, done: &[bool]) -> plan::Schedule {
        plan::schedule(
            self.blueprint,
            self.source.tensors(),
            self.jobs,
            |job| !done[job],
            |file| supply.room_bytes(file),
            supply.limit_bytes(),
            |file, range| supply.is_kept(file, range),
        )
    }
}

/// Bytes of the source tensors, scales included, that the pieces of `blueprint` read.
fn bytes_read(source: &Catalogue, blueprint: &Blueprint) -> u64 {
    let mut used = vec![false; source.tensors().len()];
    for piece in blueprint.tensors.iter().flat_map(|tensor| &tensor.pieces) {
        used[piece.source] = true;
        for &other in source.tensors()[piece.source].companions() {
            used[other] = true;
        }
    }
    let tensors = source.tensors().iter().zip(used);
    tensors.filter(|(_, used)| *used).map(|(tensor, _)| tensor.len_bytes).sum()
}
