//! Executes a blueprint: reads, decodes, encodes and writes every job, then seals the result.
//!
//! Nothing appears under a final name before it is complete and on disk:
//!
//! 1. `staging`: files of exact size under temporary names, with their headers, or those of an
//!    unfinished run with its `journal`.
//! 2. `execute`: jobs on worker threads, each writing byte ranges of its own, while `digest` hashes
//!    what is finished, `writeback` records it, and `intake` brings the shards of a streamed source.
//! 3. A [`Judge`], if there is one, measures what is complete.
//! 4. `placing`: the manifest is written, everything is synced and sealed, and the temporary names become final.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::checkpoint::Catalogue;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::plan::{self, Blueprint};

mod conversion;
mod digest;
mod errors;
mod execute;
mod intake;
mod journal;
mod kept;
mod manifest;
mod maxima;
mod model_record;
mod names;
pub mod output;
mod placing;
mod provenance;
mod queue;
mod refining;
mod request;
mod shares;
mod slab;
mod space;
mod staging;
mod statements;
mod verify;
mod walk;
mod writeback;

use conversion::Conversion;

pub(crate) use errors::Sums;
pub use errors::{ErrorReport, TensorError};
pub use execute::peak_ram_bytes;
pub(crate) use journal::resumed_jobs;

pub use manifest::{FileRecord, Manifest, SourceRecord, TensorRecord};
pub use model_record::ModelRecord;
pub(crate) use names::INSIDE as MANIFEST_NAME;
pub use names::manifest_path;
pub(crate) use names::walk;
pub use refining::{Calibration, Damped, Desk, Keep, Refinement};
pub use request::{CalibrationRecord, CalibrationText, Pinned, RequestRecord, source_digest};
pub use shares::{
    Agreed, ArraySpan, Asked, Joined, Joining, Share, ShareOutcome, ShareState, Standing, StandingOfShare,
    agreed, convert_share, files_of_share, join, standing,
};
pub use space::{Need, OR_IGNORE_SPACE, allocated_bytes, check_space};
pub use verify::{Check, has_manifest, manifest_of, verify};

/// File name of the card of a result that is a directory.
pub const CARD: &str = "README.md";

/// Writes the card of a complete result from its manifest.
pub type Card = fn(&Manifest) -> String;

/// Receives what a long run has done so far. Called from several threads.
pub trait Progress: Sync {
    /// A stage begins: its name and how many bytes it will go through.
    fn stage(&self, name: &str, total_bytes: u64);
    /// So many bytes of the stage are done.
    fn advance(&self, bytes: u64);
    /// A shard is on its way, beside the stage.
    fn transfer(&self, _: &Transfer<'_>) {}
    /// So many pieces of work that an earlier run had finished are damaged on the disk, and are done again.
    fn damaged(&self, _: usize) {}
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
    /// What the source says of itself, for the manifest.
    pub model: Option<ModelRecord>,
    /// Writes the card of a directory; without it there is none but what the plan has.
    pub card: Option<Card>,
    /// How it is calibrated, if it is, for the manifest and the journal.
    pub calibration: Option<CalibrationRecord>,
    /// Measure how far what is written is from the source.
    pub error_report: bool,
    /// How often finished jobs are synced and recorded: what a kill can cost.
    pub sync_interval: Duration,
    /// What everything is written with.
    pub disk: Disk,
}

impl Settings {
    /// The usual [`Settings::sync_interval`].
    pub const SYNC_INTERVAL: Duration = Duration::from_millis(250);
}

/// Measures a complete result before it gets its final name.
pub trait Judge {
    /// Measures what is at `complete`, a directory or the (first) file; the manifest keeps what is found.
    ///
    /// # Errors
    /// When it cannot be measured. Nothing is lost then, and nothing has its final name.
    fn judge(&self, complete: &Path) -> Result<serde_json::Value>;
}

/// What a conversion did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Bytes of source tensors read.
    pub bytes_in: u64,
    /// Jobs that an earlier run had done and whose bytes were found damaged: they were done again.
    pub redone: usize,
    /// The manifest of the result.
    pub manifest_path: PathBuf,
    /// Its content.
    pub manifest: Manifest,
}

/// Bytes that an unfinished run at `output` has on the disk already.
pub fn begun_bytes(blueprint: &Blueprint, output: &Path) -> u64 {
    let names = names::Names::new(blueprint, output);
    names.pairs.iter().map(|pair| allocated_bytes(&pair.temporary)).sum()
}

/// What an unfinished run at `output` was asked for, if there is one that can be gone on with.
pub fn unfinished(output: &Path) -> Option<RequestRecord> {
    journal::Journal::peek(&names::journal(output))
}

/// What takes part in a conversion beside the plan.
#[derive(Clone, Copy, Default)]
pub struct Helpers<'a> {
    /// Measures the complete result.
    pub judge: Option<&'a dyn Judge>,
    /// Encodes some of the jobs.
    pub calibration: Option<&'a dyn Calibration>,
}

/// As [`convert_with`] without help.
///
/// # Errors
/// As there.
pub fn convert(
    source: &Catalogue,
    blueprint: &Blueprint,
    output: &Path,
    settings: &Settings,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome> {
    convert_with(source, blueprint, output, settings, Helpers::default(), progress, stop)
}

/// Writes the result that `blueprint` describes at `output`, or goes on with an unfinished one.
///
/// # Errors
/// When `output` exists and may not be replaced, when another run is writing it, when an unfinished
/// run of another request is there, when a file cannot be read or written, or
/// [`Error::Interrupted`] once `stop` is set. Whatever the error, there is nothing new under the
/// final name; what is done is kept for the same request, unless it came from a broken source.
pub fn convert_with(
    source: &Catalogue,
    blueprint: &Blueprint,
    output: &Path,
    settings: &Settings,
    helpers: Helpers<'_>,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let Helpers { judge, calibration } = helpers;
    let jobs = plan::jobs(blueprint, source.tensors());
    let all = vec![true; jobs.len()];
    let pinned = settings.pinned.clone();
    let request =
        RequestRecord::new(source, blueprint, &settings.format, pinned, jobs.len(), settings.error_report)
            .calibrated(settings.calibration.clone());
    let (disk, path) = (settings.disk.clone(), names::walk(output));
    let keep = || Keep { disk, path, request: serde_json::to_value(&request).unwrap_or_default() };
    let conversion = Conversion::whole(source, blueprint, settings, progress, stop, (&jobs, &all))
        .calibrated(calibration.map(|calibration| (calibration, keep())));
    let Settings { force, restart, .. } = *settings;
    let asked =
        staging::Request { disk: &settings.disk, blueprint, output, record: &request, force, restart };
    let (stage, manifest, redone) = match staging::Stage::open(&asked, progress)? {
        staging::Opened::Complete(stage, manifest) => (stage, *manifest, 0),
        staging::Opened::Work(mut stage, begun) => {
            match sealed(&conversion, judge, output, &mut stage, begun) {
                Ok((manifest, redone)) => (stage, manifest, redone),
                Err(error) => {
                    if can_go_on(&error) {
                        stage.keep();
                    }
                    return Err(error);
                }
            }
        }
    };
    if let Some(supply) = source.source().supply() {
        supply.finish()?;
    }
    let manifest_path = stage.place()?;
    stage.close()?;
    Ok(Outcome { bytes_in: bytes_read(source, blueprint), redone, manifest_path, manifest })
}

/// Does what `begun` has not done, and seals the result.
fn sealed(
    conversion: &Conversion<'_>,
    judge: Option<&dyn Judge>,
    output: &Path,
    stage: &mut staging::Stage,
    begun: staging::Begun,
) -> Result<(Manifest, usize)> {
    let &Conversion { source, blueprint, settings, progress, .. } = conversion;
    let staging::Begun { mut journal, done } = begun;
    let mut executed = conversion.execute(stage.files(), &mut journal, done)?;
    // All of it is done and recorded: whatever happens now, the next run goes on from here.
    stage.keep();
    let witnessed = executed.witnessed()?;
    let about = manifest::About::new(source, blueprint, settings, witnessed);
    let errors = executed.sums.map(|sums| {
        let tensors = conversion.jobs.iter().map(|job| job.tensor);
        ErrorReport::new(blueprint, tensors, &sums)
    });
    let mut manifest = Manifest::new(about, blueprint, output, executed.digests.as_ref(), errors);
    manifest.damped = conversion.damped();
    if let Some(judge) = judge {
        // What is measured may come through the same spool once more.
        if let Some(supply) = source.source().supply() {
            supply.finish()?;
        }
        progress.stage("validate", 0);
        manifest.validation = Some(judge.judge(&stage.view()?)?);
        stage.unview()?;
    }
    if let Some(card) = settings.card {
        stage.add_card(&mut manifest, card)?;
    }
    progress.stage("sync", 0);
    stage.seal(&manifest, &mut journal)?;
    Ok((manifest, executed.redone))
}

/// Whether the same command may succeed later with what is done: not if the source is broken.
fn can_go_on(error: &Error) -> bool {
    match error {
        Error::Interrupted | Error::Hub { .. } | Error::Changed { .. } | Error::Request(_) => true,
        // A source that ends early is not the one that was planned with.
        Error::Io { source, .. } => source.kind() != std::io::ErrorKind::UnexpectedEof,
        _ => false,
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
