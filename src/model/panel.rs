//! Weights on their way from the store to a product: the panel after next is read and decoded while one is
//! multiplied, so that no more than two are in memory, and every row is decoded once.
//!
//! A panel is a few tiles, of one weight or of several that are needed together. States in memory are
//! multiplied tile by tile; states in a scratch file are read once for every panel, so their panels are larger.

use std::ops::Range;

use rayon::prelude::*;

use super::matmul::View;
use super::states::Storage;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;

/// Most weights of a tile.
pub(crate) const TILE_WEIGHTS: usize = 4 << 20;
/// Rows decoded by one task, about; a multiple of the row blocks of every block format.
pub(crate) const DECODE_ROWS: usize = 128;
/// Tiles of a panel for states in a scratch file: reading and writing a block of states then takes a fraction of the
/// time of its product.
const SCRATCH_TILES: usize = 4;

/// Rows of one weight.
#[derive(Clone)]
pub(crate) struct Slice<'a> {
    pub(crate) store: &'a dyn WeightStore,
    pub(crate) weight: &'a Weight,
    pub(crate) rows: Range<usize>,
}

impl Slice<'_> {
    /// Decodes the rows, several pieces at once.
    fn decode(&self, tile: &mut Vec<f32>) -> Result<()> {
        let Self { store, weight, rows } = self;
        tile.resize(rows.len() * weight.cols, 0.0);
        let piece_rows = piece_rows(weight.unit_rows);
        tile.par_chunks_mut(piece_rows * weight.cols).enumerate().try_for_each(|(piece, tile)| {
            let first = rows.start + piece * piece_rows;
            store.read_rows(weight, first..first + tile.len() / weight.cols, tile)
        })
    }
}

/// Tiles of a panel.
pub(crate) fn tiles_per_panel(storage: &Storage) -> usize {
    match storage {
        Storage::Memory => 1,
        Storage::Scratch(_) => SCRATCH_TILES,
    }
}

/// All of a weight in tiles.
pub(crate) fn tiles<'a>(
    store: &'a dyn WeightStore,
    weight: &'a Weight,
) -> impl Iterator<Item = Slice<'a>> + 'a {
    let tile_rows = tile_rows(weight.cols, weight.unit_rows);
    (0..weight.rows).step_by(tile_rows).map(move |first| Slice {
        store,
        weight,
        rows: first..(first + tile_rows).min(weight.rows),
    })
}

/// Calls `consume` with every panel, in order, and its tiles as they are decoded.
///
/// # Errors
/// When a weight cannot be read, or what `consume` says.
pub(crate) fn for_each_panel<'a>(
    panels: &[Vec<Slice<'a>>],
    mut consume: impl FnMut(&[Slice<'a>], &[View]) -> Result<()> + Send,
) -> Result<()> {
    let (mut current, mut next) = (Vec::new(), Vec::new());
    decode(panels.first(), &mut current)?;
    for (number, panel) in panels.iter().enumerate() {
        let views: Vec<View> =
            panel.iter().zip(&current).map(|(slice, tile)| View::new(tile, slice.weight.cols)).collect();
        let following = panels.get(number + 1);
        let (consumed, decoded) = rayon::join(|| consume(panel, &views), || decode(following, &mut next));
        consumed?;
        decoded?;
        std::mem::swap(&mut current, &mut next);
    }
    Ok(())
}

fn decode(panel: Option<&Vec<Slice>>, tiles: &mut Vec<Vec<f32>>) -> Result<()> {
    let Some(panel) = panel else { return Ok(()) };
    tiles.resize_with(panel.len(), Vec::new);
    panel.iter().zip(tiles).try_for_each(|(slice, tile)| slice.decode(tile))
}

/// Rows decoded by one task: whole units, so that none is decoded twice.
fn piece_rows(unit_rows: usize) -> usize {
    (DECODE_ROWS / unit_rows).max(1) * unit_rows
}

/// Rows of a tile of a weight with `cols` columns: whole pieces, at least one.
pub(crate) fn tile_rows(cols: usize, unit_rows: usize) -> usize {
    let piece_rows = piece_rows(unit_rows);
    (TILE_WEIGHTS / cols / piece_rows).max(1) * piece_rows
}
