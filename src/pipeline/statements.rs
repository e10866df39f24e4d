//! What is written down about the files of a local source: records of a download, links of a cache, and manifests
//! of results that are converted again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::manifest::Manifest;
use crate::source::{ContentDigest, LocalDirectory, Source, Stated, stated};

/// What every manifest is called, at the end.
const MANIFEST: &str = "manifest.json";
/// What a manifest that lies in the directory it describes is called, at the start.
const INSIDE: &str = "requant.";
/// How much later than what describes it a file may have been written and still be the one that was described:
/// what `huggingface_hub` allows.
const SLACK: Duration = Duration::from_secs(1);
/// Longest manifest that is looked at.
const MAX_BYTES: u64 = 256 << 20;

/// What manifests state, read once.
pub(super) struct Statements(Vec<(String, Stated)>);

impl Statements {
    /// Reads the manifests that describe files of `local`.
    pub(super) fn read(local: &LocalDirectory) -> Self {
        let mut statements = Vec::new();
        for (manifest, by) in manifests(local.root()) {
            let described = manifest.files.into_iter().filter(|record| local.find(&record.name).is_some());
            statements.extend(described.filter_map(|record| {
                let digest = ContentDigest::from_hex(&record.sha256)?;
                Some((record.name, Stated { digest, by: by.clone() }))
            }));
        }
        Self(statements)
    }

    /// Everything that is stated about file number `file`. A small file that was written after it was described
    /// counts as edited on purpose, and nothing is stated about it.
    pub(super) fn about(&self, local: &LocalDirectory, file: usize, is_weights: bool) -> Vec<Stated> {
        let described = &local.files()[file];
        let of_manifests = self.0.iter().filter(|(name, _)| *name == described.name);
        let all = stated(local, file).into_iter().chain(of_manifests.map(|(_, stated)| stated.clone()));
        all.filter(|stated| is_weights || !is_later(described.modified, &stated.by)).collect()
    }
}

/// Manifests that describe files directly in `root`.
fn manifests(root: &Path) -> impl Iterator<Item = (Manifest, PathBuf)> {
    let names = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let inside = names.filter(|path| name(path).ends_with(MANIFEST));
    let inside = inside.filter_map(|path| {
        let manifest = read(&path)?;
        (!manifest.is_directory || name(&path).starts_with(INSIDE)).then_some((manifest, path))
    });
    let beside = super::manifest_path(root);
    let beside = read(&beside).filter(|manifest| manifest.is_directory).map(|manifest| (manifest, beside));
    inside.chain(beside)
}

/// A file that is no manifest states nothing.
fn read(path: &Path) -> Option<Manifest> {
    let is_short = path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_BYTES);
    if is_short { Manifest::read(path).ok() } else { None }
}

fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn is_later(modified: Option<SystemTime>, than: &Path) -> bool {
    let written = than.metadata().and_then(|metadata| metadata.modified()).ok();
    modified.zip(written).is_some_and(|(modified, written)| modified > written + SLACK)
}
