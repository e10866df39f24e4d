//! Executes a blueprint: reads, decodes, encodes and writes every job, then seals the result.
//!
//! Nothing appears under a final name before it is complete and on disk:
//!
//! 1. `staging`: files of exact size under temporary names, with their headers.
//! 2. `execute`: jobs on worker threads, each writing byte ranges of its own, while
//!    `digest` hashes what is finished.
//! 3. The manifest is written, everything is synced, and the temporary names become final.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::plan::{self, Blueprint};

mod digest;
mod execute;
mod frontier;
mod manifest;
mod staging;
mod verify;
mod writeback;

pub use execute::peak_ram_bytes;
pub use manifest::{FileRecord, Manifest, SourceRecord, TensorRecord, manifest_path};
pub use verify::{Check, verify};

/// Receives what a long run has done so far. Called from several threads.
pub trait Progress: Sync {
    /// A stage begins: its name and how many bytes it will go through.
    fn stage(&self, name: &str, total_bytes: u64);
    /// So many bytes of the stage are done.
    fn advance(&self, bytes: u64);
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Worker threads.
    pub threads: usize,
    /// Replace an existing output.
    pub force: bool,
    /// The command, for the manifest.
    pub command: Vec<String>,
    /// The value of `--to`, for the manifest.
    pub format: String,
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

/// Writes the result that `blueprint` describes at `output`.
///
/// # Errors
/// When `output` exists and may not be replaced, when another run is writing it, when a file
/// cannot be read or written, or [`Error::Interrupted`] once `stop` is set. Whatever the
/// error, there is nothing new under the final name.
pub fn convert(
    source: &Checkpoint,
    blueprint: &Blueprint,
    output: &Path,
    settings: &Settings,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let stage = staging::Stage::create(blueprint, output, settings.force)?;
    let jobs = plan::jobs(blueprint, source.tensors());
    let bytes_in = bytes_read(source, blueprint);
    progress.stage("convert", bytes_in);
    let run = execute::Run { source, blueprint, jobs: &jobs, files: stage.files(), progress, stop };
    let digests = run.execute(settings.threads)?;
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    progress.stage("sync", 0);
    let manifest = Manifest::new(source, blueprint, output, settings, &digests);
    let manifest_path = stage.commit(&manifest, stop)?;
    Ok(Outcome { bytes_in, manifest_path, manifest })
}

/// Bytes of the source tensors, scales included, that the pieces of `blueprint` read.
fn bytes_read(source: &Checkpoint, blueprint: &Blueprint) -> u64 {
    let mut used = vec![false; source.tensors().len()];
    for piece in blueprint.tensors.iter().flat_map(|tensor| &tensor.pieces) {
        used[piece.source] = true;
        if let Some(scale) = &source.tensors()[piece.source].scale {
            used[scale.tensor] = true;
        }
    }
    let tensors = source.tensors().iter().zip(used);
    tensors.filter(|(_, used)| *used).map(|(tensor, _)| tensor.len_bytes).sum()
}
