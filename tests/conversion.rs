//! Converts through the library, as every test here does.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use requant::Result;
use requant::disk::Disk;
use requant::opened::Opened;
use requant::pipeline::{self, Outcome, Progress, Settings};
use requant::plan::{self, Options};
use sha2::{Digest, Sha256};

/// Says nothing.
pub(crate) struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// The repository's fixtures.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The trained model.
pub(crate) fn model() -> PathBuf {
    fixtures().join("tiny-deepseek-v3")
}

pub(crate) fn open(directory: &Path) -> Result<Opened> {
    Opened::open(directory)
}

/// Settings of a run with so many threads.
pub(crate) fn settings(format: &str, threads: usize) -> Settings {
    Settings {
        threads,
        force: false,
        restart: false,
        pinned: None,
        command: vec!["test".into()],
        format: format.into(),
        recipe: None,
        model: None,
        card: None,
        calibration: None,
        error_report: false,
        sync_interval: Settings::SYNC_INTERVAL,
        disk: Disk::default(),
    }
}

/// Converts `model` to `output`.
pub(crate) fn convert(model: &Path, format: &str, threads: usize, output: &Path) -> Result<Outcome> {
    convert_with(model, &settings(format, threads), &Options::default(), output, &Silent)
}

pub(crate) fn convert_with(
    model: &Path,
    settings: &Settings,
    options: &Options,
    output: &Path,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let source = open(model)?;
    let blueprint = plan::blueprint(&source, &settings.format, options)?;
    pipeline::convert(&source, &blueprint, output, settings, progress, &AtomicBool::new(false))
}

/// Lower-case hex digest.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
