//! What a worker does with a tile: read, round, encode, and collect encoded rows until they are
//! worth a write.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use requant_formats::codec;

use super::staging::StagedFile;
use super::writeback::Dirty;
use crate::checkpoint::{Catalogue, TileReader};
use crate::error::{Error, Result};
use crate::plan::{OutputTensor, Piece, Rounding};

/// Weights in a slab: 2.4 MB in a 4-bit format.
const SLAB_ELEMS: usize = 1 << 22;

/// Buffers of one worker, reused from tile to tile.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) reader: TileReader,
    pub(super) tile: Vec<f32>,
    transposed: Vec<f32>,
    /// Encoded bytes of the slab, by part.
    pub(super) parts: Vec<Vec<u8>>,
}

impl Worker {
    /// Reads rows of `piece` into the tile, as they are to be written; returns the bytes read.
    pub(super) fn read(&mut self, source: &Catalogue, piece: &Piece, rows: Range<usize>) -> Result<u64> {
        if piece.unscaled {
            return self.reader.read_unscaled(source, piece.source, rows, &mut self.tile);
        }
        let count = rows.len();
        let bytes = self.reader.read(source, piece.source, rows, &mut self.tile)?;
        if piece.transposed {
            let (_, cols) = source.tensors()[piece.source].matrix();
            transpose(&self.tile, count, cols, &mut self.transposed);
            std::mem::swap(&mut self.tile, &mut self.transposed);
        }
        Ok(bytes)
    }

    /// Gives the tile the precision that the encoder is to see.
    pub(super) fn round(&mut self, rounding: Rounding) {
        round(rounding, &mut self.tile);
    }
}

/// Gives weights the precision that the encoder is to see.
pub(super) fn round(rounding: Rounding, weights: &mut [f32]) {
    match rounding {
        Rounding::Exact => {}
        Rounding::Bf16 => codec::round_to_bf16(weights),
        Rounding::F16 => codec::round_to_f16(weights),
        Rounding::Bf16ThenF16 => {
            codec::round_to_bf16(weights);
            codec::round_to_f16(weights);
        }
    }
}

/// Encoded rows on their way to the file. The bytes are in [`Worker::parts`].
pub(super) struct Slab<'a> {
    output: &'a OutputTensor,
    tensor_scale: f32,
    /// First row that is not yet written.
    first_row: usize,
    /// Rows encoded since.
    rows: usize,
}

impl<'a> Slab<'a> {
    pub(super) fn new(output: &'a OutputTensor, first_row: usize, tensor_scale: f32) -> Self {
        Self { output, tensor_scale, first_row, rows: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows * self.output.row_len_elems() >= SLAB_ELEMS
    }

    /// Makes room for the codec's parts, empty at the start of a slab.
    fn begin(&self, parts: &mut Vec<Vec<u8>>) {
        parts.resize_with(self.output.codec.parts().len().max(parts.len()), Vec::new);
        if self.rows == 0 {
            parts.iter_mut().for_each(Vec::clear);
        }
    }

    /// Encodes whole rows at the end of the slab.
    pub(super) fn encode(&mut self, tile: &[f32], parts: &mut Vec<Vec<u8>>) {
        let codec = self.output.codec;
        self.begin(parts);
        let mut ends = Vec::with_capacity(codec.parts().len());
        for (number, part) in parts.iter_mut().take(codec.parts().len()).enumerate() {
            let start = part.len();
            part.resize(start + codec::part_len_bytes(codec, number, tile.len() as u64) as usize, 0);
            ends.push(&mut part[start..]);
        }
        codec.encode_under(self.tensor_scale, tile, &mut ends);
        self.rows += tile.len() / self.output.row_len_elems();
    }

    /// Reads rows that are stored as they are to be written to the end of the slab; returns the bytes read.
    pub(super) fn copy(
        &mut self,
        source: &Catalogue,
        id: usize,
        rows: Range<usize>,
        worker: &mut Worker,
    ) -> Result<u64> {
        self.begin(&mut worker.parts);
        let count = rows.len();
        let Worker { reader, tile, parts, .. } = worker;
        let bytes = reader.read_stored(source, id, self.output.codec, rows, tile, &mut parts[0])?;
        self.rows += count;
        Ok(bytes)
    }

    /// Writes what was encoded and starts afresh.
    pub(super) fn write(&mut self, files: &[StagedFile], dirty: &Dirty, parts: &mut [Vec<u8>]) -> Result<()> {
        let Self { output, tensor_scale, first_row, rows } = *self;
        let band = first_row..first_row + rows;
        let encoded: Vec<&[u8]> = parts.iter().take(output.codec.parts().len()).map(Vec::as_slice).collect();
        let packed = output.layout.pack(output.matrix(tensor_scale), band.clone(), &encoded);
        for ((placement, runs), bytes) in output.runs(band).zip(&packed) {
            let staged = &files[placement.file];
            for (offset, range) in runs.pieces() {
                let offset = placement.offset_bytes + offset;
                staged.file.write_all_at(&bytes[range], offset).map_err(Error::io(&staged.path, "write"))?;
            }
            dirty.mark(placement.file);
        }
        parts.iter_mut().for_each(Vec::clear);
        self.first_row += rows;
        self.rows = 0;
        Ok(())
    }
}

/// Most bytes that a slab of `output` holds, with tiles of `tile_elems` weights: a tile may go past the
/// slab's end, and a layout that is not the codec's own makes a copy.
pub(super) fn most_bytes(output: &OutputTensor, tile_elems: usize) -> u64 {
    let row = output.row_len_elems();
    let elems = (SLAB_ELEMS + tile_elems.max(row * output.layout.band_rows())) as u64;
    let parts = (0..output.codec.parts().len()).map(|part| codec::part_len_bytes(output.codec, part, elems));
    let copies = if output.layout.band_rows() == 1 { 1 } else { 2 };
    copies * parts.sum::<u64>()
}

/// `[rows, cols]` to `[cols, rows]`.
fn transpose(matrix: &[f32], rows: usize, cols: usize, transposed: &mut Vec<f32>) {
    transposed.clear();
    transposed.resize(rows * cols, 0.0);
    for (row, values) in matrix.chunks_exact(cols).enumerate() {
        for (col, &value) in values.iter().enumerate() {
            transposed[col * rows + row] = value;
        }
    }
}
