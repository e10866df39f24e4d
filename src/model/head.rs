//! The output head: logits of chosen tokens, some rows of the vocabulary at a time.
//!
//! Legend: S chosen tokens, D hidden, C logits of one chunk of the vocabulary.

use rayon::prelude::*;

use super::Hidden;
use super::linear::{for_each_tile, not_finite, vector};
use super::matmul::{Into, View, product_transposed};
use super::norm::rms_norm;
use crate::arch::Role;
use crate::checkpoint::WeightStore;
use crate::error::Result;

/// Tokens multiplied by one task.
const TOKEN_BLOCK: usize = 256;

/// Computes the logits of `tokens` and calls `consume` for each chunk of the vocabulary, in order, with the
/// first vocabulary row of the chunk, its length, and the logits `[S, C]`.
///
/// # Errors
/// When a weight cannot be read or a logit is not finite.
pub fn for_each_logit_chunk(
    store: &dyn WeightStore,
    hidden: &Hidden,
    tokens: &[usize],
    mut consume: impl FnMut(usize, usize, &[f32]) + Send,
) -> Result<()> {
    let spec = store.spec();
    let row = |&token: &usize| &hidden.hidden_TD[token * spec.hidden..][..spec.hidden];
    let x_SD: Vec<f32> = tokens.iter().flat_map(row).copied().collect();
    let norm = vector(store, Role::OutputNorm)?;
    let x_SD = rms_norm(&x_SD, spec.hidden, &norm, spec.norm_eps);
    let head = store.weight(Role::Output)?;
    let mut logits_SC = Vec::new();
    for_each_tile(store, &head, 0..head.rows, |first, w_CD| {
        let cols = w_CD.rows;
        logits_SC.resize(tokens.len() * cols, 0.0);
        let blocks = logits_SC.par_chunks_mut(TOKEN_BLOCK * cols);
        blocks.zip(x_SD.par_chunks(TOKEN_BLOCK * spec.hidden)).for_each(|(logits, x)| {
            product_transposed(View::new(x, spec.hidden), w_CD, logits, cols, 0, Into::Replace);
        });
        let bad = logits_SC.par_iter().position_first(|logit| !logit.is_finite());
        if let Some(bad) = bad {
            return Err(not_finite(&head, bad / cols));
        }
        consume(first, cols, &logits_SC);
        Ok(())
    })
}
