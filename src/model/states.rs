//! Matrices of hidden states, one row a token: in memory, or in a scratch file when they would not fit.
//!
//! Blocks of rows are worked on in parallel, as many at a time as there are threads, so that what a block needs
//! beside is bounded; where a block begins and ends does not depend on the number of threads, nor on where the
//! states are kept, so neither does the result.
//!
//! A scratch file has no name: it is gone with the process, however that ends.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rayon::prelude::*;

use super::matmul::Into;
use crate::checkpoint::Matrix;
use crate::error::{Error, Result};

/// Rows of a block: the fewer, the more often a tile of weights is packed anew. With 512 a product of 7168 columns
/// runs at 231 GFLOP/s on one core of an AMD EPYC with AVX-512, with 256 at 219, with 1024 at 236.
pub(crate) const BLOCK_ROWS: usize = 512;
/// Bytes of a value.
const VALUE_BYTES: usize = size_of::<f32>();

/// Where states are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// In memory.
    Memory,
    /// In scratch files in this directory.
    Scratch(PathBuf),
}

/// A matrix `[rows, cols]`, zeros at first.
pub struct States {
    rows: usize,
    cols: usize,
    place: Place,
}

enum Place {
    Memory(Vec<f32>),
    Scratch { file: File, directory: PathBuf },
}

/// Some columns of a block of rows, inside a slice whose rows are `stride` apart.
pub(crate) struct Part<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    /// Where the first of the columns is.
    pub(crate) offset: usize,
}

impl States {
    /// # Errors
    /// When a scratch file cannot be made.
    pub(crate) fn new(storage: &Storage, rows: usize, cols: usize) -> Result<Self> {
        let place = match storage {
            Storage::Memory => Place::Memory(vec![0.0; rows * cols]),
            Storage::Scratch(directory) => {
                let error = Error::io(directory, "make a scratch file");
                let file = tempfile::tempfile_in(directory).and_then(|file| {
                    file.set_len((rows * cols * VALUE_BYTES) as u64)?;
                    Ok(file)
                });
                Place::Scratch { file: file.map_err(error)?, directory: directory.clone() }
            }
        };
        Ok(Self { rows, cols, place })
    }

    /// What another has, kept in `storage`.
    ///
    /// # Errors
    /// When it cannot be read, or a scratch file cannot be made or written.
    pub fn copy_of(other: &dyn Matrix, storage: &Storage) -> Result<Self> {
        let mut states = Self::new(storage, other.rows(), other.cols())?;
        states.for_each_block(BLOCK_ROWS, 0..other.cols(), Into::Replace, |rows, part| {
            part.data.copy_from_slice(&other.read(rows)?);
            Ok(())
        })?;
        Ok(states)
    }

    /// A matrix of another size, kept in the same way.
    ///
    /// # Errors
    /// As [`States::new`].
    pub(crate) fn sibling(&self, rows: usize, cols: usize) -> Result<Self> {
        Self::new(&self.storage(), rows, cols)
    }

    /// Where it is kept.
    pub(crate) fn storage(&self) -> Storage {
        match &self.place {
            Place::Memory(_) => Storage::Memory,
            Place::Scratch { directory, .. } => Storage::Scratch(directory.clone()),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows of every block.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.rows;
        (0..rows).step_by(BLOCK_ROWS).map(move |first| first..rows.min(first + BLOCK_ROWS))
    }

    /// Some rows, one after the other.
    ///
    /// # Errors
    /// When the scratch file cannot be read.
    pub fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        let range = rows.start * self.cols..rows.end * self.cols;
        match &self.place {
            Place::Memory(data) => Ok(Cow::Borrowed(&data[range])),
            Place::Scratch { .. } => {
                let mut values = vec![0.0; range.len()];
                self.load(range.start, &mut values)?;
                Ok(Cow::Owned(values))
            }
        }
    }

    /// Replaces rows from `first` on.
    ///
    /// # Errors
    /// When the scratch file cannot be written.
    pub(crate) fn write(&mut self, first: usize, values: &[f32]) -> Result<()> {
        let start = first * self.cols;
        if let Place::Memory(data) = &mut self.place {
            data[start..start + values.len()].copy_from_slice(values);
            return Ok(());
        }
        self.store(start, values)
    }

    /// Rows `picks`, one after the other.
    ///
    /// # Errors
    /// As [`States::read`].
    pub(crate) fn gather(&self, picks: impl ExactSizeIterator<Item = usize>) -> Result<Vec<f32>> {
        // Its full size at once: a vector that grows would take twice as much.
        let mut values = Vec::with_capacity(picks.len() * self.cols);
        for row in picks {
            values.extend_from_slice(&self.read(row..row + 1)?);
        }
        Ok(values)
    }

    /// Calls `fill` for every block of `block_rows` rows, in parallel, with the rows and the block's `columns`;
    /// these hold their old values if `into` says that something is to be added to them.
    ///
    /// # Errors
    /// The first of what `fill` says, in the order of rows; when the scratch file cannot be read or written.
    pub(crate) fn for_each_block(
        &mut self,
        block_rows: usize,
        columns: Range<usize>,
        into: Into,
        fill: impl Fn(Range<usize>, Part) -> Result<()> + Sync,
    ) -> Result<()> {
        let Self { rows, cols, .. } = *self;
        let range = |block: usize| block * block_rows..rows.min((block + 1) * block_rows);
        if let Place::Memory(data) = &mut self.place {
            let blocks = data.chunks_mut((block_rows * cols).max(1)).enumerate().collect();
            return in_groups(blocks, |(block, data)| {
                fill(range(block), Part { data, stride: cols, offset: columns.start })
            });
        }
        let states = &*self;
        in_groups((0..rows.div_ceil(block_rows)).collect(), |block| {
            let rows = range(block);
            let stride = columns.len();
            let mut data = vec![0.0; rows.len() * stride];
            if into == Into::Add {
                states.load_columns(rows.clone(), &columns, &mut data)?;
            }
            fill(rows.clone(), Part { data: &mut data, stride, offset: 0 })?;
            states.store_columns(rows, &columns, &data)
        })
    }

    /// Adds to `columns` of the rows `picks`, each times its factor, what `compute` finds for some of the picks:
    /// `[picks, columns]`, row after row. `picks` ascend.
    ///
    /// # Errors
    /// As [`States::for_each_block`].
    pub(crate) fn add_to_rows(
        &mut self,
        picks: &[(usize, f32)],
        columns: Range<usize>,
        compute: impl Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<()> {
        let range = |block: usize| block * BLOCK_ROWS..picks.len().min((block + 1) * BLOCK_ROWS);
        let computed = |block: usize| {
            let mut y = vec![0.0; range(block).len() * columns.len()];
            compute(range(block), &mut y).map(|()| y)
        };
        let add = |row: &mut [f32], factor: f32, y: &[f32]| {
            row.iter_mut().zip(y).for_each(|(value, y)| *value += factor * y);
        };
        if let Place::Memory(data) = &mut self.place {
            let mut wanted = picks.iter().map(|&(row, _)| row).peekable();
            let rows = data.chunks_mut(self.cols).enumerate();
            let mut rows: Vec<&mut [f32]> =
                rows.filter(|(row, _)| wanted.next_if_eq(row).is_some()).map(|(_, row)| row).collect();
            let blocks = rows.chunks_mut(BLOCK_ROWS).enumerate().collect();
            return in_groups(blocks, |(block, rows)| {
                let y = computed(block)?;
                let picked = rows.iter_mut().zip(&picks[range(block)]).zip(y.chunks(columns.len()));
                picked.for_each(|((row, &(_, factor)), y)| add(&mut row[columns.clone()], factor, y));
                Ok(())
            });
        }
        let states = &*self;
        in_groups((0..picks.len().div_ceil(BLOCK_ROWS)).collect(), |block| {
            let y = computed(block)?;
            let mut old = vec![0.0; columns.len()];
            for (&(row, factor), y) in picks[range(block)].iter().zip(y.chunks(columns.len())) {
                states.load_columns(row..row + 1, &columns, &mut old)?;
                add(&mut old, factor, y);
                states.store_columns(row..row + 1, &columns, &old)?;
            }
            Ok(())
        })
    }

    fn load_columns(&self, rows: Range<usize>, columns: &Range<usize>, values: &mut [f32]) -> Result<()> {
        if columns.len() == self.cols {
            return self.load(rows.start * self.cols, values);
        }
        let mut rows = rows.zip(values.chunks_mut(columns.len()));
        rows.try_for_each(|(row, values)| self.load(row * self.cols + columns.start, values))
    }

    fn store_columns(&self, rows: Range<usize>, columns: &Range<usize>, values: &[f32]) -> Result<()> {
        if columns.len() == self.cols {
            return self.store(rows.start * self.cols, values);
        }
        let mut rows = rows.zip(values.chunks(columns.len()));
        rows.try_for_each(|(row, values)| self.store(row * self.cols + columns.start, values))
    }

    /// Reads values of the scratch file, from element `first` on.
    fn load(&self, first: usize, values: &mut [f32]) -> Result<()> {
        let Place::Scratch { file, directory } = &self.place else { return Ok(()) };
        file.read_exact_at(bytemuck::cast_slice_mut(values), (first * VALUE_BYTES) as u64)
            .map_err(Error::io(directory, "read a scratch file"))
    }

    /// Writes values of the scratch file, from element `first` on.
    fn store(&self, first: usize, values: &[f32]) -> Result<()> {
        let Place::Scratch { file, directory } = &self.place else { return Ok(()) };
        file.write_all_at(bytemuck::cast_slice(values), (first * VALUE_BYTES) as u64)
            .map_err(Error::io(directory, "write a scratch file"))
    }
}

/// Works on `blocks`, as many at a time as there are threads.
///
/// # Errors
/// The first of what `work` says, in the order of blocks.
pub(crate) fn in_groups<T: Send>(blocks: Vec<T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let threads = rayon::current_num_threads();
    let mut blocks = blocks.into_iter();
    loop {
        let group: Vec<T> = blocks.by_ref().take(threads).collect();
        if group.is_empty() {
            return Ok(());
        }
        let results: Vec<Result<()>> = group.into_par_iter().map(&work).collect();
        results.into_iter().collect::<Result<()>>()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(storage: &Storage) -> States {
        let mut states = States::new(storage, 1100, 3).unwrap();
        let fill = |rows: Range<usize>, part: Part| {
            for (row, values) in rows.zip(part.data.chunks_mut(part.stride)) {
                values[part.offset..][..2].copy_from_slice(&[row as f32, -(row as f32)]);
            }
            Ok(())
        };
        states.for_each_block(512, 1..3, Into::Replace, fill).unwrap();
        states
    }

    #[test]
    fn a_scratch_file_holds_what_memory_would() {
        let directory = tempfile::tempdir().unwrap();
        let storages = [Storage::Memory, Storage::Scratch(directory.path().to_owned())];
        for storage in &storages {
            let mut states = filled(storage);
            assert_eq!(*states.read(511..513).unwrap(), [0.0, 511.0, -511.0, 0.0, 512.0, -512.0]);
            let double = |rows: Range<usize>, part: Part| {
                for (row, values) in rows.zip(part.data.chunks_mut(part.stride)) {
                    values[part.offset] += row as f32;
                }
                Ok(())
            };
            states.for_each_block(7, 1..2, Into::Add, double).unwrap();
            let picks: Vec<(usize, f32)> = (0..1000).map(|pick| (pick + 100, 0.5)).collect();
            let compute = |picks: Range<usize>, y: &mut [f32]| {
                picks.zip(y.chunks_mut(2)).for_each(|(pick, y)| y.copy_from_slice(&[pick as f32, 2.0]));
                Ok(())
            };
            states.add_to_rows(&picks, 0..2, compute).unwrap();
            assert_eq!(*states.read(99..101).unwrap(), [0.0, 198.0, -99.0, 0.0, 201.0, -100.0]);
            assert_eq!(*states.read(1099..1100).unwrap(), [499.5, 2199.0, -1099.0]);
            assert_eq!(states.gather([1, 0].into_iter()).unwrap(), [0.0, 2.0, -1.0, 0.0, 0.0, 0.0]);
            assert_eq!(states.sibling(1, 1).unwrap().storage(), *storage);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_first_error_in_the_order_of_rows_counts() {
        let mut states = States::new(&Storage::Memory, 100, 1).unwrap();
        let fail = |rows: Range<usize>, _: Part| match rows.start {
            0 => Ok(()),
            row => Err(Error::Request(row.to_string())),
        };
        let error = states.for_each_block(10, 0..1, Into::Replace, fail).unwrap_err();
        assert_eq!(error.to_string(), "10");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let storage = Storage::Scratch("/not/there".into());
        let error = States::new(&storage, 1, 1).err().unwrap().to_string();
        assert!(error.contains("/not/there") && error.contains("scratch"), "{error}");
    }
}
