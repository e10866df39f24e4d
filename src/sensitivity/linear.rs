//! Backwards through a linear layer, `y = x w^T`: `dx = dy w`. The weight's own gradient is `dy^T x`, which nobody keeps.
//!
//! Legend: B rows of one block, K columns of a weight.

use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::Role;
use crate::model::matmul::{Into, View, add_wide_product};
use crate::model::panel::{Slice, for_each_panel, tiles, tiles_per_panel};
use crate::model::states::{BLOCK_ROWS, Part, States};

/// Adds to `dx` what the weight with this role passes on of `dy`.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept.
pub(super) fn add_back(store: &dyn WeightStore, role: Role, dy: &States, dx: &mut States) -> Result<()> {
    let weight = store.weight(role)?;
    let tiles: Vec<Slice> = tiles(store, &weight).collect();
    let panels: Vec<Vec<Slice>> =
        tiles.chunks(tiles_per_panel(&dx.storage())).map(<[Slice]>::to_vec).collect();
    for_each_panel(&panels, |slices, tiles_NK| {
        dx.for_each_block(BLOCK_ROWS, 0..weight.cols, Into::Add, |rows, part| {
            let dy_B = dy.read(rows)?;
            let Part { data, stride, offset } = part;
            for (slice, w_NK) in slices.iter().zip(tiles_NK) {
                let dy_BN = View::new(&dy_B, dy.cols()).columns(slice.rows.start, slice.rows.len());
                add_wide_product(dy_BN, *w_NK, data, stride, offset);
            }
            Ok(())
        })
    })
}

/// What the weight with this role passes on of `dy`.
///
/// # Errors
/// As [`add_back`].
pub(super) fn back(store: &dyn WeightStore, role: Role, dy: &States) -> Result<States> {
    let mut dx = dy.sibling(dy.rows(), store.weight(role)?.cols)?;
    add_back(store, role, dy, &mut dx)?;
    Ok(dx)
}
