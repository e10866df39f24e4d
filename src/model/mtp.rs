//! The multi-token prediction module of DeepSeek-V3 (arXiv 2412.19437, section 2.2): from the main model's
//! state of token `i` and the embedding of token `i + 1` it predicts token `i + 2`.
//!
//! Its input is `eh_proj [norm(embedding), norm(state)]`, the state after the model's final norm, as
//! published inference code has it; then comes one layer, and a head of its own (a copy of the main one).
//!
//! Legend: T tokens of all windows without the last of each, D hidden.

use super::linear::{Output, linear, vector};
use super::norm::rms_norm;
use super::{Hidden, embed, layer, rope};
use crate::arch::{LayerRole, Role};
use crate::checkpoint::WeightStore;
use crate::error::Result;

/// Whether the model has a prediction module.
pub fn has_second_next(store: &dyn WeightStore) -> bool {
    let spec = store.spec();
    spec.mtp_layers > 0 && store.weight(Role::Layer(spec.layers, LayerRole::MtpProjection)).is_ok()
}

/// The prediction module's own copy of a weight, or the main model's where it has none.
pub(super) fn own_or(store: &dyn WeightStore, own: LayerRole, main: Role) -> Role {
    let own = Role::Layer(store.spec().layers, own);
    if store.weight(own).is_ok() { own } else { main }
}

/// Runs the first prediction module on the main model's final states. Windows of the result are one token
/// shorter: the last token of a window has no next one.
///
/// # Errors
/// As [`super::forward`].
pub fn second_next(store: &dyn WeightStore, main: &Hidden, tokens: &[u32], context: usize) -> Result<Hidden> {
    let spec = store.spec();
    let number = spec.layers;
    let role = |role| Role::Layer(number, role);

    let next: Vec<u32> = tokens.chunks(context).flat_map(|window| &window[1..]).copied().collect();
    let embedding_TD = embed(store, own_or(store, LayerRole::MtpEmbedding, Role::TokenEmbedding), &next)?;
    let norm = |x: &[f32], role| -> Result<Vec<f32>> {
        Ok(rms_norm(x, spec.hidden, &vector(store, role)?, spec.norm_eps))
    };
    let embedding_TD = norm(&embedding_TD, role(LayerRole::MtpEmbeddingNorm))?;
    let state = norm(&main.hidden_TD, main.norm)?;
    let state = norm(&state, role(LayerRole::MtpHiddenNorm))?;
    let states = state
        .chunks(context * spec.hidden)
        .flat_map(|window| window[..window.len() - spec.hidden].chunks_exact(spec.hidden));
    let mut joined = Vec::with_capacity(2 * embedding_TD.len());
    for (embedding_D, state_D) in embedding_TD.chunks_exact(spec.hidden).zip(states) {
        joined.extend_from_slice(embedding_D);
        joined.extend_from_slice(state_D);
    }
    drop((embedding_TD, state));

    let mut hidden_TD = vec![0.0; next.len() * spec.hidden];
    linear(store, role(LayerRole::MtpProjection), &joined, Output::replace(&mut hidden_TD, spec.hidden))?;
    drop(joined);
    let ropes = rope::Ropes::new(store, context, context)?;
    layer(store, number, context - 1, &ropes, &mut hidden_TD)?;
    let head = own_or(store, LayerRole::MtpHead, Role::Output);
    let norm = own_or(store, LayerRole::MtpHeadNorm, Role::OutputNorm);
    Ok(Hidden { hidden_TD, norm, head })
}
