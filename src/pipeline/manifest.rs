//! The manifest: what a result was made from, by what, and the digest of everything in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Settings;
use super::digest::Digests;
use super::errors::ErrorReport;
use super::refining::Damped;
use super::request::CalibrationRecord;
use super::{CARD, ModelRecord};
use crate::checkpoint::Catalogue;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::inside;
use crate::plan::Blueprint;
use crate::small::{self, shown};

/// Version of the layout below; raised when a reader would misunderstand.
const MANIFEST_VERSION: u32 = 1;
/// Most JSON values of a manifest; each stored tensor has eleven.
const MAX_VALUES: u64 = 20_000_000;

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
    /// The importance matrix that weighed errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<ImatrixRecord>,
    /// What it was calibrated with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// Matrices whose inputs the text said too little about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damped: Vec<Damped>,
    /// Where the source was.
    pub source: String,
    /// What the source says of itself, for the model card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelRecord>,
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

/// An importance matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixRecord {
    /// Where it was.
    pub file: String,
    /// Digest of the file.
    pub sha256: String,
    /// Tensors of the result that it was used for.
    pub tensors: usize,
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Pieces of text that were seen.
    pub chunks: u32,
}

impl ImatrixRecord {
    /// Of what `blueprint` uses, if it uses one.
    fn of(blueprint: &Blueprint) -> Option<Self> {
        let used = || blueprint.tensors.iter().filter_map(|tensor| tensor.importance.as_ref());
        let imatrix = &used().next()?.imatrix;
        Some(Self {
            file: imatrix.path().display().to_string(),
            sha256: imatrix.sha256().to_owned(),
            tensors: used().count(),
            datasets: imatrix.datasets.clone(),
            chunks: imatrix.chunks,
        })
    }
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

/// What a manifest says beside the files and tensors of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// The command line, word by word.
    pub(super) command: Vec<String>,
    /// The format asked for.
    pub(super) format: String,
    /// The rules as a recipe.
    pub(super) recipe: Option<String>,
    /// The importance matrix.
    #[serde(default)]
    pub(super) imatrix: Option<ImatrixRecord>,
    pub(super) calibration: Option<CalibrationRecord>,
    /// Where the source was.
    pub(super) source: String,
    #[serde(default)]
    pub(super) model: Option<ModelRecord>,
    /// Whether a directory gets a card.
    #[serde(default)]
    pub(super) has_card: bool,
    /// Source files that count.
    pub(super) source_files: Vec<SourceRecord>,
}

impl About {
    /// Of a conversion of `source`. `witnessed` are the digests of files that were proven to be what was read; without
    /// them those count that have tensors.
    pub(super) fn new(
        source: &Catalogue,
        blueprint: &Blueprint,
        settings: &Settings,
        witnessed: Option<BTreeMap<usize, String>>,
    ) -> Self {
        let used = witnessed.unwrap_or_else(|| {
            let used: BTreeSet<usize> = source.tensors().iter().map(|tensor| tensor.file).collect();
            used.into_iter().map(|id| (id, String::new())).collect()
        });
        let source_files = used.into_iter().map(|(id, witnessed)| {
            let file = &source.source().files()[id];
            let sha256 = if witnessed.is_empty() { file.sha256.clone() } else { Some(witnessed) };
            SourceRecord { name: file.name.clone(), bytes: file.len_bytes, sha256 }
        });
        Self {
            command: settings.command.clone(),
            format: settings.format.clone(),
            recipe: settings.recipe.clone(),
            imatrix: ImatrixRecord::of(blueprint),
            calibration: settings.calibration.clone(),
            source: source.source().location(),
            model: settings.model.clone(),
            has_card: settings.card.is_some(),
            source_files: source_files.collect(),
        }
    }
}

impl Manifest {
    /// Of the result at `output`. Without `digests` it says everything else.
    pub(super) fn new(
        about: About,
        blueprint: &Blueprint,
        output: &Path,
        digests: Option<&Digests>,
        error_report: Option<ErrorReport>,
    ) -> Self {
        let output_name = output.file_name().unwrap_or_default().to_string_lossy();
        let file_name = &|file: usize| match blueprint.files[file].name.as_str() {
            "" => output_name.to_string(),
            name => name.to_owned(),
        };
        let of_file = |id: usize| digests.map_or(String::new(), |digests| digests.files[id].clone());
        let of_part = &|tensor: usize, part: usize| {
            digests.map_or(String::new(), |digests| digests.parts[tensor][part].clone())
        };
        let files = blueprint.files.iter().enumerate().map(|(id, file)| FileRecord {
            name: file_name(id),
            bytes: file.len_bytes,
            sha256: of_file(id),
        });
        let sidecars = blueprint.sidecars.iter().map(|sidecar| FileRecord {
            name: sidecar.name.clone(),
            bytes: sidecar.bytes.len() as u64,
            sha256: super::digest::of(&sidecar.bytes),
        });
        let tensors = blueprint.tensors.iter().enumerate().flat_map(|(number, tensor)| {
            let parts = tensor.names.iter().zip(&tensor.placements).enumerate();
            parts.map(move |(part, (name, placement))| TensorRecord {
                name: name.clone(),
                type_name: tensor.type_name.clone(),
                shape: tensor.shape.clone(),
                file: file_name(placement.file),
                offset: placement.offset_bytes,
                bytes: placement.len_bytes,
                sha256: of_part(number, part),
            })
        });
        Self {
            manifest_version: MANIFEST_VERSION,
            requant_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: about.command,
            format: about.format,
            recipe: about.recipe,
            imatrix: about.imatrix,
            calibration: about.calibration,
            damped: Vec::new(),
            source: about.source,
            model: about.model,
            source_files: about.source_files,
            is_directory: blueprint.is_directory,
            files: files.chain(sidecars).collect(),
            tensors: tensors.collect(),
            error_report,
            validation: None,
        }
    }

    /// Whether it is that of a result of the same request, whatever the digests are.
    pub(super) fn is_of(&self, wanted: &Self, error_report: bool) -> bool {
        let about = |manifest: &Self| {
            let Self { requant_version, format, recipe, imatrix, calibration, source, is_directory, .. } =
                manifest.clone();
            (requant_version, format.to_ascii_lowercase(), recipe, imatrix, calibration, source, is_directory)
        };
        // A card follows from the result, and is planned only where another tool writes it.
        let has_planned_card = wanted.has(CARD);
        let files = |manifest: &Self| -> Vec<(String, u64)> {
            let files = manifest.files.iter().filter(|file| has_planned_card || file.name != CARD);
            files.map(|file| (file.name.clone(), file.bytes)).collect()
        };
        let tensors = |manifest: &Self| -> Vec<TensorRecord> {
            let without = |tensor: &TensorRecord| TensorRecord { sha256: String::new(), ..tensor.clone() };
            manifest.tensors.iter().map(without).collect()
        };
        let is_read = |wanted: &SourceRecord| {
            self.source_files.iter().any(|file| file.name == wanted.name && file.bytes == wanted.bytes)
        };
        about(self) == about(wanted)
            && files(self) == files(wanted)
            && tensors(self) == tensors(wanted)
            && wanted.source_files.iter().all(is_read)
            && self.error_report.is_some() == error_report
    }

    /// Whether there is a file of this name in the result.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }

    /// Lists a file that was written after the others.
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) {
        let (bytes, sha256) = (bytes.len() as u64, super::digest::of(bytes));
        self.files.push(FileRecord { name: name.to_owned(), bytes, sha256 });
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
        Self::parse(&small::read(path, small::MANIFEST)?, path)
    }

    /// Reads the manifest that has these `bytes`, from the file at `path`.
    ///
    /// # Errors
    /// When they are not a manifest, one of a later layout, or one that no run of this program writes.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let place = &path.display().to_string();
        small::check_json_up_to(place, bytes, MAX_VALUES)?;
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::checkpoint(place, format!("not a manifest: {}", small::brief(&error.to_string())))
        })?;
        if manifest.manifest_version != MANIFEST_VERSION {
            let message = format!(
                "manifest_version: found {}, this requant reads {MANIFEST_VERSION}",
                manifest.manifest_version
            );
            return Err(Error::checkpoint(place, message));
        }
        manifest.check().map_err(|message| Error::checkpoint(place, message))?;
        Ok(manifest)
    }

    /// What no run of this program writes: whoever follows the manifest would read other files than those of the
    /// result, or one of them again and again.
    fn check(&self) -> std::result::Result<(), String> {
        // Bytes of each file, and of its tensors.
        let mut lengths: HashMap<&str, (u64, u64)> = HashMap::new();
        let mut total = 0u64;
        for file in &self.files {
            let named = |what: &str| format!("file {}: {what}", shown(&file.name));
            if !inside::is_below(&file.name) {
                return Err(named("expected a name below the directory of the result"));
            }
            if !is_sha256(&file.sha256) {
                return Err(named("sha256 is no 64 hex digits"));
            }
            total = total.checked_add(file.bytes).ok_or_else(|| named("files have more than 2^64 bytes"))?;
            if lengths.insert(&file.name, (file.bytes, 0)).is_some() {
                return Err(named("is there twice"));
            }
        }
        for tensor in &self.tensors {
            let named =
                |what: &str| format!("tensor {} in {}: {what}", shown(&tensor.name), shown(&tensor.file));
            let Some((len_bytes, used)) = lengths.get_mut(tensor.file.as_str()) else {
                return Err(named("there is no such file in the manifest"));
            };
            if !is_sha256(&tensor.sha256) {
                return Err(named("sha256 is no 64 hex digits"));
            }
            if tensor.offset.checked_add(tensor.bytes).is_none_or(|end| end > *len_bytes) {
                return Err(named("lies beyond the end of the file"));
            }
            *used = used.saturating_add(tensor.bytes);
            if *used > *len_bytes {
                return Err(named("the tensors of this file overlap"));
            }
        }
        Ok(())
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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
