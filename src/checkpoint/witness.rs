//! Which bytes of the source rows of a weight are made from, and a fingerprint of those that were read.
//!
//! A [`Witness`] digests what a reader reads while it decodes the rows of a *unit*: those of a job. Reads that
//! follow each other in a file are one extent; strided runs are an extent of their own.
//! [`Catalogue::extents`] says beforehand which extents there will be, so that somebody else who reads the
//! files from end to end comes to the same fingerprint, or finds that the bytes are other ones.

use std::ops::Range;

use requant_formats::layout::Runs;

use super::{BlockScale, Catalogue, Encoding, SourceTensor, packed_rows};
use crate::fingerprint::Fingerprint;

/// Rows of a weight that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Position in the catalogue.
    pub id: usize,
    /// Rows.
    pub rows: Range<usize>,
    /// Rows that are asked for at once.
    pub tile_rows: usize,
    /// Stored numbers are taken without their scales.
    pub unscaled: bool,
}

/// Bytes of a file that are digested together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// File number in the source.
    pub file: usize,
    /// Where they start in the file.
    pub start_bytes: u64,
    /// The runs, counted from there.
    pub runs: Runs,
}

impl Extent {
    /// Of one run.
    fn one(file: usize, start_bytes: u64, len_bytes: usize) -> Self {
        Self { file, start_bytes, runs: Runs::one(0, len_bytes) }
    }

    /// The fingerprint of its bytes as a part of a unit's: the sum over its extents, in any order.
    pub fn part(start_bytes: u64, fingerprint: u128) -> u128 {
        Fingerprint::of(start_bytes, &fingerprint.to_le_bytes())
    }

    /// The end of its last run.
    pub fn end_bytes(&self) -> u64 {
        let before_last = self.runs.count.saturating_sub(1) as u64 * self.runs.stride_bytes;
        self.start_bytes + before_last + self.runs.run_bytes as u64
    }
}

/// Reads that follow each other without a gap, and what goes with them.
struct Stream<T> {
    file: usize,
    start: u64,
    next: u64,
    content: T,
}

/// The stream that a read of `len` bytes at `offset` goes on with, or a new one.
fn stream<T>(
    streams: &mut Vec<Stream<T>>,
    (file, offset, len): (usize, u64, usize),
    new: impl FnOnce() -> T,
) -> &mut Stream<T> {
    let known = streams.iter().rposition(|stream| stream.file == file && stream.next == offset);
    let at = known.unwrap_or_else(|| {
        streams.push(Stream { file, start: offset, next: offset, content: new() });
        streams.len() - 1
    });
    streams[at].next += len as u64;
    &mut streams[at]
}

/// Digests what is read of a unit.
#[derive(Default)]
pub(super) struct Witness {
    streams: Vec<Stream<Fingerprint>>,
    /// Sum over extents of several runs.
    strided: u128,
}

impl Witness {
    /// These bytes were read.
    pub(super) fn read(&mut self, file: usize, offset_bytes: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            let stream = stream(&mut self.streams, (file, offset_bytes, bytes.len()), Fingerprint::new);
            stream.content.update(bytes);
        }
    }

    /// The bytes of several runs were read, the first at `start_bytes`.
    pub(super) fn read_runs(&mut self, start_bytes: u64, bytes: &[u8]) {
        let part = Extent::part(start_bytes, Fingerprint::of(0, bytes));
        self.strided = self.strided.wrapping_add(part);
    }

    /// The fingerprint of the unit.
    pub(super) fn finish(self) -> u128 {
        let parts = self.streams.iter().map(|stream| Extent::part(stream.start, stream.content.finish()));
        parts.fold(self.strided, u128::wrapping_add)
    }
}

impl Catalogue {
    /// What is read of the source to decode `unit`, in the order of reading.
    pub fn extents(&self, unit: &Unit) -> Vec<Extent> {
        let tensor = &self.tensors()[unit.id];
        let (mut streams, mut strided) = (Vec::new(), Vec::new());
        let mut read = |file: usize, offset: u64, len: usize| {
            if len > 0 {
                stream(&mut streams, (file, offset, len), || ());
            }
        };
        let read_numbers = |rows: &Range<usize>| {
            let row_bytes = tensor.matrix().1 * tensor.dtype.size_bytes();
            let offset = tensor.offset_bytes + (rows.start * row_bytes) as u64;
            (tensor.file, offset, rows.len() * row_bytes)
        };
        match &tensor.encoding {
            Encoding::Packed(packed) if !unit.unscaled => {
                let matrix = packed.matrix(&tensor.shape, 1.0);
                let mut held = 0..0;
                for start in unit.rows.clone().step_by(unit.tile_rows.max(1)) {
                    let tile = start..unit.rows.end.min(start + unit.tile_rows.max(1));
                    if held.start <= tile.start && tile.end <= held.end {
                        continue;
                    }
                    held = packed_rows::band(self, unit.id, packed, &tile, unit.rows.end);
                    if let Some(number) = packed.layout.tensor_scale_in() {
                        let stored = &self.tensors()[packed.stored(unit.id, number)];
                        read(stored.file, stored.offset_bytes, packed_rows::TENSOR_SCALE_BYTES);
                    }
                    for number in 0..=packed.companions.len() {
                        let stored = &self.tensors()[packed.stored(unit.id, number)];
                        let runs = packed.layout.runs(matrix, number, held.clone());
                        let start_bytes = stored.offset_bytes + runs.offset_bytes;
                        if runs.count == 1 {
                            read(stored.file, start_bytes, runs.run_bytes);
                        } else if runs.len_bytes() > 0 {
                            let runs = Runs { offset_bytes: 0, ..runs };
                            strided.push(Extent { file: stored.file, start_bytes, runs });
                        }
                    }
                }
            }
            Encoding::Scaled(scale) if !unit.unscaled => {
                let (scales, range) = scale_bytes(self, tensor, *scale, &unit.rows);
                read(scales.file, scales.offset_bytes + range.start, (range.end - range.start) as usize);
                let (file, offset, len) = read_numbers(&unit.rows);
                read(file, offset, len);
            }
            _ => {
                let (file, offset, len) = read_numbers(&unit.rows);
                read(file, offset, len);
            }
        }
        let contiguous = streams
            .iter()
            .map(|stream| Extent::one(stream.file, stream.start, (stream.next - stream.start) as usize));
        contiguous.chain(strided).collect()
    }
}

/// The tensor with the scales of `tensor`, and the bytes of it that `rows` are decoded with.
pub(super) fn scale_bytes<'a>(
    catalogue: &'a Catalogue,
    tensor: &SourceTensor,
    scale: BlockScale,
    rows: &Range<usize>,
) -> (&'a SourceTensor, Range<u64>) {
    let (_, cols) = tensor.matrix();
    let scales = &catalogue.tensors()[scale.tensor];
    let row_bytes = (cols.div_ceil(scale.block_cols) * scales.dtype.size_bytes()) as u64;
    let (first, end) = (rows.start / scale.block_rows, rows.end.div_ceil(scale.block_rows));
    (scales, first as u64 * row_bytes..end as u64 * row_bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use requant_formats::codec;
    use requant_formats::layout::{self, Matrix};
    use requant_formats::{Codec, Dtype};

    use super::*;
    use crate::checkpoint::{Packed, ScaleFormat, TileReader};
    use crate::source::LocalDirectory;

    /// A catalogue of tensors of these shapes and bytes, one after the other in turn in two files.
    fn catalogue(directory: &Path, tensors: Vec<(Dtype, Vec<usize>, Vec<u8>)>) -> Catalogue {
        let mut files = [vec![7u8; 11], vec![8u8; 3]];
        let tensors = tensors.into_iter().enumerate().map(|(number, (dtype, shape, bytes))| {
            let file = number % 2;
            let offset_bytes = files[file].len() as u64;
            files[file].extend(&bytes);
            let (name, len_bytes) = (format!("t{number}"), bytes.len() as u64);
            let encoding = Encoding::Plain;
            SourceTensor { name, dtype, shape, file, offset_bytes, len_bytes, role: None, encoding }
        });
        let tensors = tensors.collect();
        std::fs::write(directory.join("a"), &files[0]).unwrap();
        std::fs::write(directory.join("b"), &files[1]).unwrap();
        Catalogue { source: std::sync::Arc::new(LocalDirectory::open(directory).unwrap()), tensors }
    }

    /// A matrix in `layout`, its codes first.
    fn packed(
        directory: &Path,
        codec: &'static dyn Codec,
        layout_name: &str,
        [rows, cols]: [usize; 2],
    ) -> Catalogue {
        let layout = layout::find(layout_name).unwrap();
        let shape = vec![rows, cols];
        let matrix = Matrix { shape: &shape, codec, tensor_scale: 0.5 };
        let weights: Vec<f32> = (0..rows * cols).map(|at| (at as f32 * 0.7).sin()).collect();
        let mut parts: Vec<Vec<u8>> =
            (0..codec.parts().len()).map(|part| vec![0; rows * matrix.row_bytes(part)]).collect();
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode_under(0.5, &weights, &mut slices);
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let bytes = layout.pack(matrix, 0..rows, &slices);
        let stored = layout.tensors(matrix).unwrap().into_iter().zip(bytes);
        let tensors = stored.map(|(stored, bytes)| (stored.dtype, stored.shape, bytes.into_owned()));
        let mut catalogue = catalogue(directory, tensors.collect());
        let companions = (1..catalogue.tensors.len()).collect();
        catalogue.tensors[0].shape = shape;
        catalogue.tensors[0].encoding = Encoding::Packed(Packed { codec, layout, own: 0, companions });
        catalogue
    }

    fn scaled(directory: &Path, block_rows: usize) -> Catalogue {
        let (rows, cols, block_cols) = (300usize, 70usize, 32usize);
        let codes = (0..rows * cols).map(|at| (at % 100) as u8).collect();
        let blocks = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
        let scales = (0..blocks[0] * blocks[1]).flat_map(|at| (1.0 + at as f32).to_le_bytes()).collect();
        let tensors = vec![(Dtype::F8_E4M3, vec![rows, cols], codes), (Dtype::F32, blocks.to_vec(), scales)];
        let mut catalogue = catalogue(directory, tensors);
        let format = ScaleFormat::Float;
        catalogue.tensors[0].encoding =
            Encoding::Scaled(BlockScale { tensor: 1, block_rows, block_cols, format, rounds: false });
        catalogue
    }

    /// What is read of a unit, and what its extents say, give one fingerprint.
    fn check(catalogue: &Catalogue, unit: &Unit) {
        let mut reader = TileReader::default();
        let mut tile = Vec::new();
        reader.begin(catalogue, unit).unwrap();
        for start in unit.rows.clone().step_by(unit.tile_rows) {
            let rows = start..unit.rows.end.min(start + unit.tile_rows);
            if unit.unscaled {
                reader.read_unscaled(catalogue, unit.id, rows, &mut tile).unwrap();
            } else {
                reader.read(catalogue, unit.id, rows, &mut tile).unwrap();
            }
        }
        let read = reader.finish();
        let mut found = 0u128;
        for extent in catalogue.extents(unit) {
            let mut bytes = Vec::new();
            for (offset, range) in extent.runs.pieces() {
                let mut run = vec![0; range.len()];
                catalogue.source().read_at(extent.file, extent.start_bytes + offset, &mut run).unwrap();
                bytes.extend(run);
            }
            let last = extent.runs.pieces().last().unwrap();
            assert_eq!(extent.end_bytes(), extent.start_bytes + last.0 + last.1.len() as u64);
            found = found.wrapping_add(Extent::part(extent.start_bytes, Fingerprint::of(0, &bytes)));
        }
        assert_eq!(read, found, "{unit:?}");
    }

    fn units(rows: usize, steps: &[usize]) -> Vec<Unit> {
        let mut units = Vec::new();
        for range in [0..rows, 0..1, 5..rows, 8..rows / 2, rows / 2 + 3..rows - 1] {
            for &tile_rows in steps {
                units.push(Unit { id: 0, rows: range.clone(), tile_rows, unscaled: false });
            }
        }
        units
    }

    #[test]
    fn plain_and_scaled_rows() {
        let directory = tempfile::tempdir().unwrap();
        for block_rows in [1, 32, 128, 300] {
            let catalogue = scaled(directory.path(), block_rows);
            for unit in units(300, &[1, 7, 36, 300]) {
                check(&catalogue, &unit);
                check(&catalogue, &Unit { unscaled: true, ..unit.clone() });
            }
            for unit in units(catalogue.tensors()[1].matrix().0.max(17), &[5]) {
                let rows = 0..catalogue.tensors()[1].matrix().0.min(unit.rows.end);
                check(&catalogue, &Unit { id: 1, rows, ..unit });
            }
        }
    }

    #[test]
    fn packed_rows_of_every_layout() {
        let directory = tempfile::tempdir().unwrap();
        for layout in layout::LAYOUTS {
            for name in layout.example_codecs() {
                let codec = codec::find(name).unwrap();
                let group = codec.group_len_elems();
                // A group that fills no whole words is a row of its own.
                let is_whole_row = group > 8 && !group.is_multiple_of(8);
                let cols = if is_whole_row { group } else { group.max(128).next_multiple_of(32.max(group)) };
                let catalogue = packed(directory.path(), codec, layout.name(), [64, cols]);
                units(64, &[1, 3, 8, 36, 64]).iter().for_each(|unit| check(&catalogue, unit));
            }
        }
    }

    /// Rows whose codes lie in many places are unpacked in bands: here there are several.
    #[test]
    fn strided_rows_of_several_bands() {
        let directory = tempfile::tempdir().unwrap();
        let catalogue = packed(directory.path(), codec::find("awq_int4_g32").unwrap(), "awq", [2080, 4096]);
        for unit in units(2080, &[64, 1500]) {
            check(&catalogue, &unit);
        }
        let extents = catalogue.extents(&Unit { id: 0, rows: 0..2080, tile_rows: 64, unscaled: false });
        let of_codes = extents.iter().filter(|extent| extent.file == 0 && extent.runs.count > 1);
        assert!(of_codes.count() > 1);
    }
}
