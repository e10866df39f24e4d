//! The multi-token prediction module of DeepSeek-V3 (arXiv 2412.19437, section 2.2): from the main model's
//! state of token `i` and the embedding of token `i + 1` it predicts token `i + 2`.
//!
//! Its input is `eh_proj [norm(embedding), norm(state)]`, the state after the model's final norm, as
//! published inference code has it; then comes one layer, and a head of its own (a copy of the main one).
//!
//! Legend: D hidden.

use super::linear::{has, linear_states, vector};
use super::matmul::Into;
use super::norm::norm_row;
use super::states::BLOCK_ROWS;
use super::{Hidden, Walk, embed_row, embedding, rope};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::{LayerRole, Role};

/// Whether the model has a prediction module.
pub fn has_second_next(store: &dyn WeightStore) -> bool {
    let spec = store.spec();
    spec.mtp_layers > 0 && has(store, Role::Layer(spec.layers, LayerRole::MtpProjection))
}

/// The prediction module's own copy of a weight, or the main model's where it has none.
pub(super) fn own_or(store: &dyn WeightStore, own: LayerRole, main: Role) -> Role {
    let own = Role::Layer(store.spec().layers, own);
    if has(store, own) { own } else { main }
}

/// Runs the first prediction module on the main model's final states. Windows of the result are one token
/// shorter: the last token of a window has no next one.
///
/// # Errors
/// As [`super::forward`].
pub fn second_next(store: &dyn WeightStore, main: &Hidden, tokens: &[u32], context: usize) -> Result<Hidden> {
    let mut walk = before_second_next(store, main, tokens, context)?;
    walk.attend()?;
    walk.feed(None)?;
    let head = own_or(store, LayerRole::MtpHead, Role::Output);
    let norm = own_or(store, LayerRole::MtpHeadNorm, Role::OutputNorm);
    Ok(Hidden { states: walk.states, norm, head })
}

/// The first prediction module on the main model's final states, in front of its layer, which is to be run half by half.
///
/// # Errors
/// As [`super::forward`].
pub fn before_second_next<'a>(
    store: &'a dyn WeightStore,
    main: &Hidden,
    tokens: &[u32],
    context: usize,
) -> Result<Walk<'a>> {
    let spec = store.spec();
    let number = spec.layers;
    let role = |role| Role::Layer(number, role);

    let next: Vec<u32> = tokens.chunks(context).flat_map(|window| &window[1..]).copied().collect();
    let embedding = embedding(store, own_or(store, LayerRole::MtpEmbedding, Role::TokenEmbedding), &next)?;
    let embedding_norm = vector(store, role(LayerRole::MtpEmbeddingNorm))?;
    let final_norm = vector(store, main.norm)?;
    let state_norm = vector(store, role(LayerRole::MtpHiddenNorm))?;
    let mut joined = main.states.sibling(next.len(), 2 * spec.hidden)?;
    joined.for_each_block(BLOCK_ROWS, 0..2 * spec.hidden, Into::Replace, |rows, part| {
        let (mut row_D, mut state_D) = (vec![0.0; spec.hidden], vec![0.0; spec.hidden]);
        for (at, joined) in rows.zip(part.data.chunks_exact_mut(2 * spec.hidden)) {
            let (left, right) = joined.split_at_mut(spec.hidden);
            embed_row(store, &embedding, next[at], &mut row_D)?;
            norm_row(&row_D, &embedding_norm, spec.norms.eps, left);
            // The windows that it comes after have one token more each.
            let token = at + at / (context - 1);
            norm_row(&main.states.read(token..token + 1)?, &final_norm, spec.norms.eps, &mut state_D);
            norm_row(&state_D, &state_norm, spec.norms.eps, right);
        }
        Ok(())
    })?;

    let states = linear_states(store, role(LayerRole::MtpProjection), &joined)?;
    let ropes = rope::Ropes::new(store, context, context)?;
    Ok(Walk { store, context: context - 1, ropes, states, layer: number })
}
