//! A mixture of experts: every token goes to the experts its router chose and to the shared ones.
//!
//! Experts are decoded one after the other, those without tokens not at all.
//!
//! Legend: T tokens, B tokens of one block, E experts.

use rayon::prelude::*;

use super::ffn::feed_forward;
use super::linear::{Input, Output, Rows, linear_states, optional_vector};
use super::router::{Choice, choose};
use super::states::States;
use crate::arch::{LayerRole, Role};
use crate::checkpoint::WeightStore;
use crate::error::Result;

/// Adds the experts of layer `layer` on `x` to the rows of `hidden` that are wanted; returns what the router chose for all.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(super) fn mixture(
    store: &dyn WeightStore,
    layer: usize,
    x: &States,
    wanted: Rows,
    hidden: &mut States,
) -> Result<Vec<Vec<Choice>>> {
    let spec = store.spec();
    let choices_T = route(store, layer, x)?;
    for expert in 0..spec.experts {
        let picks: Vec<(usize, f32)> = choices_T
            .iter()
            .enumerate()
            .flat_map(|(token, choices)| choices.iter().map(move |choice| (token, choice)))
            .filter(|(_, choice)| choice.expert == expert)
            .map(|(token, choice)| (token, choice.weight))
            .collect();
        let picks = wanted.among(picks);
        if picks.is_empty() {
            continue;
        }
        let role = |ffn| Role::Layer(layer, LayerRole::Expert(expert, ffn));
        feed_forward(store, role, Input::Picked(x, &picks), Output::AddPicked(hidden, &picks))?;
    }
    if spec.shared_experts > 0 {
        shared(store, layer, x, wanted, hidden)?;
    }
    Ok(choices_T)
}

/// Adds the shared experts, weighed by a sigmoid of their own where the model has one.
fn shared(
    store: &dyn WeightStore,
    layer: usize,
    x: &States,
    wanted: Rows,
    hidden: &mut States,
) -> Result<()> {
    let role = |ffn| Role::Layer(layer, LayerRole::Shared(ffn));
    if !store.spec().shared_gate {
        return feed_forward(store, role, wanted.of_input(x), wanted.of_output(hidden));
    }
    let gate_T = linear_states(store, Role::Layer(layer, LayerRole::SharedGate), x)?;
    let gate_T = gate_T.read(0..x.rows())?;
    let picks: Vec<(usize, f32)> =
        gate_T.iter().map(|gate| 1.0 / (1.0 + (-gate).exp())).enumerate().collect();
    let picks = wanted.among(picks);
    feed_forward(store, role, Input::Picked(x, &picks), Output::AddPicked(hidden, &picks))
}

/// The router's choices for every token.
fn route(store: &dyn WeightStore, layer: usize, x: &States) -> Result<Vec<Vec<Choice>>> {
    let spec = store.spec();
    let logits_TE = linear_states(store, Role::Layer(layer, LayerRole::Router), x)?;
    let bias_E = optional_vector(store, Role::Layer(layer, LayerRole::RouterBias))?;
    let mut choices_T = Vec::with_capacity(x.rows());
    for tokens in logits_TE.blocks() {
        let logits_BE = logits_TE.read(tokens)?;
        choices_T.par_extend(
            logits_BE.par_chunks(spec.experts).map(|logits_E| choose(spec, layer, logits_E, &bias_E)),
        );
    }
    Ok(choices_T)
}
