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

use super::errors::Sums;
use super::request::RequestRecord;
use crate::disk::{Appender, Disk, parent_of};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::small;

/// Bytes of a record's number and its two fingerprints.
const FIELDS_BYTES: usize = 4 + 16 + 16;
/// As many as the largest model has; a larger number is no journal's.
const MOST_JOBS: usize = 1 << 20;
/// Bytes of a record's check.
const CHECK_BYTES: usize = 16;

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
    use super::super::request::LAYOUT;
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
