//! Tells a store that watches what its weights are multiplied with.
//!
//! Sums run over rows from the first to the last, in `f64`: they do not depend on the number of threads.
//!
//! Legend: B rows of one block, K columns.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::linear::Input;
use super::states::{BLOCK_ROWS, States};
use crate::checkpoint::{Matrix, Watched, WeightStore};
use crate::error::Result;
use crate::family::Role;

/// Columns that are summed by one thread.
const COLUMNS: usize = 256;

/// The weight with this role is multiplied with `x`, and the product is added to `hidden`, if that is given.
///
/// # Errors
/// When the states cannot be read; what the watcher says.
pub(super) fn input(store: &dyn WeightStore, role: Role, x: &Input, hidden: Option<&States>) -> Result<()> {
    let Some(watcher) = store.watcher() else { return Ok(()) };
    watcher.meets(role, x, hidden.map(|hidden| hidden as &dyn Matrix))?;
    if watcher.wants_sums() {
        let mut sums_K = vec![0.0; x.states().cols()];
        for first in (0..x.rows()).step_by(BLOCK_ROWS) {
            add_squares(&mut sums_K, &x.read(first..x.rows().min(first + BLOCK_ROWS))?);
        }
        watcher.saw(Watched::Weight(role), &sums_K, x.rows());
    }
    Ok(())
}

/// Whether somebody wants sums of what is multiplied.
pub(super) fn wants_sums(store: &dyn WeightStore) -> bool {
    store.watcher().is_some_and(crate::checkpoint::Watcher::wants_sums)
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

impl Matrix for Input<'_> {
    fn rows(&self) -> usize {
        Input::rows(self)
    }

    fn cols(&self) -> usize {
        self.states().cols()
    }

    fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        Input::read(self, rows)
    }

    fn picks(&self) -> Option<&[(usize, f32)]> {
        match self {
            Self::All(_) => None,
            Self::Picked(_, picks) => Some(picks),
        }
    }
}

impl Matrix for States {
    fn rows(&self) -> usize {
        States::rows(self)
    }

    fn cols(&self) -> usize {
        States::cols(self)
    }

    fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        States::read(self, rows)
    }
}
