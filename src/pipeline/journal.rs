//! The journal: which jobs of an unfinished result are done and on the disk.
//!
//! ```text
//! OUTPUT.journal   one line of JSON, the request; then a record for each finished job, all little-endian:
//!                    number     u32    the number of jobs itself is the seal: final names were about to be given
//!                    wrote      u128   fingerprint of the bytes that the job wrote
//!                    read       u128   fingerprint of the bytes of the source that it was made from
//!                    sums     4 f64    its part of the error report, if there is to be one
//!                    check      u128   fingerprint of the fields before it, seeded with the request's key
//! ```
//!
//! The first line is written under a temporary name and synced, so it is whole or not there.
//! Records are appended after the bytes they speak of were synced. Reading stops at the first torn
//! record: the jobs behind it are done again, with the same result.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::errors::Sums;
use crate::checkpoint::Catalogue;
use crate::disk::{Appender, Disk, parent_of};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::plan::Blueprint;
use crate::small;

/// Version of the layout of records; raised when it changes. Journals without one had the first.
const LAYOUT: u32 = 2;
/// Bytes of a record's number and its two fingerprints.
const FIELDS_BYTES: usize = 4 + 16 + 16;
/// As many as the largest model has; a larger number is no journal's.
const MOST_JOBS: usize = 1 << 20;
/// Bytes of a record's check.
const CHECK_BYTES: usize = 16;

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
        let mut files = Sha256::new();
        let mut used: Vec<usize> = source.tensors().iter().map(|tensor| tensor.file).collect();
        used.sort_unstable();
        used.dedup();
        for id in used {
            let file = &source.source().files()[id];
            files.update(format!("{:?}\n", (&file.name, file.len_bytes, &file.sha256, &file.modified)));
        }
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
            source_sha256: super::digest::hex(&files.finalize()),
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
    fn key(&self) -> u64 {
        let digest = Sha256::digest(format!("{}{}", self.source_sha256, self.blueprint_sha256));
        digest.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes)) | 1
    }
}

/// An open journal.
pub(super) struct Journal {
    file: Appender,
    key: u64,
    jobs: usize,
    has_sums: bool,
}

/// A job whose bytes are in their files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Done {
    /// Its number.
    pub(super) job: usize,
    /// Its part of the error report; zeros when there is none.
    pub(super) sums: Sums,
    /// Fingerprint of the bytes that it wrote.
    pub(super) wrote: u128,
    /// Fingerprint of the bytes of the source that it was made from.
    pub(super) read: u128,
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    /// For each job what is recorded about it, if it is done.
    pub(super) done: Vec<Option<Done>>,
    /// The files were about to get their final names, and some may have them: the fingerprint of their manifest.
    pub(super) sealed: Option<u128>,
}

impl Journal {
    /// The request of the journal at `path`, if there is a readable one.
    pub(super) fn peek(path: &Path) -> Option<RequestRecord> {
        let bytes = small::read(path, small::JOURNAL).ok()?;
        parse_request(&bytes).map(|(request, _)| request)
    }

    /// Opens the journal at `path` for `request` and says which jobs are done; `None` when there is
    /// none to go on with.
    ///
    /// # Errors
    /// When it cannot be read, or belongs to another request.
    pub(super) fn resume(
        disk: &Disk,
        path: &Path,
        output: &Path,
        request: &RequestRecord,
    ) -> Result<Option<(Self, Progress)>> {
        let Some((earlier, progress, end)) = read_records(path)? else { return Ok(None) };
        if let Some(difference) = request.difference(&earlier) {
            return Err(Error::Request(format!(
                "{}: an unfinished run of another request is there: {difference}. Repeat that command to finish it, \
                 or add --restart to throw its work away",
                output.display()
            )));
        }
        Self::go_on(disk, path, request, end).map(|journal| Some((journal, progress)))
    }

    /// As [`Journal::resume`]; the journal of another request counts as none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn resume_own(
        disk: &Disk,
        path: &Path,
        request: &RequestRecord,
    ) -> Result<Option<(Self, Progress)>> {
        let there = read_records(path)?.filter(|(earlier, ..)| earlier == request);
        let Some((_, progress, end)) = there else { return Ok(None) };
        Self::go_on(disk, path, request, end).map(|journal| Some((journal, progress)))
    }

    /// What the journal at `path` says, and for which request; `None` when there is none that can be read.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn read(path: &Path) -> Result<Option<(RequestRecord, Progress)>> {
        Ok(read_records(path)?.map(|(request, progress, _)| (request, progress)))
    }

    /// Goes on after `end` bytes of the journal at `path`.
    fn go_on(disk: &Disk, path: &Path, request: &RequestRecord, end: usize) -> Result<Self> {
        let file = disk.open(path)?;
        file.set_len(end as u64)?;
        let file = Appender::new(file, end as u64);
        Ok(Self { file, key: request.key(), jobs: request.jobs, has_sums: request.error_report })
    }

    /// Begins a journal at `path`.
    pub(super) fn create(disk: &Disk, path: &Path, request: &RequestRecord) -> Result<Self> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| Error::io(path, "encode")(error.into()))?;
        line.push(b'\n');
        disk.replace(path, &line)?;
        disk.sync_directory(parent_of(path))?;
        let file = Appender::new(disk.open(path)?, line.len() as u64);
        let (key, jobs, has_sums) = (request.key(), request.jobs, request.error_report);
        Ok(Self { file, key, jobs, has_sums })
    }

    /// Records that jobs are done; their bytes must be on the disk already.
    pub(super) fn append(&mut self, jobs: &[Done]) -> Result<()> {
        let mut records = Vec::with_capacity(record_len(self.has_sums) * jobs.len());
        for done in jobs {
            let start = records.len();
            records.extend((done.job as u32).to_le_bytes());
            records.extend(done.wrote.to_le_bytes());
            records.extend(done.read.to_le_bytes());
            if self.has_sums {
                records.extend(done.sums.to_bytes());
            }
            let check = Fingerprint::of(self.key, &records[start..]);
            records.extend(check.to_le_bytes());
        }
        self.file.append(&records)?;
        self.file.file().sync()
    }

    /// Records that everything is done and the final names come next; `manifest` is the fingerprint of the
    /// manifest.
    pub(super) fn seal(&mut self, manifest: u128) -> Result<()> {
        self.append(&[Done { job: self.jobs, sums: Sums::default(), wrote: manifest, read: 0 }])
    }
}

/// The request of the journal at `path`, its records up to the first torn one, and where that is; `None` when there is
/// no journal, or none whose first line makes sense.
fn read_records(path: &Path) -> Result<Option<(RequestRecord, Progress, usize)>> {
    let bytes = match small::read(path, small::JOURNAL) {
        Ok(bytes) => bytes,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((request, mut end)) = parse_request(&bytes) else { return Ok(None) };
    // One more than there are jobs: the last one is the seal.
    if request.jobs > MOST_JOBS {
        return Ok(None);
    }
    let mut done = vec![None; request.jobs + 1];
    let (key, record_len) = (request.key(), record_len(request.error_report));
    for record in bytes[end..].chunks_exact(record_len) {
        match parse_record(record, key).filter(|found| found.job < done.len()) {
            Some(found) => done[found.job] = Some(found),
            None => break,
        }
        end += record_len;
    }
    let sealed = done.pop().flatten().map(|seal| seal.wrote);
    Ok(Some((request, Progress { done, sealed }, end)))
}

/// How many jobs are done of a run whose journal is at `path`, whatever its request.
///
/// # Errors
/// As [`Journal::resume`].
pub(crate) fn resumed_jobs(path: &Path) -> Result<usize> {
    let read = Journal::read(path)?;
    Ok(read.map_or(0, |(_, progress)| progress.done.iter().flatten().count()))
}

fn record_len(has_sums: bool) -> usize {
    FIELDS_BYTES + if has_sums { Sums::LEN_BYTES } else { 0 } + CHECK_BYTES
}

/// A record of either length; `None` when it is torn.
fn parse_record(record: &[u8], key: u64) -> Option<Done> {
    let (fields, check) = record.split_last_chunk::<CHECK_BYTES>()?;
    if u128::from_le_bytes(*check) != Fingerprint::of(key, fields) {
        return None;
    }
    let (number, rest) = fields.split_first_chunk()?;
    let (wrote, rest) = rest.split_first_chunk()?;
    let (read, sums) = rest.split_first_chunk()?;
    Some(Done {
        job: u32::from_le_bytes(*number) as usize,
        wrote: u128::from_le_bytes(*wrote),
        read: u128::from_le_bytes(*read),
        sums: sums.first_chunk().map_or(Sums::default(), Sums::from_bytes),
    })
}

/// The request on the first line, and where the records start.
fn parse_request(bytes: &[u8]) -> Option<(RequestRecord, usize)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((serde_json::from_slice(&bytes[..end]).ok()?, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RequestRecord {
        RequestRecord {
            layout: LAYOUT,
            requant_version: "1".into(),
            model: "org/name".into(),
            format: "q4_0".into(),
            pinned: None,
            source_sha256: "a".into(),
            blueprint_sha256: "b".into(),
            jobs: 10,
            error_report: false,
            calibration: None,
        }
    }

    fn done(path: &Path, request: &RequestRecord) -> Vec<usize> {
        let (_, progress) = Journal::resume(&Disk::default(), path, path, request).unwrap().unwrap();
        assert_eq!(progress.sealed, None);
        progress.done.iter().flatten().map(|done| done.job).collect()
    }

    #[test]
    fn every_torn_end_is_survived() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        for error_report in [false, true] {
            let request = RequestRecord { error_report, ..request() };
            let of = |job: usize| {
                let mut sums = Sums::default();
                sums.add(&[job as f32 + 1.0], &[0.5]);
                Done { job, sums, wrote: job as u128 + (5 << 100), read: !(job as u128) }
            };
            let mut journal = Journal::create(&Disk::default(), &path, &request).unwrap();
            let start = std::fs::metadata(&path).unwrap().len() as usize;
            journal.append(&[of(3), of(0), of(7)]).unwrap();
            let whole = std::fs::read(&path).unwrap();
            for len in start..=whole.len() {
                for tail in [&[][..], &[0; 5], &[0; 24], &[0xff; 16], &[0; 200]] {
                    std::fs::write(&path, [&whole[..len], tail].concat()).unwrap();
                    let mut expected = [3, 0, 7][..(len - start) / record_len(error_report)].to_vec();
                    expected.sort_unstable();
                    assert_eq!(done(&path, &request), expected, "{len}");
                    // And it can be gone on with.
                    let (mut journal, progress) =
                        Journal::resume(&Disk::default(), &path, &path, &request).unwrap().unwrap();
                    for job in expected {
                        let sums = if error_report { of(job).sums } else { Sums::default() };
                        assert_eq!(progress.done[job], Some(Done { sums, ..of(job) }));
                    }
                    journal.append(&[of(9)]).unwrap();
                    assert!(done(&path, &request).contains(&9));
                }
            }
            std::fs::write(&path, &whole[..start - 1]).unwrap();
            assert!(Journal::resume(&Disk::default(), &path, &path, &request).unwrap().is_none());
        }
    }

    #[test]
    fn no_flipped_bit_of_a_record_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let request = RequestRecord { error_report: true, ..request() };
        let mut journal = Journal::create(&Disk::default(), &path, &request).unwrap();
        let start = std::fs::metadata(&path).unwrap().len() as usize;
        let of = |job: usize| Done { job, sums: Sums::default(), wrote: 1, read: 2 };
        journal.append(&[of(0), of(1)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bit in 8 * start..8 * (start + record_len(true)) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(done(&path, &request), [0usize; 0], "{bit}");
        }
    }

    #[test]
    fn a_journal_of_another_layout_is_not_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut line = serde_json::to_value(request()).unwrap();
        line.as_object_mut().unwrap().remove("layout");
        std::fs::write(&path, format!("{line}\n")).unwrap();
        let error = Journal::resume(&Disk::default(), &path, &path, &request()).err().unwrap().to_string();
        assert!(error.contains("another version") && error.contains("--restart"), "{error}");
    }

    #[test]
    fn another_request_is_told_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        Journal::create(&Disk::default(), &path, &request()).unwrap();
        let other = RequestRecord { format: "q8_0".into(), ..request() };
        let error = Journal::resume(&Disk::default(), &path, &path, &other).err().unwrap().to_string();
        assert!(error.contains("q4_0") && error.contains("q8_0") && error.contains("--restart"), "{error}");
        let other = RequestRecord { error_report: true, ..request() };
        let error = Journal::resume(&Disk::default(), &path, &path, &other).err().unwrap().to_string();
        assert!(error.contains("--error-report was not given, now given"), "{error}");
    }
}
