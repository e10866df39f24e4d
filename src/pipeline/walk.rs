//! Reads a source file from its first byte to its last and digests it, and ranges of it, on the way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use requant_formats::Sha256;
use requant_formats::layout::Runs;

use super::digest;
use crate::checkpoint::Extent;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::source::{LocalDirectory, Source};

/// Bytes read at a time, so few that they are still in the core's own cache when they are digested.
const CHUNK_BYTES: usize = 1 << 18;

/// What a range was read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The rows of a job.
    Job(usize),
    /// All of a tensor.
    Whole(usize),
    /// A header or a small file, which had this fingerprint.
    Prefix(u128),
}

/// A range of a file that was or will be read by somebody else.
pub(super) struct Segment {
    extent: Extent,
    target: Target,
}

impl Segment {
    /// Bytes of weights or scales.
    pub(super) fn new(extent: Extent, target: Target) -> Self {
        Self { extent, target }
    }

    /// The first bytes of a file, and what their fingerprint was.
    pub(super) fn prefix(len_bytes: u64, fingerprint: u128) -> Self {
        let runs = Runs { offset_bytes: 0, run_bytes: len_bytes as usize, stride_bytes: len_bytes, count: 1 };
        Self { extent: Extent { file: 0, start_bytes: 0, runs }, target: Target::Prefix(fingerprint) }
    }

    /// Digests those of its bytes that are in `chunk`, which starts at `at` in the file.
    fn feed(&self, at: u64, chunk: &[u8], found: &mut Fingerprint) {
        let Extent { start_bytes, runs, .. } = self.extent;
        let end = at + chunk.len() as u64;
        let skipped = at.saturating_sub(start_bytes).checked_div(runs.stride_bytes).unwrap_or(0);
        for run in skipped..runs.count as u64 {
            let start = start_bytes + run * runs.stride_bytes;
            if start >= end {
                break;
            }
            let (from, to) = (start.max(at), (start + runs.run_bytes as u64).min(end));
            if from < to {
                found.update(&chunk[(from - at) as usize..(to - at) as usize]);
            }
        }
    }
}

/// A file that is being read.
pub(super) struct Walk<'a> {
    file: usize,
    handle: &'a File,
    path: PathBuf,
    len_bytes: u64,
    done: u64,
    whole: Sha256,
    /// Not begun yet, the first one last.
    segments: Vec<Segment>,
    /// Begun and not at their end.
    open: Vec<(Segment, Fingerprint)>,
    found: Vec<(Target, u128)>,
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// Begins to read file number `file`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn new(local: &'a LocalDirectory, file: usize, mut segments: Vec<Segment>) -> Result<Self> {
        segments.sort_unstable_by_key(|segment| std::cmp::Reverse(segment.extent.start_bytes));
        Ok(Self {
            file,
            handle: local.handle(file)?,
            path: local.path(file),
            len_bytes: local.files()[file].len_bytes,
            done: 0,
            whole: Sha256::new(),
            segments,
            open: Vec::new(),
            found: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Whether all of the file was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.done == self.len_bytes
    }

    /// Reads on.
    pub(super) fn step(&mut self) -> Result<()> {
        self.read()?;
        self.whole.update(&self.buffer);
        self.digest_segments();
        Ok(())
    }

    /// Reads on in two files.
    pub(super) fn step_both(one: &mut Self, other: &mut Self) -> Result<()> {
        one.read()?;
        other.read()?;
        Sha256::update_both((&mut one.whole, &one.buffer), (&mut other.whole, &other.buffer));
        one.digest_segments();
        other.digest_segments();
        Ok(())
    }

    /// File number, SHA-256, and the fingerprints of all ranges.
    pub(super) fn finish(self) -> (usize, String, Vec<(Target, u128)>) {
        (self.file, digest::hex(&self.whole.finish()), self.found)
    }

    fn read(&mut self) -> Result<()> {
        let len = CHUNK_BYTES.min(usize::try_from(self.len_bytes - self.done).unwrap_or(usize::MAX));
        self.buffer.resize(len, 0);
        self.handle.read_exact_at(&mut self.buffer, self.done).map_err(Error::io(&self.path, "read"))
    }

    fn digest_segments(&mut self) {
        let (at, end) = (self.done, self.done + self.buffer.len() as u64);
        while let Some(segment) = self.segments.pop_if(|segment| segment.extent.start_bytes < end) {
            self.open.push((segment, Fingerprint::new()));
        }
        let (buffer, found) = (&self.buffer, &mut self.found);
        self.open.retain_mut(|(segment, fingerprint)| {
            segment.feed(at, buffer, fingerprint);
            if segment.extent.end_bytes() > end {
                return true;
            }
            let fingerprint = fingerprint.finish();
            found.push(match segment.target {
                Target::Prefix(_) => (segment.target, fingerprint),
                Target::Job(_) | Target::Whole(_) => {
                    (segment.target, Extent::part(segment.extent.start_bytes, fingerprint))
                }
            });
            false
        });
        self.done = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_digested_wherever_chunks_end() {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..2 * CHUNK_BYTES as u32 + 999).map(|at| (at * 7 % 253) as u8).collect();
        std::fs::write(directory.path().join("a"), &bytes).unwrap();
        std::fs::write(directory.path().join("b"), &bytes[..100]).unwrap();
        let local = LocalDirectory::open(directory.path()).unwrap();
        let extent = |start_bytes: u64, run_bytes: usize, stride_bytes: u64, count: usize| Extent {
            file: 0,
            start_bytes,
            runs: Runs { offset_bytes: 0, run_bytes, stride_bytes, count },
        };
        let chunk = CHUNK_BYTES as u64;
        let extents = [
            extent(0, bytes.len(), bytes.len() as u64, 1),
            extent(chunk - 1, 2, 2, 1),
            extent(chunk, 5, 5, 1),
            extent(3, 10, 777, 500),
            extent(chunk - 100, 60, 64, 900),
            extent(bytes.len() as u64 - 7, 7, 7, 1),
        ];
        let segments = || {
            let weights =
                extents.iter().enumerate().map(|(job, &extent)| Segment::new(extent, Target::Job(job)));
            weights.chain([Segment::prefix(12, 5)]).collect::<Vec<_>>()
        };
        let mut walks = [false, true].map(|both| {
            let mut walk = Walk::new(&local, 0, segments()).unwrap();
            let mut other = Walk::new(&local, 1, Vec::new()).unwrap();
            while !walk.is_at_end() {
                if both && !other.is_at_end() {
                    Walk::step_both(&mut walk, &mut other).unwrap();
                } else {
                    walk.step().unwrap();
                }
            }
            walk.finish()
        });
        for (file, sha256, found) in &mut walks {
            assert_eq!((*file, &*sha256), (0, &digest::of(&bytes)));
            assert_eq!(found.len(), extents.len() + 1);
            for &(target, fingerprint) in &*found {
                let expected = match target {
                    Target::Prefix(_) => Fingerprint::of(0, &bytes[..12]),
                    Target::Whole(_) => panic!("there is none"),
                    Target::Job(job) => {
                        let Extent { start_bytes, runs, .. } = extents[job];
                        let all: Vec<u8> = (0..runs.count)
                            .flat_map(|run| {
                                &bytes[start_bytes as usize + run * runs.stride_bytes as usize..]
                                    [..runs.run_bytes]
                            })
                            .copied()
                            .collect();
                        Extent::part(start_bytes, Fingerprint::of(0, &all))
                    }
                };
                assert_eq!(fingerprint, expected, "{target:?}");
            }
        }
    }
}
