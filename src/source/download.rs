//! Brings one remote file to the disk: several connections, resumable, verified.
//!
//! The file grows under a temporary name. Beside it a log says which segments are there, so that
//! a stopped download goes on where it was. The digest is computed while bytes arrive, over what
//! is on the disk; only a file whose digest matched gets its own name.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::digest::{ContentHasher, file_digest_with};
use super::{Remote, RemoteFile};
use crate::disk::{Appender, Disk, DiskFile, with_suffix};
use crate::error::{Error, Result};
use crate::frontier::Frontier;
use crate::small;

/// Longest segment, the unit of the log.
const MAX_SEGMENT_BYTES: u64 = 16 << 20;
/// Shortest segment.
const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// Segments of a file, about, when they are neither longest nor shortest.
const SEGMENTS: u64 = 64;
/// Most bytes one request asks for.
const MAX_REQUEST_BYTES: u64 = 256 << 20;
/// How often a file is fetched anew when its digest does not match.
const MAX_FETCHES: usize = 3;
/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// A download of one file.
#[derive(Clone, Copy)]
pub struct Download<'a> {
    /// Where it is.
    pub remote: &'a dyn Remote,
    /// File number.
    pub file: usize,
    /// What it is written with.
    pub disk: &'a Disk,
    /// Where it goes once it is verified.
    pub target: &'a Path,
    /// Where it grows.
    pub partial: &'a Path,
    /// Whether the target is to survive a power cut. One that is checked again before it is used need not.
    pub is_durable: bool,
    /// Requests under way at once.
    pub connections: usize,
    /// Stops everything; what has arrived is kept.
    pub stop: &'a AtomicBool,
    /// Told how many bytes have come, or were there from an earlier run.
    pub on_bytes: &'a (dyn Fn(u64) + Sync),
}

impl Download<'_> {
    /// Brings the file, or finds it there already, and verifies it.
    ///
    /// # Errors
    /// When it cannot be had, cannot be written, or its digest does not match three times over.
    pub fn run(&self) -> Result<()> {
        let wanted = self.wanted();
        if is_file_of(self.target, wanted.len_bytes) {
            let mut unless_stopped =
                |_: &[u8]| if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
            let found = file_digest_with(self.target, &wanted.digest, &mut unless_stopped)?;
            if found == wanted.digest.hex() {
                (self.on_bytes)(wanted.len_bytes);
                return Ok(());
            }
            self.disk.remove(self.target)?;
        }
        let mut found = String::new();
        for _ in 0..MAX_FETCHES {
            found = self.fetch()?;
            if found == wanted.digest.hex() {
                self.disk.rename(self.partial, self.target)?;
                if self.is_durable {
                    self.disk.sync_parent(self.target)?;
                }
                return self.disk.remove(&log_path(self.partial));
            }
            // Nothing tells which byte is wrong: begin anew.
            self.remote.mistrust(self.file);
            self.disk.remove(&log_path(self.partial))?;
            self.disk.remove(self.partial)?;
        }
        let message = format!(
            "fetched {MAX_FETCHES} times, found digest {found}, expected {}: the server, or a proxy on the way, \
             serves damaged data; the same command tries again",
            wanted.digest.hex()
        );
        Err(Error::hub(format!("{}: {}", self.remote.location(), wanted.name), message))
    }

    fn wanted(&self) -> &RemoteFile {
        &self.remote.files()[self.file]
    }

    /// Fetches what is missing and returns the digest of the whole.
    fn fetch(&self) -> Result<String> {
        let len_bytes = self.wanted().len_bytes;
        if !is_file_of(self.partial, len_bytes) {
            // A log without its file speaks of nothing.
            self.disk.remove(&log_path(self.partial))?;
        }
        let (log, there) = SegmentLog::open(self.disk, &log_path(self.partial), self.wanted())?;
        let file = self.disk.open_or_create(self.partial)?;
        file.set_len(len_bytes)?;

        let frontier = Frontier::new();
        let mut missing = Vec::new();
        for (segment, there) in there.iter().enumerate() {
            let range = log.range(segment);
            if *there {
                frontier.add(range.start, range.end);
                (self.on_bytes)(range.end - range.start);
            } else {
                missing.push(segment);
            }
        }
        let shared = Shared {
            file: &file,
            spans: Mutex::new(spans(&missing, log.segment_bytes, self.connections)),
            log: Mutex::new(log),
            frontier: &frontier,
            halt: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let digest = std::thread::scope(|scope| {
            for _ in 0..self.connections.clamp(1, missing.len().max(1)) {
                scope.spawn(|| self.connection(&shared));
            }
            let digest = self.hash(&shared, len_bytes);
            if !matches!(digest, Ok(Some(_))) {
                shared.halt.store(true, Ordering::Relaxed);
            }
            digest
        });
        if let Some(error) = lock(&shared.failure).take() {
            return Err(error);
        }
        let digest = digest?.ok_or(Error::Interrupted)?;
        if self.is_durable {
            // The digest is of what the system holds. The disk is to have it before a name says so.
            file.sync()?;
        }
        Ok(digest)
    }

    /// One connection: spans until there are none.
    fn connection(&self, shared: &Shared<'_>) {
        loop {
            let Some(span) = lock(&shared.spans).pop_front() else { return };
            if let Err(error) = self.span(shared, span) {
                shared.halt.store(true, Ordering::Relaxed);
                let mut failure = lock(&shared.failure);
                // Connections that were told to halt have nothing to say.
                if !matches!(error, Error::Interrupted) {
                    failure.get_or_insert(error);
                }
                shared.frontier.close();
                return;
            }
        }
    }

    fn span(&self, shared: &Shared<'_>, span: Range<usize>) -> Result<()> {
        let (start, end) = {
            let log = lock(&shared.log);
            (log.range(span.start).start, log.range(span.end - 1).end)
        };
        let mut position = start;
        let mut segment = span.start;
        let mut segment_end = lock(&shared.log).range(segment).end;
        self.remote.read_range(self.file, start..end, &shared.halt, &mut |mut bytes| {
            while !bytes.is_empty() {
                let room = usize::try_from(segment_end - position).unwrap_or(usize::MAX);
                let (now, later) = bytes.split_at(bytes.len().min(room));
                shared.file.write_all_at(now, position)?;
                position += now.len() as u64;
                (self.on_bytes)(now.len() as u64);
                bytes = later;
                if position == segment_end {
                    let mut log = lock(&shared.log);
                    log.append(segment)?;
                    let done = log.range(segment);
                    shared.frontier.add(done.start, done.end);
                    segment += 1;
                    if segment < span.end {
                        segment_end = log.range(segment).end;
                    }
                }
            }
            Ok(())
        })
    }

    /// Hashes the file behind the connections; `None` when they failed or the user stopped.
    fn hash(&self, shared: &Shared<'_>, len_bytes: u64) -> Result<Option<String>> {
        let mut hasher = ContentHasher::new(&self.wanted().digest, len_bytes);
        let mut buffer = vec![0; HASH_BYTES];
        let mut done = 0;
        while done < len_bytes {
            let patient = || !self.stop.load(Ordering::Relaxed);
            let Some(complete) = shared.frontier.wait_past_while(done, patient) else { return Ok(None) };
            while done < complete {
                if !patient() {
                    return Ok(None);
                }
                let len = buffer.len().min(usize::try_from(complete - done).unwrap_or(usize::MAX));
                let chunk = &mut buffer[..len];
                shared.file.read_exact_at(chunk, done)?;
                hasher.update(chunk);
                done += len as u64;
            }
        }
        Ok(Some(hasher.finish()))
    }
}

/// What the connections of one download share.
struct Shared<'a> {
    file: &'a DiskFile,
    /// Segments still to be fetched, a request each.
    spans: Mutex<VecDeque<Range<usize>>>,
    log: Mutex<SegmentLog>,
    frontier: &'a Frontier,
    /// Tells the connections to stop.
    halt: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// Joins missing segments into requests: neither longer than [`MAX_REQUEST_BYTES`] nor than a fair share.
fn spans(missing: &[usize], segment_bytes: u64, connections: usize) -> VecDeque<Range<usize>> {
    let share = missing.len().div_ceil(connections.max(1));
    let longest =
        usize::try_from(MAX_REQUEST_BYTES / segment_bytes).unwrap_or(usize::MAX).clamp(1, share.max(1));
    let mut spans: VecDeque<Range<usize>> = VecDeque::new();
    for &segment in missing {
        match spans.back_mut() {
            Some(last) if last.end == segment && last.len() < longest => last.end += 1,
            _ => spans.push_back(segment..segment + 1),
        }
    }
    spans
}

/// Which segments of a growing file are there: the segment length (u64), the SHA-256 of what the content must
/// be, then for each segment its number and its complement (u32 each), all little-endian. Reading ends at the
/// first record that is torn. It is not synced: what it says wrongly after a power cut, the digest of the whole
/// file finds out.
struct SegmentLog {
    log: Appender,
    segment_bytes: u64,
    len_bytes: u64,
}

impl SegmentLog {
    /// Opens or begins the log at `path` of a download of `wanted`; says for each segment whether it is there.
    fn open(disk: &Disk, path: &Path, wanted: &RemoteFile) -> Result<(Self, Vec<bool>)> {
        let len_bytes = wanted.len_bytes;
        let segment_bytes = (len_bytes / SEGMENTS).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        let mut there = vec![false; usize::try_from(len_bytes.div_ceil(segment_bytes)).unwrap_or(usize::MAX)];
        let mut head = segment_bytes.to_le_bytes().to_vec();
        head.extend(Sha256::digest(wanted.digest.hex()));
        let file = disk.open_or_create(path)?;
        // Each segment once; what follows is not of a download.
        let most_bytes = head.len() as u64 + 8 * there.len() as u64;
        let mut bytes = Vec::new();
        small::open(path)?.take(most_bytes).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        let mut valid = 0;
        if bytes.starts_with(&head) {
            valid = head.len();
            for record in bytes[head.len()..].chunks_exact(8) {
                let word = |at: usize| {
                    u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
                };
                let (segment, complement) = (word(0), word(4));
                match there.get_mut(segment as usize) {
                    Some(slot) if segment == !complement => *slot = true,
                    _ => break,
                }
                valid += 8;
            }
        }
        file.set_len(valid as u64)?;
        let mut log = Appender::new(file, valid as u64);
        if valid == 0 {
            log.append(&head)?;
        }
        Ok((Self { log, segment_bytes, len_bytes }, there))
    }

    fn range(&self, segment: usize) -> Range<u64> {
        let start = segment as u64 * self.segment_bytes;
        start..(start + self.segment_bytes).min(self.len_bytes)
    }

    fn append(&mut self, segment: usize) -> Result<()> {
        let number = segment as u32;
        let mut record = number.to_le_bytes().to_vec();
        record.extend((!number).to_le_bytes());
        self.log.append(&record)
    }
}

fn log_path(partial: &Path) -> PathBuf {
    with_suffix(partial, ".segments")
}

fn is_file_of(path: &Path, len_bytes: u64) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == len_bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
