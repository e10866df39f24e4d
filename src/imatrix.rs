//! Importance matrices of llama.cpp: how much an error in each column of a weight matters.
//!
//! For each matrix the file has the sum of squares of every input column over a calibration text, and how many
//! tokens were seen; a stack of experts has one row of sums and one count for each. The importance of a column is the
//! mean: sum divided by count. An expert that saw no token counts every column once.
//!
//! A file of a large model is as large as one of its shards, so importances are read when a job needs them, and the
//! file must be the same all the time.
//!
//! Source: llama.cpp `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp` (`load_imatrix`),
//! `tools/imatrix/imatrix.cpp`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use requant_formats::Sha256;

use crate::error::{Error, Result};
use crate::small;
use crate::source::FileState;

mod dat;
mod gguf;
mod write;

pub use write::{Collected, Format, Sums};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Most entries: no model has as many matrices.
const MAX_ENTRIES: usize = 1 << 20;

/// An open importance matrix.
#[derive(Debug)]
pub struct Imatrix {
    path: PathBuf,
    file: File,
    state: FileState,
    sha256: String,
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Pieces of text that were seen.
    pub chunks: u32,
    entries: BTreeMap<String, Entry>,
}

/// What a file says about one matrix, or a stack of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// First byte of the sums.
    offset_bytes: u64,
    /// Number of sums.
    len: usize,
    /// How often each equal part of the sums was added to; zero: never.
    counts: Vec<f32>,
    /// What a part has that was never added to.
    unseen: Unseen,
}

/// What counts for columns of which nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unseen {
    /// Every column counts once.
    Ones,
    /// The sums are taken as they are: old files have divided them already.
    Sums,
}

/// What a format's reader found: datasets, chunks, entries.
struct Contents {
    datasets: Vec<String>,
    chunks: u32,
    entries: BTreeMap<String, Entry>,
}

impl Imatrix {
    /// Opens the file at `path`, GGUF or the older `.dat`, and checks all of it.
    ///
    /// # Errors
    /// When it cannot be read, is neither, or has sums or counts that make no sense; the message names the entry.
    pub fn open(path: &Path) -> Result<Self> {
        let file = small::open(path)?;
        let state = FileState::from(&file.metadata().map_err(Error::io(path, "stat"))?);
        let mut magic = [0; 4];
        let is_gguf = file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"GGUF";
        let read = if is_gguf { gguf::read } else { dat::read };
        let contents = read(&file, state.len_bytes)
            .map_err(|message| Error::checkpoint(path.display().to_string(), message))?;
        let Contents { datasets, chunks, entries } = contents;
        let mut imatrix =
            Self { path: path.to_owned(), file, state, sha256: String::new(), datasets, chunks, entries };
        imatrix.sha256 = imatrix.digest()?;
        for (name, entry) in &imatrix.entries {
            imatrix.check(name, entry)?;
        }
        Ok(imatrix)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the file, lower-case hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Names of the matrices.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of columns of all matrices of a stack together; `None` when there is nothing about it.
    pub fn len(&self, name: &str) -> Option<usize> {
        self.entries.get(name).map(|entry| entry.len)
    }

    /// Leaves only the entries of which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|name, _| keep(name));
    }

    /// The sums and counts of `name`, as a file in today's format would have them. What the older one has divided is
    /// multiplied by `chunk_size` tokens a call.
    ///
    /// # Errors
    /// When they cannot be read, or there are none.
    pub fn sums(&self, name: &str, chunk_size: u32) -> Result<Sums> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::checkpoint(self.place(), format!("nothing about {name}")));
        };
        let (factor, times) = match entry.unseen {
            Unseen::Ones => (1.0, 1),
            Unseen::Sums => (chunk_size as f32, u64::from(chunk_size)),
        };
        let sums = self.read_sums(entry, 0..entry.len)?.into_iter().map(|sum| sum * factor);
        let counts = entry.counts.iter().map(|&count| count as u64 * times);
        Ok(Sums { sums: sums.collect(), counts: counts.collect() })
    }

    /// The importance of columns `columns` of all those of `name`.
    ///
    /// # Errors
    /// When they cannot be read, or the file has changed since it was opened.
    pub fn importance(&self, name: &str, columns: Range<usize>) -> Result<Vec<f32>> {
        let Some(entry) = self.entries.get(name).filter(|entry| columns.end <= entry.len) else {
            return Err(Error::checkpoint(self.place(), format!("nothing about {name}")));
        };
        let importance = self.read(entry, columns)?;
        let state = FileState::from(&self.file.metadata().map_err(Error::io(&self.path, "stat"))?);
        if state != self.state {
            return Err(Error::changed(
                self.place(),
                "it was written to while it was used; repeat the command",
            ));
        }
        Ok(importance)
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn read(&self, entry: &Entry, columns: Range<usize>) -> Result<Vec<f32>> {
        let part = entry.len / entry.counts.len();
        let sums = self.read_sums(entry, columns.clone())?;
        Ok(columns
            .zip(sums)
            .map(|(column, sum)| match (entry.counts[column / part], entry.unseen) {
                (count, _) if count > 0.0 => sum / count,
                (_, Unseen::Ones) => 1.0,
                (_, Unseen::Sums) => sum,
            })
            .collect())
    }

    fn read_sums(&self, entry: &Entry, columns: Range<usize>) -> Result<Vec<f32>> {
        let mut bytes = vec![0; 4 * columns.len()];
        let offset = entry.offset_bytes + 4 * columns.start as u64;
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::io(&self.path, "read"))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn check(&self, name: &str, entry: &Entry) -> Result<()> {
        for start in (0..entry.len).step_by(CHUNK_BYTES / 4) {
            let columns = start..entry.len.min(start + CHUNK_BYTES / 4);
            let importance = self.read(entry, columns)?;
            let senseless = |value: &f32| !value.is_finite() || *value < 0.0;
            if let Some(at) = importance.iter().position(senseless) {
                let message = format!(
                    "{name}: column {} counts {}, expected a number that is not negative; make the importance matrix \
                     again",
                    start + at,
                    importance[at]
                );
                return Err(Error::checkpoint(self.place(), message));
            }
        }
        Ok(())
    }

    fn digest(&self) -> Result<String> {
        let mut reader = At { file: &self.file, position: 0 };
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => hasher.update(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(&self.path, "read")(error)),
            }
        }
        Ok(hasher.finish().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The same content under the same path, with the same entries left.
impl PartialEq for Imatrix {
    fn eq(&self, other: &Self) -> bool {
        let key = |imatrix: &Self| (imatrix.path.clone(), imatrix.sha256.clone());
        key(self) == key(other) && self.names().eq(other.names())
    }
}

impl Eq for Imatrix {}

impl Entry {
    /// Checks what both formats must hold to.
    fn new(
        name: &str,
        (offset_bytes, len): (u64, usize),
        counts: Vec<f32>,
        unseen: Unseen,
    ) -> std::result::Result<Self, String> {
        if len == 0 || counts.is_empty() || !len.is_multiple_of(counts.len()) {
            return Err(format!("{name}: {len} sums with {} counts do not belong together", counts.len()));
        }
        if let Some(count) = counts.iter().find(|count| !count.is_finite() || **count < 0.0) {
            return Err(format!("{name}: a count of {count}, expected one that is not negative"));
        }
        Ok(Self { offset_bytes, len, counts, unseen })
    }
}

/// Reads a file from a position on, whatever others read of it.
struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.file.read_at(buf, self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
