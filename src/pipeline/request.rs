//! What an unfinished result was asked for. Another run goes on with it only when it asks for the same.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::Catalogue;
use crate::plan::Blueprint;

/// Version of the layout of records; raised when it changes. Journals without one had the first.
pub(super) const LAYOUT: u32 = 2;

/// What a result is made from. A journal only goes on with the same request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Layout of the journal's records.
    #[serde(default)]
    pub layout: u32,
    /// Version of the tool.
    pub requant_version: String,
    /// MODEL: a path or a hub id with its commit.
    pub model: String,
    /// `--to`.
    pub format: String,
    /// For a hub id: what was asked for, and the commit it was then.
    pub pinned: Option<Pinned>,
    /// Names, lengths, digests and times of the source files.
    pub source_sha256: String,
    /// Everything about the result that follows from headers.
    pub blueprint_sha256: String,
    /// Number of jobs.
    pub jobs: usize,
    /// `--error-report`.
    #[serde(default)]
    pub error_report: bool,
    /// `--calibrate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
}

/// What a result is calibrated with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// `sequential` or `parallel`.
    pub mode: String,
    /// The texts, in their order: names and digests.
    pub texts: Vec<CalibrationText>,
    /// Tokens that are used.
    pub tokens: usize,
    /// Tokens of a window.
    pub context: usize,
}

/// A text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationText {
    /// Where it was.
    pub file: String,
    /// Digest of the file.
    pub sha256: String,
}

impl CalibrationRecord {
    /// Whether both give the same result: where the texts were does not count.
    fn is_same(&self, other: &Self) -> bool {
        let digests =
            |of: &Self| -> Vec<String> { of.texts.iter().map(|text| text.sha256.clone()).collect() };
        (&self.mode, self.tokens, self.context) == (&other.mode, other.tokens, other.context)
            && digests(self) == digests(other)
    }

    /// For people.
    fn said(&self) -> String {
        let texts: Vec<&str> = self.texts.iter().map(|text| text.file.as_str()).collect();
        let Self { mode, tokens, context, .. } = self;
        format!("{mode}, {tokens} tokens in windows of {context} from {}", texts.join(", "))
    }
}

/// A hub revision pinned to its commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// `org/name`.
    pub repo: String,
    /// The revision asked for.
    pub revision: String,
    /// What it was.
    pub commit: String,
}

/// Of names, lengths, digests and times of the files that hold tensors.
pub fn source_digest(source: &Catalogue) -> String {
    let mut files = Sha256::new();
    let mut used: Vec<usize> = source.tensors().iter().map(|tensor| tensor.file).collect();
    used.sort_unstable();
    used.dedup();
    for id in used {
        let file = &source.source().files()[id];
        files.update(format!("{:?}\n", (&file.name, file.len_bytes, &file.sha256, &file.modified)));
    }
    super::digest::hex(&files.finalize())
}

impl RequestRecord {
    /// Describes a conversion of `source` to what `blueprint` says.
    pub(super) fn new(
        source: &Catalogue,
        blueprint: &Blueprint,
        format: &str,
        pinned: Option<Pinned>,
        jobs: usize,
        error_report: bool,
    ) -> Self {
        let mut result = Sha256::new();
        for file in &blueprint.files {
            result.update(format!("{:?}\n", (&file.name, file.len_bytes, file.header.len())));
            result.update(&file.header);
        }
        for sidecar in &blueprint.sidecars {
            result.update(format!("{:?}\n", (&sidecar.name, sidecar.bytes.len())));
            result.update(&sidecar.bytes);
        }
        for tensor in &blueprint.tensors {
            let how = (tensor.codec.name(), tensor.layout.name(), tensor.rounding);
            let what = (&tensor.pieces, &tensor.scale_sources, &tensor.placements);
            result.update(format!("{how:?} {what:?}\n"));
            if let Some(importance) = &tensor.importance {
                result.update(format!("{} {}\n", importance.imatrix.sha256(), importance.name));
            }
            result.update(tensor.content.as_deref().unwrap_or_default());
        }
        Self {
            layout: LAYOUT,
            requant_version: env!("CARGO_PKG_VERSION").to_owned(),
            model: source.source().location(),
            format: format.to_ascii_lowercase(),
            pinned,
            source_sha256: source_digest(source),
            blueprint_sha256: super::digest::hex(&result.finalize()),
            jobs,
            error_report,
            calibration: None,
        }
    }

    /// Calibrated in this way.
    #[must_use]
    pub(super) fn calibrated(self, calibration: Option<CalibrationRecord>) -> Self {
        Self { calibration, ..self }
    }

    /// What `self`, asked for now, has other than the unfinished `earlier`.
    pub(super) fn difference(&self, earlier: &Self) -> Option<String> {
        let changed = |what: &str, then: &str, now: &str| Some(format!("{what} was {then}, now {now}"));
        if self.layout != earlier.layout {
            Some(
                "it was begun by another version of requant, whose journal this one does not read".to_owned(),
            )
        } else if self.model != earlier.model {
            changed("the model", &earlier.model, &self.model)
        } else if self.format != earlier.format {
            changed("--to", &earlier.format, &self.format)
        } else if self.pinned != earlier.pinned {
            let revision =
                |pinned: &Option<Pinned>| pinned.as_ref().map_or(String::new(), |p| p.revision.clone());
            changed("the revision", &revision(&earlier.pinned), &revision(&self.pinned))
        } else if self.requant_version != earlier.requant_version {
            changed("requant", &earlier.requant_version, &self.requant_version)
        } else if self.source_sha256 != earlier.source_sha256 {
            Some("files of the source have changed since".to_owned())
        } else if self.error_report != earlier.error_report {
            let said = |is_there: bool| if is_there { "given" } else { "not given" };
            changed("--error-report", said(earlier.error_report), said(self.error_report))
        } else if !self.is_calibrated_as(earlier) {
            let said =
                |of: &Self| of.calibration.as_ref().map_or("not given".into(), CalibrationRecord::said);
            changed("--calibrate", &said(earlier), &said(self))
        } else if *self != (Self { calibration: self.calibration.clone(), ..earlier.clone() }) {
            Some("its options were other ones".to_owned())
        } else {
            None
        }
    }

    fn is_calibrated_as(&self, earlier: &Self) -> bool {
        match (&self.calibration, &earlier.calibration) {
            (None, None) => true,
            (Some(own), Some(earlier)) => own.is_same(earlier),
            _ => false,
        }
    }

    /// Seeds the checks of records, so that neither zeros nor another request's records count.
    pub(super) fn key(&self) -> u64 {
        let digest = Sha256::digest(format!("{}{}", self.source_sha256, self.blueprint_sha256));
        digest.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes)) | 1
    }
}
