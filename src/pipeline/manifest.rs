//! The manifest: what a result was made from, by what, and the digest of everything in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Settings;
use super::digest::Digests;
use super::errors::ErrorReport;
use crate::checkpoint::Catalogue;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::plan::Blueprint;

/// Version of the layout below; raised when a reader would misunderstand.
const MANIFEST_VERSION: u32 = 1;

/// `OUTPUT.manifest.json`, or `requant.manifest.json` in a directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this file.
    pub manifest_version: u32,
    /// Version of the tool that wrote the result.
    pub requant_version: String,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// The format asked for.
    pub format: String,
    /// The rules that changed types of tensors, as a recipe that can be used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// Where the source was.
    pub source: String,
    /// Source files that were read.
    pub source_files: Vec<SourceRecord>,
    /// Whether the result is a directory that holds `files`.
    pub is_directory: bool,
    /// Every file of the result.
    pub files: Vec<FileRecord>,
    /// Every tensor of the result, each part on its own.
    pub tensors: Vec<TensorRecord>,
    /// How far the tensors are from their source, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_report: Option<ErrorReport>,
    /// How far the result is from its source, when that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<serde_json::Value>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Name in the checkpoint.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Digest: as the source states it, or of the bytes that were read.
    pub sha256: Option<String>,
}

/// A file of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name: in the output directory, or beside the manifest.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Digest of the whole file.
    pub sha256: String,
}

/// A stored tensor of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Name in the file.
    pub name: String,
    /// Type, as `requant plan` names it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Logical shape of the whole tensor, outermost dimension first.
    pub shape: Vec<usize>,
    /// Name of the file.
    pub file: String,
    /// Absolute offset in it.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// Digest of these bytes.
    pub sha256: String,
}

impl Manifest {
    pub(super) fn new(
        source: &Catalogue,
        blueprint: &Blueprint,
        output: &Path,
        settings: &Settings,
        digests: &Digests,
        witnessed: Option<BTreeMap<usize, String>>,
        error_report: Option<ErrorReport>,
    ) -> Self {
        let output_name = output.file_name().unwrap_or_default().to_string_lossy();
        let file_name = |file: usize| match blueprint.files[file].name.as_str() {
            "" => output_name.to_string(),
            name => name.to_owned(),
        };
        let used = witnessed.unwrap_or_else(|| {
            let used: BTreeSet<usize> = source.tensors().iter().map(|tensor| tensor.file).collect();
            used.into_iter().map(|id| (id, String::new())).collect()
        });
        let source_files = used.into_iter().map(|(id, witnessed)| {
            let file = &source.source().files()[id];
            let sha256 = if witnessed.is_empty() { file.sha256.clone() } else { Some(witnessed) };
            SourceRecord { name: file.name.clone(), bytes: file.len_bytes, sha256 }
        });
        let files = blueprint.files.iter().enumerate().map(|(id, file)| FileRecord {
            name: file_name(id),
            bytes: file.len_bytes,
            sha256: digests.files[id].clone(),
        });
        let sidecars = blueprint.sidecars.iter().map(|sidecar| FileRecord {
            name: sidecar.name.clone(),
            bytes: sidecar.bytes.len() as u64,
            sha256: super::digest::of(&sidecar.bytes),
        });
        let tensors = blueprint.tensors.iter().zip(&digests.parts).flat_map(|(tensor, digests)| {
            let parts = tensor.names.iter().zip(&tensor.placements).zip(digests);
            parts.map(|((name, placement), digest)| TensorRecord {
                name: name.clone(),
                type_name: tensor.type_name.clone(),
                shape: tensor.shape.clone(),
                file: file_name(placement.file),
                offset: placement.offset_bytes,
                bytes: placement.len_bytes,
                sha256: digest.clone(),
            })
        });
        Self {
            manifest_version: MANIFEST_VERSION,
            requant_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: settings.command.clone(),
            format: settings.format.clone(),
            recipe: settings.recipe.clone(),
            source: source.source().location(),
            source_files: source_files.collect(),
            is_directory: blueprint.is_directory,
            files: files.chain(sidecars).collect(),
            tensors: tensors.collect(),
            error_report,
            validation: None,
        }
    }

    /// The text of its file.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::Request(format!("the manifest cannot be written as JSON: {error}")))?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When it cannot be read, is not a manifest, or is of a later layout.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        Self::parse(&bytes, path)
    }

    /// Reads the manifest that has these `bytes`, from the file at `path`.
    ///
    /// # Errors
    /// When they are not a manifest, or one of a later layout.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::checkpoint(path.display().to_string(), format!("not a manifest: {error}"))
        })?;
        if manifest.manifest_version != MANIFEST_VERSION {
            let message = format!(
                "manifest_version: found {}, this requant reads {MANIFEST_VERSION}",
                manifest.manifest_version
            );
            return Err(Error::checkpoint(path.display().to_string(), message));
        }
        Ok(manifest)
    }
}

/// Whether the file at `path` is the one that `record` describes.
///
/// # Errors
/// When it is there and cannot be read.
pub(super) fn is_whole(record: &FileRecord, path: &Path) -> Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let file = Disk::default().open_to_read(path)?;
    let len_bytes = file.len_bytes()?;
    Ok(len_bytes == record.bytes && super::digest::range(&file, 0, len_bytes)? == record.sha256)
}
