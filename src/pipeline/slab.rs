//! What a worker does with a tile: read, round, encode, and collect encoded rows until they are
//! worth a write.

use std::ops::Range;
use std::sync::Arc;

use requant_formats::codec;

use super::errors::Sums;
use super::refining::Refinement;
use super::writeback::Dirty;
use crate::checkpoint::{Catalogue, TileReader};
use crate::disk::DiskFile;
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::plan::{Importance, OutputTensor, Piece, Rounding};

/// Weights in a slab: 0.6 MB in a 4-bit format, so that what was encoded is still in the core's own cache when it is
/// digested and written.
const SLAB_ELEMS: usize = 1 << 20;

/// Weights in a slab whose rows end up in many places: the more rows, the longer and the fewer the pieces. A
/// routed expert of DeepSeek-V3 fits, and is one piece then.
const STRIDED_SLAB_ELEMS: usize = 1 << 24;

/// Rows of a piece.
pub(super) struct Tile<'a> {
    pub(super) source: &'a Catalogue,
    pub(super) piece: &'a Piece,
    pub(super) rows: Range<usize>,
}

/// Buffers of one worker, reused from tile to tile.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) reader: TileReader,
    pub(super) tile: Vec<f32>,
    turned: Vec<f32>,
    /// Encoded bytes of the slab, by part.
    pub(super) parts: Vec<Vec<u8>>,
    /// The tile as the source has it, for an error report.
    source: Vec<f32>,
    /// What was encoded, decoded.
    decoded: Vec<f32>,
}

impl Worker {
    /// Reads the weights of `tile`, as they are to be written with this rounding; returns the bytes read.
    pub(super) fn read(&mut self, tile: &Tile<'_>, rounding: Rounding) -> Result<u64> {
        let (Tile { source, piece, .. }, rows) = (tile, tile.rows.clone());
        if piece.unscaled {
            return self.reader.read_unscaled(source, piece.source, rows, &mut self.tile);
        }
        let bytes = match rounding {
            Rounding::Exact => self.reader.read_unrounded(source, piece.source, rows, &mut self.tile)?,
            _ => self.reader.read(source, piece.source, rows, &mut self.tile)?,
        };
        if !piece.turn.is_none() {
            let (_, cols) = source.tensors()[piece.source].matrix();
            piece.turn.apply(&self.tile, cols, &mut self.turned);
            std::mem::swap(&mut self.tile, &mut self.turned);
        }
        Ok(bytes)
    }

    /// Copies the rows of `tile`, which are stored as they are to be written, to the end of `slab`; returns the
    /// bytes read.
    pub(super) fn copy(
        &mut self,
        slab: &mut Slab<'_>,
        tile: &Tile<'_>,
        sums: Option<&mut Sums>,
    ) -> Result<u64> {
        slab.begin(&mut self.parts);
        let (codec, id) = (slab.output.codec, tile.piece.source);
        let Self { reader, tile: weights, parts, .. } = self;
        let bytes = reader.read_stored(tile.source, id, codec, tile.rows.clone(), weights, &mut parts[0])?;
        slab.rows += tile.rows.len();
        if let Some(sums) = sums {
            sums.add(weights, weights);
        }
        Ok(bytes)
    }

    /// Gives the tile the precision that the encoder is to see.
    fn round(&mut self, rounding: Rounding) {
        rounding.apply(&mut self.tile);
    }

    /// As [`Worker::round`], then encodes the tile at the end of `slab`. With `sums`, decodes it again and adds
    /// how far that is from the source.
    pub(super) fn encode(
        &mut self,
        slab: &mut Slab<'_>,
        tile: &Tile<'_>,
        sums: Option<&mut Sums>,
    ) -> Result<()> {
        let rounding = slab.output.rounding;
        if sums.is_some() && rounding != Rounding::Exact {
            self.source.clone_from(&self.tile);
        }
        if slab.refinement.is_none() {
            self.round(rounding);
        }
        slab.encode(tile, &self.tile, &mut self.parts)?;
        if slab.refinement.is_none() {
            slab.keep_grids(tile, &self.reader, &mut self.parts);
        }
        let Some(sums) = sums else { return Ok(()) };
        self.decoded.resize(self.tile.len(), 0.0);
        slab.decode_last(&self.parts, &mut self.decoded);
        sums.add(
            if rounding == Rounding::Exact || slab.refinement.is_some() { &self.tile } else { &self.source },
            &self.decoded,
        );
        Ok(())
    }
}

/// The importance of the columns of one matrix of a stack.
struct Weighing<'a> {
    of: &'a Importance,
    /// The matrix, and what was read of it.
    current: Option<(usize, Vec<f32>)>,
}

impl<'a> Weighing<'a> {
    fn new(of: &'a Importance) -> Self {
        Self { of, current: None }
    }

    /// Encodes whole rows of `output`, of which `row` is the first.
    fn encode(&mut self, output: &OutputTensor, row: usize, tile: &[f32], bytes: &mut [u8]) -> Result<()> {
        let cols = output.row_len_elems();
        let rows = output.matrix_rows();
        let row_bytes = codec::part_len_bytes(output.codec, 0, cols as u64) as usize;
        let (mut row, mut tile, mut bytes) = (row, tile, bytes);
        while !tile.is_empty() {
            let matrix = row / rows;
            let count = (rows - row % rows).min(tile.len() / cols);
            let ((now, later), (to, rest)) =
                (tile.split_at(count * cols), bytes.split_at_mut(count * row_bytes));
            let importance = match &self.current {
                Some((known, importance)) if *known == matrix => importance,
                _ => {
                    let found =
                        self.of.imatrix.importance(&self.of.name, matrix * cols..(matrix + 1) * cols)?;
                    &self.current.insert((matrix, found)).1
                }
            };
            output.codec.encode_weighted(importance, now, &mut [to]);
            (row, tile, bytes) = (row + count, later, rest);
        }
        Ok(())
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
    /// Of all bytes that were written.
    wrote: Fingerprint,
    weighing: Option<Weighing<'a>>,
    refinement: Option<Arc<dyn Refinement>>,
}

impl<'a> Slab<'a> {
    /// `refinement` encodes, if there is one.
    pub(super) fn new(
        output: &'a OutputTensor,
        first_row: usize,
        tensor_scale: f32,
        refinement: Option<Arc<dyn Refinement>>,
    ) -> Self {
        let weighing = output.importance.as_ref().map(Weighing::new);
        Self { output, tensor_scale, first_row, rows: 0, wrote: Fingerprint::new(), weighing, refinement }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows * self.output.row_len_elems() >= slab_elems(self.output)
    }

    /// Makes room for the codec's parts, empty at the start of a slab.
    fn begin(&self, parts: &mut Vec<Vec<u8>>) {
        parts.resize_with(self.output.codec.parts().len().max(parts.len()), Vec::new);
        if self.rows == 0 {
            parts.iter_mut().for_each(Vec::clear);
        }
    }

    /// Encodes whole rows at the end of the slab: `tile`, made of rows of `piece`.
    fn encode(&mut self, from: &Tile<'_>, tile: &[f32], parts: &mut Vec<Vec<u8>>) -> Result<()> {
        let codec = self.output.codec;
        self.begin(parts);
        let mut ends = Vec::with_capacity(codec.parts().len());
        for (number, part) in parts.iter_mut().take(codec.parts().len()).enumerate() {
            let start = part.len();
            part.resize(start + codec::part_len_bytes(codec, number, tile.len() as u64) as usize, 0);
            ends.push(&mut part[start..]);
        }
        if let Some(refinement) = &self.refinement {
            let rows = from.piece.turn.order(from.rows.clone());
            refinement.encode(self.output, self.tensor_scale, &rows, tile, &mut ends)?;
            self.rows += rows.len();
            return Ok(());
        }
        match &mut self.weighing {
            None => codec.encode_under(self.tensor_scale, tile, &mut ends),
            Some(weighing) => weighing.encode(self.output, self.first_row + self.rows, tile, ends[0])?,
        }
        self.rows += tile.len() / self.output.row_len_elems();
        Ok(())
    }

    /// Writes groups anew that the source has as multiples of a step, where the codec can hold them exactly:
    /// the rows of `tile`, which were encoded last.
    fn keep_grids(&self, tile: &Tile<'_>, reader: &TileReader, parts: &mut [Vec<u8>]) {
        let Tile { source, piece, rows } = tile;
        if !piece.turn.is_none() {
            return;
        }
        let codec = self.output.codec;
        let elems = (rows.len() * self.output.row_len_elems()) as u64;
        let of_codec = parts.iter_mut().take(codec.parts().len()).enumerate();
        let mut ends: Vec<&mut [u8]> = of_codec
            .map(|(number, part)| {
                let start = part.len() - codec::part_len_bytes(codec, number, elems) as usize;
                &mut part[start..]
            })
            .collect();
        reader.keep_grids(source, piece.source, rows.clone(), codec, &mut ends);
    }

    /// Decodes the rows that were encoded last.
    fn decode_last(&self, parts: &[Vec<u8>], decoded: &mut [f32]) {
        let codec = self.output.codec;
        let ends: Vec<&[u8]> = parts
            .iter()
            .take(codec.parts().len())
            .enumerate()
            .map(|(number, part)| {
                let len = codec::part_len_bytes(codec, number, decoded.len() as u64) as usize;
                &part[part.len() - len..]
            })
            .collect();
        codec.decode_under(self.tensor_scale, &ends, decoded);
    }

    /// Fingerprint of all bytes that were written, slab after slab, the runs of each placement one after the other.
    pub(super) fn wrote(&self) -> u128 {
        self.wrote.finish()
    }

    /// Writes what was encoded and starts afresh.
    pub(super) fn write(&mut self, files: &[DiskFile], dirty: &Dirty, parts: &mut [Vec<u8>]) -> Result<()> {
        let Self { output, tensor_scale, first_row, rows, .. } = *self;
        let band = first_row..first_row + rows;
        let encoded: Vec<&[u8]> = parts.iter().take(output.codec.parts().len()).map(Vec::as_slice).collect();
        let packed = output.layout.pack(output.matrix(tensor_scale), band.clone(), &encoded);
        for ((placement, runs), bytes) in output.runs(band).zip(&packed) {
            let staged = &files[placement.file];
            self.wrote.update(&bytes[..runs.len_bytes()]);
            for (offset, range) in runs.pieces() {
                let offset = placement.offset_bytes + offset;
                staged.write_all_at(&bytes[range], offset)?;
            }
            dirty.mark(placement.file);
        }
        parts.iter_mut().for_each(Vec::clear);
        self.first_row += rows;
        self.rows = 0;
        Ok(())
    }
}

/// The bands of `rows` that become a slab each when they are encoded in tiles of `tile_rows`.
pub(super) fn bands(
    output: &OutputTensor,
    rows: Range<usize>,
    tile_rows: usize,
) -> impl Iterator<Item = Range<usize>> {
    let tile_elems = (tile_rows * output.row_len_elems()).max(1);
    let step = (tile_rows * slab_elems(output).div_ceil(tile_elems)).max(1);
    rows.clone().step_by(step).map(move |start| start..rows.end.min(start + step))
}

/// Most bytes that a slab of `output` holds, with tiles of `tile_elems` weights: a tile may go past the
/// slab's end, and a layout that is not the codec's own makes a copy.
pub(super) fn most_bytes(output: &OutputTensor, tile_elems: usize) -> u64 {
    let row = output.row_len_elems();
    let longest = slab_elems(output).min(output.len_elems() as usize);
    let elems = (longest + tile_elems.max(row * output.layout.band_rows())) as u64;
    let parts = (0..output.codec.parts().len()).map(|part| codec::part_len_bytes(output.codec, part, elems));
    let copies = if output.layout.band_rows() == 1 { 1 } else { 2 };
    copies * parts.sum::<u64>()
}

/// Weights after which a slab of `output` is written.
fn slab_elems(output: &OutputTensor) -> usize {
    let matrix = output.matrix(1.0);
    let band = 0..output.layout.band_rows().min(matrix.rows());
    let is_strided =
        (0..output.placements.len()).any(|tensor| output.layout.runs(matrix, tensor, band.clone()).count > 1);
    if is_strided { STRIDED_SLAB_ELEMS } else { SLAB_ELEMS }
}
