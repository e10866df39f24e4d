//! Largest magnitudes of source tensors, for codecs with a factor on a whole tensor's scales.
//!
//! Such a tensor is read twice: once to know its largest weight, once to encode it. Tensors that share
//! their factor ([`OutputTensor::scale_sources`]) need each other's, and each is looked at once.

use std::sync::{Mutex, PoisonError};

use crate::checkpoint::{Catalogue, TileReader, Unit};
use crate::error::Result;
use crate::plan::OutputTensor;

/// Weights looked at in one go.
const TILE_ELEMS: usize = 1 << 18;

/// What is known so far, by source tensor: its largest magnitude, and the fingerprint of what was read for it.
pub(super) struct Maxima(Vec<Mutex<Option<(f32, u128)>>>);

/// How tensor `id` is read to know its largest weight.
pub(super) fn unit(source: &Catalogue, id: usize) -> Unit {
    let (rows, cols) = source.tensors()[id].matrix();
    Unit { id, rows: 0..rows, tile_rows: (TILE_ELEMS / cols.max(1)).max(1), unscaled: false }
}

impl Maxima {
    /// Nothing is known.
    pub(super) fn new(tensors: usize) -> Self {
        Self((0..tensors).map(|_| Mutex::new(None)).collect())
    }

    /// The factor on the scales of `output`, 1 for codecs without one, and the sum of the fingerprints of what it
    /// was found from.
    pub(super) fn tensor_scale(
        &self,
        source: &Catalogue,
        output: &OutputTensor,
        reader: &mut TileReader,
    ) -> Result<(f32, u128)> {
        let own = output.pieces.iter().map(|piece| piece.source);
        let mut largest = 0.0f32;
        // Its own first: the worker at the tensor it shares with does the other one meanwhile.
        for id in
            own.filter(|id| output.scale_sources.contains(id)).chain(output.scale_sources.iter().copied())
        {
            largest = largest.max(self.max_abs(source, id, reader)?.0);
        }
        let mut read = 0u128;
        for &id in &output.scale_sources {
            read = read.wrapping_add(self.max_abs(source, id, reader)?.1);
        }
        // Rounding keeps order: the largest of rounded weights is the largest, rounded.
        let mut largest = [largest];
        output.rounding.apply(&mut largest);
        Ok((output.codec.tensor_scale(largest[0]).unwrap_or(1.0), read))
    }

    fn max_abs(&self, source: &Catalogue, id: usize, reader: &mut TileReader) -> Result<(f32, u128)> {
        // A worker that comes second waits for the first; nobody holds one while waiting for another.
        let mut known = self.0[id].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *known {
            return Ok(known);
        }
        let unit = unit(source, id);
        reader.begin(source, &unit)?;
        let mut tile = Vec::new();
        let mut largest = 0.0f32;
        for start in unit.rows.clone().step_by(unit.tile_rows) {
            reader.read(source, id, start..unit.rows.end.min(start + unit.tile_rows), &mut tile)?;
            largest = tile.iter().fold(largest, |largest, weight| largest.max(weight.abs()));
        }
        let found = (largest, reader.finish());
        *known = Some(found);
        Ok(found)
    }
}
