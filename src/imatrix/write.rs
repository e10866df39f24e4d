//! Writing importance matrices, in both formats.
//!
//! Source: llama.cpp `tools/imatrix/imatrix.cpp` (`save_imatrix`, `save_imatrix_legacy`).

use std::collections::BTreeMap;
use std::path::Path;

use requant_formats::container::gguf::{Array, GgmlType, Metadata, TensorSpec, Value, write_header};

use super::gguf::{CHUNK_COUNT_KEY, CHUNK_SIZE_KEY, COUNTS, DATASETS_KEY, SUMS};
use crate::disk::{Appender, Disk, parent_of, with_suffix};
use crate::error::{Error, Result};

/// Values turned into bytes at a time.
const CHUNK_LEN: usize = 1 << 18;

/// Sums of squares of a matrix, or of a stack of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Of every column of every matrix.
    pub sums: Vec<f32>,
    /// Rows that were added up: for all matrices, or for each of them.
    pub counts: Vec<u64>,
}

/// Everything that a file says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Collected {
    /// By the name of the tensor.
    pub entries: BTreeMap<String, Sums>,
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Tokens of a piece of text.
    pub chunk_size: u32,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Today's.
    #[default]
    Gguf,
    /// The older one, which has one count for all matrices of a stack.
    Dat,
}

impl Collected {
    /// Pieces of text that were seen.
    pub fn chunks(&self) -> u32 {
        let most = self.entries.values().flat_map(|entry| &entry.counts).max().copied().unwrap_or(0);
        u32::try_from(most / u64::from(self.chunk_size.max(1))).unwrap_or(u32::MAX)
    }

    /// Adds what was seen elsewhere. One count for all matrices of a stack stands for each of them.
    ///
    /// # Errors
    /// When it has other columns or matrices.
    pub fn add(&mut self, name: &str, more: Sums) -> std::result::Result<(), String> {
        let Some(known) = self.entries.get_mut(name) else {
            self.entries.insert(name.to_owned(), more);
            return Ok(());
        };
        let (columns, matrices) = (known.sums.len(), known.counts.len());
        if columns != more.sums.len()
            || !(matrices == more.counts.len() || matrices == 1 || more.counts.len() == 1)
        {
            return Err(format!(
                "{} columns with {} counts cannot be added to {columns} with {matrices}",
                more.sums.len(),
                more.counts.len()
            ));
        }
        if matrices == 1 && more.counts.len() > 1 {
            known.counts = vec![known.counts[0]; more.counts.len()];
        }
        known.sums.iter_mut().zip(&more.sums).for_each(|(sum, more)| *sum += more);
        let each = more.counts.iter().cycle();
        known.counts.iter_mut().zip(each).for_each(|(count, more)| *count += more);
        Ok(())
    }

    /// Matrices that nothing was multiplied with: names of their stacks, with their numbers.
    pub fn unseen(&self) -> Vec<(&str, Vec<usize>)> {
        let unseen = |entry: &Sums| -> Vec<usize> {
            (0..entry.counts.len()).filter(|&number| entry.counts[number] == 0).collect()
        };
        let entries = self.entries.iter().map(|(name, entry)| (name.as_str(), unseen(entry)));
        entries.filter(|(_, numbers)| !numbers.is_empty()).collect()
    }

    /// Writes it to `path`, in place of what is there. It gets its name when it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path, format: Format, disk: &Disk) -> Result<()> {
        let partial = with_suffix(path, ".partial");
        disk.remove(&partial)?;
        let mut appender = Appender::new(disk.create_new(&partial)?, 0);
        let written = match format {
            Format::Gguf => self.append_gguf(path, &mut appender),
            Format::Dat => self.append_dat(&mut appender),
        };
        written
            .and_then(|()| appender.file().sync())
            .and_then(|()| disk.rename(&partial, path))
            .inspect_err(|_| {
                // Nothing can be gone on with from here.
                let _ = disk.remove(&partial);
            })?;
        disk.sync_directory(parent_of(path))
    }

    fn append_gguf(&self, path: &Path, appender: &mut Appender) -> Result<()> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", "imatrix");
        metadata.set(DATASETS_KEY, Value::Array(Array::String(self.datasets.clone())));
        metadata.set(CHUNK_COUNT_KEY, self.chunks());
        metadata.set(CHUNK_SIZE_KEY, self.chunk_size);
        let specs = self.entries.iter().flat_map(|(name, Sums { sums, counts })| {
            let spec = |ending: &str, cols: usize| TensorSpec {
                name: format!("{name}{ending}"),
                shape: match counts.len() {
                    1 => vec![cols as u64],
                    matrices => vec![cols as u64, matrices as u64],
                },
                ggml_type: GgmlType::F32,
            };
            [spec(SUMS, sums.len() / counts.len().max(1)), spec(COUNTS, 1)]
        });
        let refuse = |error| Error::format(path.display().to_string())(error);
        let (header, bytes) = write_header(metadata, specs.collect()).map_err(refuse)?;
        appender.append(&bytes)?;
        let mut end = bytes.len() as u64;
        let values = self.entries.values().flat_map(|Sums { sums, counts }| {
            [sums.clone(), counts.iter().map(|&count| count as f32).collect()]
        });
        for (tensor, values) in header.tensors.iter().zip(values) {
            let start = header.data_offset_bytes + tensor.offset_bytes;
            append_zeros(appender, start - end)?;
            append_values(appender, &values)?;
            end = start + tensor.len_bytes;
        }
        append_zeros(appender, header.file_len_bytes() - end)
    }

    fn append_dat(&self, appender: &mut Appender) -> Result<()> {
        let number = |value: u64| i32::try_from(value).unwrap_or(i32::MAX).to_le_bytes();
        let stored = || self.entries.iter().filter(|(_, entry)| entry.counts.iter().any(|&count| count > 0));
        appender.append(&number(stored().count() as u64))?;
        for (name, Sums { sums, counts }) in stored() {
            let most = counts.iter().max().copied().unwrap_or(0);
            let calls = most.div_ceil(u64::from(self.chunk_size.max(1)));
            appender.append(&number(name.len() as u64))?;
            appender.append(name.as_bytes())?;
            appender.append(&number(calls))?;
            appender.append(&number(sums.len() as u64))?;
            let part = sums.len() / counts.len();
            let value = |(column, &sum): (usize, &f32)| {
                let (sum, count) = match counts[column / part] {
                    0 => (1.0, 1.0),
                    count => (sum, count as f32),
                };
                sum / count * calls as f32
            };
            append_values(appender, &sums.iter().enumerate().map(value).collect::<Vec<f32>>())?;
        }
        appender.append(&number(u64::from(self.chunks())))?;
        let dataset = self.datasets.last().map_or("", String::as_str);
        appender.append(&number(dataset.len() as u64))?;
        appender.append(dataset.as_bytes())
    }
}

fn append_values(appender: &mut Appender, values: &[f32]) -> Result<()> {
    values.chunks(CHUNK_LEN).try_for_each(|values| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        appender.append(&bytes)
    })
}

fn append_zeros(appender: &mut Appender, len_bytes: u64) -> Result<()> {
    appender.append(&vec![0; usize::try_from(len_bytes).unwrap_or(0)])
}
