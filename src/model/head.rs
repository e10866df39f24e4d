//! The output head: logits of chosen tokens, some rows of the vocabulary at a time.
//!
//! Legend: S chosen tokens, D hidden, C logits of one chunk of the vocabulary.

use rayon::prelude::*;

use super::Hidden;
use super::exponential::soft_cap;
use super::linear::{for_each_tile, not_finite, vector};
use super::matmul::{Into, View, wide_product_transposed};
use super::norm::rms_norm;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;

/// Tokens multiplied at a time.
const TOKEN_BLOCK: usize = 512;
/// Logits capped at a time.
const CAPPED: usize = 1 << 16;

/// A head and what it is applied to.
struct Head<'a> {
    store: &'a dyn WeightStore,
    weight: Weight,
    x_SD: Vec<f32>,
    logits_SC: Vec<f32>,
}

impl<'a> Head<'a> {
    fn new(store: &'a dyn WeightStore, hidden: &Hidden, tokens: &[usize]) -> Result<Self> {
        let spec = store.spec();
        let row = |&token: &usize| &hidden.hidden_TD[token * spec.hidden..][..spec.hidden];
        let mut x_SD = Vec::with_capacity(tokens.len() * spec.hidden);
        tokens.iter().for_each(|token| x_SD.extend_from_slice(row(token)));
        let norm = vector(store, hidden.norm)?;
        let x_SD = rms_norm(&x_SD, spec.hidden, &norm, spec.norm_eps);
        Ok(Self { store, weight: store.weight(hidden.head)?, x_SD, logits_SC: Vec::new() })
    }

    /// Logits of the rows in `w_CD`, as columns `offset..` of chunks of `cols` columns.
    fn multiply(&mut self, w_CD: View, cols: usize, offset: usize) -> Result<()> {
        let width = self.weight.cols;
        self.logits_SC.resize(self.x_SD.len() / width * cols, 0.0);
        let blocks = self.logits_SC.par_chunks_mut(TOKEN_BLOCK * cols);
        blocks.zip(self.x_SD.par_chunks(TOKEN_BLOCK * width)).for_each(|(logits, x)| {
            wide_product_transposed(View::new(x, width), w_CD, logits, cols, offset, Into::Replace);
        });
        if let Some(bad) = self.logits_SC.par_iter().position_first(|logit| !logit.is_finite()) {
            return Err(not_finite(&self.weight, bad / cols));
        }
        Ok(())
    }

    /// Soft-caps all logits of a chunk, where the model does so.
    fn cap(&mut self) {
        if let Some(cap) = self.store.spec().logit_cap {
            self.logits_SC.par_chunks_mut(CAPPED).for_each(|logits| soft_cap(logits, 1.0, cap as f32));
        }
    }
}

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
    let mut head = Head::new(store, hidden, tokens)?;
    let weight = head.weight.clone();
    for_each_tile(store, &weight, 0..weight.rows, |first, w_CD| {
        head.multiply(w_CD, w_CD.rows, 0)?;
        head.cap();
        consume(first, w_CD.rows, &head.logits_SC);
        Ok(())
    })
}

/// The same for two models of one vocabulary, chunk by chunk.
///
/// # Errors
/// As [`for_each_logit_chunk`].
pub fn for_each_logit_chunk_pair(
    [a, b]: [(&dyn WeightStore, &Hidden); 2],
    tokens: &[usize],
    mut consume: impl FnMut(usize, usize, [&[f32]; 2]) + Send,
) -> Result<()> {
    let mut head = Head::new(a.0, a.1, tokens)?;
    let mut other = Head::new(b.0, b.1, tokens)?;
    let (weight, other_weight) = (head.weight.clone(), other.weight.clone());
    for_each_tile(head.store, &weight, 0..weight.rows, |first, w_CD| {
        let cols = w_CD.rows;
        head.multiply(w_CD, cols, 0)?;
        let store = other.store;
        for_each_tile(store, &other_weight, first..first + cols, |at, w_CD| {
            other.multiply(w_CD, cols, at - first)
        })?;
        [&mut head, &mut other].into_iter().for_each(Head::cap);
        consume(first, cols, [&head.logits_SC, &other.logits_SC]);
        Ok(())
    })
}
