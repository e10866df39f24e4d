//! The output head: logits of chosen tokens, some rows of the vocabulary at a time.
//!
//! Legend: S chosen tokens, B tokens of one block, D hidden, C logits of one tile of the vocabulary.

use std::ops::Range;

use super::Hidden;
use super::exponential::soft_cap;
use super::linear::{Input, add_to_row, check_finite, optional_vector, vector};
use super::matmul::{Into, View, wide_product_transposed};
use super::norm::norm_row;
use super::panel::{Slice, for_each_panel, tiles, tiles_per_panel};
use super::states::{BLOCK_ROWS, States, in_groups};
use super::watch;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;
use crate::family::Role;

/// A head and what it is applied to.
pub(crate) struct Head<'a> {
    store: &'a dyn WeightStore,
    pub(crate) weight: Weight,
    /// Of every token of the vocabulary; empty when there is none.
    bias: Vec<f32>,
    pub(crate) x_SD: States,
}

impl<'a> Head<'a> {
    pub(crate) fn new(store: &'a dyn WeightStore, hidden: &Hidden, tokens: &[usize]) -> Result<Self> {
        let spec = store.spec();
        let norm = vector(store, hidden.norm)?;
        let mut x_SD = hidden.states.sibling(tokens.len(), spec.hidden)?;
        x_SD.for_each_block(BLOCK_ROWS, 0..spec.hidden, Into::Replace, |picks, part| {
            for (&token, x_D) in tokens[picks].iter().zip(part.data.chunks_exact_mut(spec.hidden)) {
                norm_row(&hidden.states.read(token..token + 1)?, &norm, spec.norms.eps, x_D);
            }
            Ok(())
        })?;
        // That of a prediction layer's own head would be another one; no model has it.
        let bias =
            if hidden.head == Role::Output { optional_vector(store, Role::OutputBias)? } else { Vec::new() };
        Ok(Self { store, weight: store.weight(hidden.head)?, bias, x_SD })
    }

    /// Logits `[B, C]` of block number `block` of the chosen tokens, for rows `rows` of the vocabulary, which are `w_CD`.
    pub(crate) fn multiply(&self, block: usize, rows: Range<usize>, w_CD: View) -> Result<Vec<f32>> {
        let first = block * BLOCK_ROWS;
        let x_BD = self.x_SD.read(first..self.x_SD.rows().min(first + BLOCK_ROWS))?;
        let x_BD = View::new(&x_BD, self.x_SD.cols());
        let mut logits_BC = vec![0.0; x_BD.rows * w_CD.rows];
        wide_product_transposed(x_BD, w_CD, &mut logits_BC, w_CD.rows, 0, Into::Replace);
        check_finite(&self.weight, first, &logits_BC, w_CD.rows, 0..w_CD.rows)?;
        if let Some(bias_C) = self.bias.get(rows) {
            logits_BC.chunks_exact_mut(w_CD.rows).for_each(|logits_C| add_to_row(logits_C, bias_C));
        }
        if let Some(cap) = self.store.spec().embedding.logit_cap {
            soft_cap(&mut logits_BC, 1.0, cap as f32);
        }
        Ok(logits_BC)
    }
}

/// Tells a store that watches what its output head is multiplied with: all of `hidden`.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept.
pub fn watch_output(store: &dyn WeightStore, hidden: &Hidden) -> Result<()> {
    let tokens: Vec<usize> = (0..hidden.states.rows()).collect();
    let head = Head::new(store, hidden, &tokens)?;
    watch::input(store, hidden.head, &Input::All(&head.x_SD), None)
}

/// All logits of `tokens`, `[S, vocab]`.
///
/// # Errors
/// As [`for_each_logit_chunk`].
pub fn logits(store: &dyn WeightStore, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>> {
    let mut rows = vec![Vec::with_capacity(store.spec().embedding.vocab); tokens.len()];
    for_each_logit_chunk(store, hidden, tokens, &mut rows, |rows, _, cols, logits_BC| {
        rows.iter_mut().zip(logits_BC.chunks(cols)).for_each(|(row, logits_C)| row.extend(logits_C));
    })?;
    Ok(rows.concat())
}

/// Computes the logits of `tokens`. For each block of them and each chunk of the vocabulary, in order, calls
/// `consume` with those of `scores` (one for each token) that are the block's, the first vocabulary row of the
/// chunk, its length, and the logits, token after token. Blocks come in parallel.
///
/// # Errors
/// When a weight cannot be read or a logit is not finite.
pub fn for_each_logit_chunk<T: Send>(
    store: &dyn WeightStore,
    hidden: &Hidden,
    tokens: &[usize],
    scores: &mut [T],
    consume: impl Fn(&mut [T], usize, usize, &[f32]) + Sync,
) -> Result<()> {
    let head = Head::new(store, hidden, tokens)?;
    let tiles: Vec<Slice> = tiles(store, &head.weight).collect();
    let panels: Vec<Vec<Slice>> =
        tiles.chunks(tiles_per_panel(&head.x_SD.storage())).map(<[Slice]>::to_vec).collect();
    for_each_panel(&panels, |slices, tiles_CD| {
        in_groups(scores.chunks_mut(BLOCK_ROWS).enumerate().collect(), |(block, scores)| {
            for (slice, &w_CD) in slices.iter().zip(tiles_CD) {
                let logits_BC = head.multiply(block, slice.rows.clone(), w_CD)?;
                consume(scores, slice.rows.start, w_CD.rows, &logits_BC);
            }
            Ok(())
        })
    })
}

/// The same for two models of one vocabulary.
///
/// # Errors
/// As [`for_each_logit_chunk`].
pub fn for_each_logit_chunk_pair<T: Send>(
    [a, b]: [(&dyn WeightStore, &Hidden); 2],
    tokens: &[usize],
    scores: &mut [T],
    consume: impl Fn(&mut [T], usize, usize, [&[f32]; 2]) + Sync,
) -> Result<()> {
    let (a, b) = (Head::new(a.0, a.1, tokens)?, Head::new(b.0, b.1, tokens)?);
    let pairs: Vec<[Slice; 2]> = tiles(a.store, &a.weight)
        .map(|slice| {
            let other = Slice { store: b.store, weight: &b.weight, rows: slice.rows.clone() };
            [slice, other]
        })
        .collect();
    let pairs_per_panel = tiles_per_panel(&a.x_SD.storage()).div_ceil(2);
    let panels: Vec<Vec<Slice>> = pairs.chunks(pairs_per_panel).map(<[_]>::concat).collect();
    for_each_panel(&panels, |slices, tiles_CD| {
        in_groups(scores.chunks_mut(BLOCK_ROWS).enumerate().collect(), |(block, scores)| {
            for (slices, tiles_CD) in slices.chunks_exact(2).zip(tiles_CD.chunks_exact(2)) {
                let rows = &slices[0].rows;
                let a_BC = a.multiply(block, rows.clone(), tiles_CD[0])?;
                let b_BC = b.multiply(block, rows.clone(), tiles_CD[1])?;
                consume(scores, rows.start, rows.len(), [&a_BC, &b_BC]);
            }
            Ok(())
        })
    })
}
