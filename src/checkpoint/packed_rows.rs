//! Reads rows of a packed weight: whole bands of its layout, unpacked and kept for the next tile.

use std::ops::Range;

use requant_formats::codec::Grid;
use requant_formats::layout::Runs;

use super::witness::Witness;
use super::{Catalogue, Packed};
use crate::error::{Error, Result};

/// Weights unpacked at once, at least: a tile is smaller, and layouts that store rows in short pieces
/// are read much faster by many rows.
const BAND_ELEMS: usize = 1 << 22;

/// Pieces whose starts are no further apart are read with what is between them.
const NEAR_BYTES: u64 = 1 << 12;

/// Bytes of a factor on all scales.
pub(super) const TENSOR_SCALE_BYTES: usize = 4;

/// The parts of a band of rows.
#[derive(Default)]
pub(super) struct PackedRows {
    /// No rows from this one on are wanted, except to fill the last band.
    end: Option<usize>,
    /// Which tensor of the catalogue, and which of its rows.
    held: Option<(usize, Range<usize>)>,
    /// The codec's parts of those rows.
    parts: Vec<Vec<u8>>,
    tensor_scale: f32,
    /// Products of codes and scales are wanted without the rounding that the format has for them.
    pub(super) unrounded: bool,
}

impl PackedRows {
    /// Rows up to `end` are read next; nothing that was read before is used for them.
    pub(super) fn begin(&mut self, end: usize) {
        (self.held, self.end) = (None, Some(end));
    }

    /// Any rows may be read next.
    pub(super) fn end(&mut self) {
        self.end = None;
    }

    /// Decodes `rows` of weight `id` into `tile`; returns the bytes that were read for it.
    pub(super) fn read(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        packed: &Packed,
        rows: Range<usize>,
        tile: &mut [f32],
        witness: Option<&mut Witness>,
    ) -> Result<u64> {
        let mut read_bytes = 0;
        let holds = self
            .held
            .as_ref()
            .is_some_and(|(held, band)| *held == id && band.start <= rows.start && rows.end <= band.end);
        if !holds {
            self.held = None;
            let band = band(catalogue, id, packed, &rows, self.end.unwrap_or(usize::MAX));
            read_bytes = self.unpack(catalogue, id, packed, band.clone(), witness)?;
            self.held = Some((id, band));
        }
        let Some((_, band)) = &self.held else { return Ok(read_bytes) };
        let matrix = packed.matrix(&catalogue.tensors()[id].shape, self.tensor_scale);
        let skipped = rows.start - band.start;
        let wanted: Vec<&[u8]> = self
            .parts
            .iter()
            .enumerate()
            .map(|(part, bytes)| {
                let row_bytes = matrix.row_bytes(part);
                &bytes[skipped * row_bytes..(skipped + rows.len()) * row_bytes]
            })
            .collect();
        if self.unrounded {
            packed.codec.decode_unrounded(self.tensor_scale, &wanted, tile);
        } else {
            packed.codec.decode_under(self.tensor_scale, &wanted, tile);
        }
        Ok(read_bytes)
    }

    /// Group `group` of row `row` of weight `id`, if rows with it were just read and groups are multiples of a step.
    pub(super) fn grid<'a>(
        &self,
        catalogue: &Catalogue,
        id: usize,
        packed: &Packed,
        row: usize,
        group: usize,
        codes: &'a mut [u8],
    ) -> Option<Grid<'a>> {
        let (held, band) = self.held.as_ref()?;
        if *held != id || !band.contains(&row) {
            return None;
        }
        let groups = packed.matrix(&catalogue.tensors()[id].shape, self.tensor_scale).groups_per_row();
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        packed.codec.grid(&parts, (row - band.start) * groups + group, codes)
    }

    /// The same for groups of 4-bit floats under a power of two, whose byte it returns.
    pub(super) fn powers(
        &self,
        catalogue: &Catalogue,
        id: usize,
        packed: &Packed,
        row: usize,
        group: usize,
        codes: &mut [u8],
    ) -> Option<u8> {
        let (held, band) = self.held.as_ref()?;
        if *held != id || !band.contains(&row) {
            return None;
        }
        let groups = packed.matrix(&catalogue.tensors()[id].shape, self.tensor_scale).groups_per_row();
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        packed.codec.powers(&parts, (row - band.start) * groups + group, codes)
    }

    fn unpack(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        packed: &Packed,
        band: Range<usize>,
        mut witness: Option<&mut Witness>,
    ) -> Result<u64> {
        let tensor = &catalogue.tensors()[id];
        let mut read_bytes = 0;
        let read = |number: usize, offset_bytes: u64, bytes: &mut [u8]| {
            let stored = &catalogue.tensors()[packed.stored(id, number)];
            catalogue.source().read_at(stored.file, stored.offset_bytes + offset_bytes, bytes)
        };
        let mut digest = |number: usize, runs: Runs, bytes: &[u8]| {
            let stored = &catalogue.tensors()[packed.stored(id, number)];
            let start_bytes = stored.offset_bytes + runs.offset_bytes;
            match &mut witness {
                Some(witness) if runs.count == 1 => witness.read(stored.file, start_bytes, bytes),
                Some(witness) if !bytes.is_empty() => witness.read_runs(start_bytes, bytes),
                _ => {}
            }
        };
        self.tensor_scale = 1.0;
        if let Some(number) = packed.layout.tensor_scale_in() {
            let mut bytes = [0; TENSOR_SCALE_BYTES];
            read(number, 0, &mut bytes)?;
            read_bytes += bytes.len() as u64;
            digest(number, Runs::one(0, TENSOR_SCALE_BYTES), &bytes);
            self.tensor_scale = f32::from_le_bytes(bytes);
        }
        let matrix = packed.matrix(&tensor.shape, self.tensor_scale);
        let mut stored = Vec::with_capacity(packed.companions.len() + 1);
        for number in 0..=packed.companions.len() {
            let runs = packed.layout.runs(matrix, number, band.clone());
            let mut bytes = vec![0; runs.len_bytes()];
            read_bytes += bytes.len() as u64;
            if runs.count > 1 && runs.stride_bytes <= NEAR_BYTES {
                // One read of all is faster than many.
                let mut span = vec![0; runs.span_bytes() as usize];
                read(number, runs.offset_bytes, &mut span)?;
                for (offset_bytes, range) in runs.pieces() {
                    let start = (offset_bytes - runs.offset_bytes) as usize;
                    bytes[range].copy_from_slice(&span[start..start + runs.run_bytes]);
                }
            } else {
                for (offset_bytes, range) in runs.pieces() {
                    read(number, offset_bytes, &mut bytes[range])?;
                }
            }
            digest(number, runs, &bytes);
            stored.push(bytes);
        }
        let parts = packed.codec.parts().len();
        self.parts.resize_with(parts, Vec::new);
        for (part, bytes) in self.parts.iter_mut().enumerate() {
            bytes.resize(band.len() * matrix.row_bytes(part), 0);
        }
        let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
        let mut parts: Vec<&mut [u8]> = self.parts.iter_mut().map(Vec::as_mut_slice).collect();
        packed.layout.unpack(matrix, band, &stored, &mut parts).map_err(|error| {
            let file = &catalogue.source().files()[tensor.file].name;
            Error::checkpoint(file, format!("tensor {}: {error}", tensor.name))
        })?;
        Ok(read_bytes)
    }
}

/// How often the source is read to unpack `rows`, and the band that is unpacked with them.
pub(super) fn reads(
    catalogue: &Catalogue,
    id: usize,
    packed: &Packed,
    rows: &Range<usize>,
) -> (usize, Range<usize>) {
    let matrix = packed.matrix(&catalogue.tensors()[id].shape, 1.0);
    let band = band(catalogue, id, packed, rows, usize::MAX);
    let parts = 0..=packed.companions.len();
    let runs = parts.map(|number| packed.layout.runs(matrix, number, band.clone()).count);
    (runs.sum::<usize>() + usize::from(packed.layout.tensor_scale_in().is_some()), band)
}

/// Rows that are unpacked together when the first of them is wanted.
pub(super) fn unit_rows(catalogue: &Catalogue, id: usize, packed: &Packed) -> usize {
    band(catalogue, id, packed, &(0..1), usize::MAX).len()
}

/// The rows to unpack when `rows` are wanted: whole bands of the layout, and enough of them where the
/// codes of a row lie in many places, but none that only rows from `end` on are in.
pub(super) fn band(
    catalogue: &Catalogue,
    id: usize,
    packed: &Packed,
    rows: &Range<usize>,
    end: usize,
) -> Range<usize> {
    let (total, cols) = catalogue.tensors()[id].matrix();
    let step = packed.layout.band_rows();
    let last = end.min(total).next_multiple_of(step).min(total);
    let start = rows.start / step * step;
    let end = rows.end.next_multiple_of(step).min(total);
    let tensor = &catalogue.tensors()[id];
    let runs = packed.layout.runs(packed.matrix(&tensor.shape, 1.0), packed.own, start..end);
    let least = if runs.count > 1 { (start + BAND_ELEMS / cols.max(1)).next_multiple_of(step) } else { end };
    start..end.max(least.min(last))
}
