//! Tells a store that watches what its weights are multiplied with.
//!
//! Sums run over rows from the first to the last, in `f64`: they do not depend on the number of threads.
//!
//! Legend: B rows of one block, K columns.

use rayon::prelude::*;

use super::linear::Input;
use super::states::BLOCK_ROWS;
use crate::checkpoint::{Watched, WeightStore};
use crate::error::Result;
use crate::family::Role;

/// Columns that are summed by one thread.
const COLUMNS: usize = 256;

/// The weight with this role is multiplied with `x`.
///
/// # Errors
/// When the states cannot be read.
pub(super) fn input(store: &dyn WeightStore, role: Role, x: &Input) -> Result<()> {
    let Some(watcher) = store.watcher() else { return Ok(()) };
    let mut sums_K = vec![0.0; x.states().cols()];
    for first in (0..x.rows()).step_by(BLOCK_ROWS) {
        add_squares(&mut sums_K, &x.read(first..x.rows().min(first + BLOCK_ROWS))?);
    }
    watcher.saw(Watched::Weight(role), &sums_K, x.rows());
    Ok(())
}

/// Adds the squares of each column of `x_BK`.
pub(super) fn add_squares(sums_K: &mut [f64], x_BK: &[f32]) {
    let cols = sums_K.len();
    sums_K.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
        for row in x_BK.chunks_exact(cols) {
            let columns = &row[chunk * COLUMNS..][..sums.len()];
            sums.iter_mut().zip(columns).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
    });
}
