//! A linear layer straight from the store: decodes a tile of weight rows while the tile before it is
//! multiplied, so that no more than two tiles of a weight are in memory.

use std::ops::Range;

use rayon::prelude::*;

use super::matmul::{Into, View, wide_product_transposed};
use crate::arch::Role;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::{Error, Result};

/// Most weights of a tile.
pub(super) const TILE_WEIGHTS: usize = 4 << 20;
/// Rows decoded by one task, about; a multiple of the row blocks of every block format.
pub(super) const DECODE_ROWS: usize = 128;
/// Tokens multiplied at a time: the fewer, the more often a tile is packed anew. With 512 a product of 7168 columns
/// runs at 231 GFLOP/s on one core of an AMD EPYC with AVX-512, with 256 at 219, with 1024 at 236.
const TOKEN_BLOCK: usize = 512;

/// Where a product goes: columns `offset..` of a matrix with `stride` columns.
pub(super) struct Output<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) offset: usize,
    pub(super) into: Into,
}

impl<'a> Output<'a> {
    /// All columns of `data`, old values replaced.
    pub(super) fn replace(data: &'a mut [f32], stride: usize) -> Self {
        Self { data, stride, offset: 0, into: Into::Replace }
    }

    /// All columns of `data`, added to what is there.
    pub(super) fn add(data: &'a mut [f32], stride: usize) -> Self {
        Self { data, stride, offset: 0, into: Into::Add }
    }
}

/// `x w^T` for all of the weight with this role.
pub(super) fn linear(store: &dyn WeightStore, role: Role, x_TK: &[f32], y: Output) -> Result<()> {
    let weight = store.weight(role)?;
    let rows = 0..weight.rows;
    linear_rows(store, &weight, rows, x_TK, y)
}

/// `x w^T` for some rows of a weight.
///
/// # Errors
/// When a weight cannot be read; when the product is not finite.
pub(super) fn linear_rows(
    store: &dyn WeightStore,
    weight: &Weight,
    rows: Range<usize>,
    x_TK: &[f32],
    y: Output,
) -> Result<()> {
    let Output { data, stride, offset, into } = y;
    let start = rows.start;
    for_each_tile(store, weight, rows, |first_row, w_NK| {
        let column = offset + first_row - start;
        let bad = data
            .par_chunks_mut(TOKEN_BLOCK * stride)
            .zip(x_TK.par_chunks(TOKEN_BLOCK * weight.cols))
            .enumerate()
            .map(|(block, (y, x))| {
                wide_product_transposed(View::new(x, weight.cols), w_NK, y, stride, column, into);
                let rows = y.chunks(stride).map(|row| &row[column..][..w_NK.rows]);
                let at = rows.enumerate().find(|(_, row)| row.iter().any(|value| !value.is_finite()));
                at.map(|(row, _)| block * TOKEN_BLOCK + row)
            })
            .find_first(Option::is_some);
        match bad.flatten() {
            None => Ok(()),
            Some(token) => Err(not_finite(weight, token)),
        }
    })
}

/// Calls `consume` with every tile of `rows`, in order: its first row and its weights.
///
/// # Errors
/// When a weight cannot be read, or what `consume` says.
pub(super) fn for_each_tile(
    store: &dyn WeightStore,
    weight: &Weight,
    rows: Range<usize>,
    mut consume: impl FnMut(usize, View) -> Result<()> + Send,
) -> Result<()> {
    let tile_rows = tile_rows(weight.cols, weight.unit_rows);
    let tile = |first: usize| first..(first + tile_rows).min(rows.end);
    let mut current = Vec::new();
    let mut next = Vec::new();
    decode(store, weight, tile(rows.start), &mut current)?;
    for first in rows.clone().step_by(tile_rows) {
        let following = tile((first + tile_rows).min(rows.end));
        let view = View::new(&current, weight.cols);
        let (consumed, decoded) =
            rayon::join(|| consume(first, view), || decode(store, weight, following, &mut next));
        consumed?;
        decoded?;
        std::mem::swap(&mut current, &mut next);
    }
    Ok(())
}

/// Rows decoded by one task: whole units, so that none is decoded twice.
fn piece_rows(unit_rows: usize) -> usize {
    (DECODE_ROWS / unit_rows).max(1) * unit_rows
}

/// Rows of a tile of a weight with `cols` columns: whole pieces, at least one.
pub(super) fn tile_rows(cols: usize, unit_rows: usize) -> usize {
    let piece_rows = piece_rows(unit_rows);
    (TILE_WEIGHTS / cols / piece_rows).max(1) * piece_rows
}

/// Decodes `rows`, several pieces at once.
fn decode(store: &dyn WeightStore, weight: &Weight, rows: Range<usize>, tile: &mut Vec<f32>) -> Result<()> {
    tile.resize(rows.len() * weight.cols, 0.0);
    let piece_rows = piece_rows(weight.unit_rows);
    tile.par_chunks_mut(piece_rows * weight.cols).enumerate().try_for_each(|(piece, tile)| {
        let first = rows.start + piece * piece_rows;
        store.read_rows(weight, first..first + tile.len() / weight.cols, tile)
    })
}

/// Adds a bias to every row of a product: to columns `offset..` of rows `stride` apart.
pub(super) fn add_bias(y: &mut [f32], stride: usize, offset: usize, bias: &[f32]) {
    y.par_chunks_mut(stride).for_each(|row| {
        row[offset..].iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
    });
}

/// A vector of weights.
///
/// # Errors
/// When it cannot be read.
pub(super) fn vector(store: &dyn WeightStore, role: Role) -> Result<Vec<f32>> {
    let weight = store.weight(role)?;
    let mut values = vec![0.0; weight.rows * weight.cols];
    store.read_rows(&weight, 0..weight.rows, &mut values)?;
    Ok(values)
}

/// The first product that is NaN or infinite ends a run.
pub(super) fn not_finite(weight: &Weight, row: usize) -> Error {
    let place = match weight.role {
        Role::Layer(layer, _) => format!("layer {layer}"),
        _ => "outside the layers".to_owned(),
    };
    let message = format!(
        "tensor {} ({place}): its product is NaN or infinite for token {row} of those it saw; \
         nothing before it was, so look at this tensor first",
        weight.name
    );
    Error::checkpoint(&weight.file, message)
}
