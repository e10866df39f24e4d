//! The gated feed-forward block: `down(activation(gate(x)) * up(x))`; a dense layer, a shared or a routed expert.
//!
//! Legend: T tokens, D hidden, I intermediate, C intermediate columns of one chunk.

use rayon::prelude::*;

use super::exponential;
use super::linear::{Output, linear, linear_rows};
use crate::arch::{Ffn, Role};
use crate::checkpoint::WeightStore;
use crate::error::Result;

/// Intermediate columns of a chunk.
pub(super) const CHUNK_COLS: usize = 1024;

/// Computes the block whose matrices have the roles `role(...)` on `x_TD`, into `y`.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(super) fn feed_forward(
    store: &dyn WeightStore,
    role: impl Fn(Ffn) -> Role,
    x_TD: &[f32],
    y: Output,
) -> Result<()> {
    let (gate, up) = (store.weight(role(Ffn::Gate))?, store.weight(role(Ffn::Up))?);
    let tokens = x_TD.len() / gate.cols;
    let width = gate.rows;
    let activation = store.spec().activation;
    let mut inner_TI = vec![0.0; tokens * width];
    let (mut gate_TC, mut up_TC) = (Vec::new(), Vec::new());
    for first in (0..width).step_by(CHUNK_COLS) {
        let cols = CHUNK_COLS.min(width - first);
        gate_TC.resize(tokens * cols, 0.0);
        up_TC.resize(tokens * cols, 0.0);
        linear_rows(store, &gate, first..first + cols, x_TD, Output::replace(&mut gate_TC, cols))?;
        linear_rows(store, &up, first..first + cols, x_TD, Output::replace(&mut up_TC, cols))?;
        let inputs = gate_TC.par_chunks(cols).zip(up_TC.par_chunks(cols));
        inner_TI.par_chunks_mut(width).zip(inputs).for_each(|(inner_I, (gate_C, up_C))| {
            exponential::gated(activation, gate_C, up_C, &mut inner_I[first..first + cols]);
        });
    }
    linear(store, role(Ffn::Down), &inner_TI, y)
}
