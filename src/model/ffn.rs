//! The gated feed-forward block: `down(activation(gate(x)) * up(x))`; a dense layer, a shared or a routed expert. Gate
//! and up projection of a dense layer or a routed expert may have biases; that of the down projection is for the caller to add, since what
//! it is added to is the caller's.
//!
//! Legend: B tokens of one block, K columns of a weight, I intermediate, C intermediate columns of one tile.

use rayon::prelude::*;

use super::exponential;
use super::linear::{Input, Output, add_to_row, check_finite, linear, optional_vector};
use super::matmul::{Into, View, wide_product_transposed};
use super::panel::{Slice, for_each_panel, tile_rows, tiles_per_panel};
use super::states::{BLOCK_ROWS, Part};
use super::watch;
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::{Ffn, LayerRole, Presence, Role};

/// Computes the block whose matrices have the roles `role(...)` on `x`, into `y`.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(crate) fn feed_forward(
    store: &dyn WeightStore,
    role: impl Fn(Ffn) -> Role,
    x: Input,
    y: Output,
) -> Result<()> {
    let (gate, up) = (store.weight(role(Ffn::Gate))?, store.weight(role(Ffn::Up))?);
    watch::input(store, gate.role, &x, None)?;
    watch::input(store, up.role, &x, None)?;
    let (gate_bias, up_bias) = (bias(store, gate.role)?, bias(store, up.role)?);
    let activation = store.spec().ffn.activation;
    let mut inner_TI = x.states().sibling(x.rows(), gate.rows)?;
    let cols = tile_rows(gate.cols, gate.unit_rows.max(up.unit_rows));
    let pairs: Vec<[Slice; 2]> = (0..gate.rows)
        .step_by(cols)
        .map(|first| {
            let rows = first..gate.rows.min(first + cols);
            [&gate, &up].map(|weight| Slice { store, weight, rows: rows.clone() })
        })
        .collect();
    let panels: Vec<Vec<Slice>> = pairs.chunks(pairs_per_panel(&x)).map(<[_]>::concat).collect();
    for_each_panel(&panels, |slices, tiles_CK| {
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else { return Ok(()) };
        let columns = first.rows.start..last.rows.end;
        inner_TI.for_each_block(BLOCK_ROWS, columns.clone(), Into::Replace, |tokens, part| {
            let x_BK = x.read(tokens.clone())?;
            let Part { data, stride, offset } = part;
            for (slices, tiles_CK) in slices.chunks_exact(2).zip(tiles_CK.chunks_exact(2)) {
                let cols = slices[0].rows.len();
                let multiply = |slice: &Slice, w_CK: View, bias: &[f32]| {
                    let mut y_BC = vec![0.0; tokens.len() * cols];
                    let x_BK = View::new(&x_BK, slice.weight.cols);
                    wide_product_transposed(x_BK, w_CK, &mut y_BC, cols, 0, Into::Replace);
                    check_finite(slice.weight, tokens.start, &y_BC, cols, 0..cols)?;
                    if let Some(bias_C) = bias.get(slice.rows.clone()) {
                        y_BC.chunks_exact_mut(cols).for_each(|y_C| add_to_row(y_C, bias_C));
                    }
                    Ok(y_BC)
                };
                let gate_BC = multiply(&slices[0], tiles_CK[0], &gate_bias)?;
                let up_BC = multiply(&slices[1], tiles_CK[1], &up_bias)?;
                let at = offset + slices[0].rows.start - columns.start;
                let inputs = gate_BC.par_chunks(cols).zip(up_BC.par_chunks(cols));
                data.par_chunks_mut(stride).zip(inputs).for_each(|(inner_I, (gate_C, up_C))| {
                    exponential::gated(activation, gate_C, up_C, &mut inner_I[at..at + cols]);
                });
            }
            Ok(())
        })
    })?;
    let inner = Input::All(&inner_TI);
    linear(store, role(Ffn::Down), inner, y)
}

/// The bias of the matrix with this role, empty where there is none; shared experts have none.
fn bias(store: &dyn WeightStore, role: Role) -> Result<Vec<f32>> {
    match role {
        Role::Layer(layer, LayerRole::Dense(ffn)) => {
            optional_vector(store, Role::Layer(layer, LayerRole::DenseBias(ffn)))
        }
        Role::Layer(layer, LayerRole::Expert(expert, ffn))
            if store.spec().moe(layer).is_some_and(|moe| moe.biases != Presence::Never) =>
        {
            optional_vector(store, Role::Layer(layer, LayerRole::ExpertBias(expert, ffn)))
        }
        _ => Ok(Vec::new()),
    }
}

/// Tiles of gate and up projection that are in memory together.
fn pairs_per_panel(x: &Input) -> usize {
    tiles_per_panel(&x.states().storage()).div_ceil(2)
}
