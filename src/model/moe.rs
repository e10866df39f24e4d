//! A mixture of experts: every token goes to the experts its router chose and to the shared ones.
//!
//! Experts are decoded one after the other, those without tokens not at all.
//!
//! Legend: T tokens, S tokens of one expert, D hidden, E experts.

use rayon::prelude::*;

use super::ffn::feed_forward;
use super::linear::{Output, linear, vector};
use super::router::{Choice, choose};
use crate::arch::{ExpertChoice, LayerRole, Role};
use crate::checkpoint::WeightStore;
use crate::error::Result;

/// Adds the experts of layer `layer` on `x_TD` to `hidden_TD`; returns what the router chose.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(super) fn mixture(
    store: &dyn WeightStore,
    layer: usize,
    x_TD: &[f32],
    hidden_TD: &mut [f32],
) -> Result<Vec<Vec<Choice>>> {
    let spec = store.spec();
    let choices_T = route(store, layer, x_TD)?;
    for expert in 0..spec.experts {
        let seen: Vec<(usize, f32)> = choices_T
            .iter()
            .enumerate()
            .flat_map(|(token, choices)| choices.iter().map(move |choice| (token, choice)))
            .filter(|(_, choice)| choice.expert == expert)
            .map(|(token, choice)| (token, choice.weight))
            .collect();
        if seen.is_empty() {
            continue;
        }
        let row = |token: usize| &x_TD[token * spec.hidden..][..spec.hidden];
        // Its full size at once: a vector that grows would take twice as much.
        let mut x_SD = Vec::with_capacity(seen.len() * spec.hidden);
        seen.iter().for_each(|&(token, _)| x_SD.extend_from_slice(row(token)));
        let mut y_SD = vec![0.0; x_SD.len()];
        let role = |ffn| Role::Layer(layer, LayerRole::Expert(expert, ffn));
        feed_forward(store, role, &x_SD, Output::replace(&mut y_SD, spec.hidden))?;
        for (&(token, weight), y_D) in seen.iter().zip(y_SD.chunks_exact(spec.hidden)) {
            let hidden_D = &mut hidden_TD[token * spec.hidden..][..spec.hidden];
            for (hidden, y) in hidden_D.iter_mut().zip(y_D) {
                *hidden += weight * y;
            }
        }
    }
    if spec.shared_experts > 0 {
        shared(store, layer, x_TD, hidden_TD)?;
    }
    Ok(choices_T)
}

/// Adds the shared experts, weighed by a sigmoid of their own where the model has one.
fn shared(store: &dyn WeightStore, layer: usize, x_TD: &[f32], hidden_TD: &mut [f32]) -> Result<()> {
    let spec = store.spec();
    let role = |ffn| Role::Layer(layer, LayerRole::Shared(ffn));
    if !spec.shared_gate {
        return feed_forward(store, role, x_TD, Output::add(hidden_TD, spec.hidden));
    }
    let tokens = x_TD.len() / spec.hidden;
    let mut gate_T = vec![0.0; tokens];
    linear(store, Role::Layer(layer, LayerRole::SharedGate), x_TD, Output::replace(&mut gate_T, 1))?;
    let mut y_TD = vec![0.0; x_TD.len()];
    feed_forward(store, role, x_TD, Output::replace(&mut y_TD, spec.hidden))?;
    let rows = hidden_TD.par_chunks_mut(spec.hidden).zip(y_TD.par_chunks(spec.hidden));
    rows.zip(gate_T).for_each(|((hidden_D, y_D), gate)| {
        let weight = 1.0 / (1.0 + (-gate).exp());
        hidden_D.iter_mut().zip(y_D).for_each(|(hidden, y)| *hidden += weight * y);
    });
    Ok(())
}

/// The router's choices for every token.
fn route(store: &dyn WeightStore, layer: usize, x_TD: &[f32]) -> Result<Vec<Vec<Choice>>> {
    let spec = store.spec();
    let mut logits_TE = vec![0.0; x_TD.len() / spec.hidden * spec.experts];
    let y = Output::replace(&mut logits_TE, spec.experts);
    linear(store, Role::Layer(layer, LayerRole::Router), x_TD, y)?;
    let bias_E = match spec.choice {
        ExpertChoice::BiasedGroups => vector(store, Role::Layer(layer, LayerRole::RouterBias))?,
        ExpertChoice::BestGroups | ExpertChoice::Greedy => Vec::new(),
    };
    Ok(logits_TE.par_chunks(spec.experts).map(|logits_E| choose(spec, logits_E, &bias_E)).collect())
}
