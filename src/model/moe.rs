//! A mixture of experts: every token goes to the experts its router chose and to the shared ones.
//!
//! Experts are decoded one after the other, those without tokens not at all.
//!
//! Legend: T tokens, B tokens of one block, E experts.

use rayon::prelude::*;

use super::ffn::feed_forward;
use super::linear::{Input, Output, Rows, add_bias, linear_states, optional_vector};
use super::router::{Choice, choose};
use super::states::States;
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::{Ffn, LayerRole, Moe, Presence, Role, Shared};

/// Adds the experts of layer `layer` that were chosen for `x` to the rows of `hidden` that are wanted.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(crate) fn mixture(
    store: &dyn WeightStore,
    layer: usize,
    moe: &Moe,
    choices_T: &[Vec<Choice>],
    x: &States,
    wanted: Rows,
    hidden: &mut States,
) -> Result<()> {
    for expert in 0..moe.experts {
        let picks = wanted.among(picks(choices_T, expert));
        if picks.is_empty() {
            continue;
        }
        let role = |ffn| Role::Layer(layer, LayerRole::Expert(expert, ffn));
        feed_forward(store, role, Input::Picked(x, &picks), Output::AddPicked(hidden, &picks))?;
        if moe.biases != Presence::Never {
            let bias = optional_vector(store, Role::Layer(layer, LayerRole::ExpertBias(expert, Ffn::Down)))?;
            if !bias.is_empty() {
                hidden.add_to_rows(&picks, 0..bias.len(), |_, y| {
                    y.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(&bias));
                    Ok(())
                })?;
            }
        }
    }
    if let Some(Shared { gate, .. }) = moe.shared {
        shared(store, layer, gate, x, wanted, hidden)?;
    }
    Ok(())
}

/// The tokens that chose an expert, ascending, each with the factor on what the expert says.
pub fn picks(choices_T: &[Vec<Choice>], expert: usize) -> Vec<(usize, f32)> {
    let choices = choices_T.iter().enumerate();
    let choices = choices.flat_map(|(token, choices)| choices.iter().map(move |choice| (token, choice)));
    let own = choices.filter(|(_, choice)| choice.expert == expert);
    own.map(|(token, choice)| (token, choice.weight)).collect()
}

/// Adds the shared experts, weighed by a sigmoid of their own where the model has one.
fn shared(
    store: &dyn WeightStore,
    layer: usize,
    has_gate: bool,
    x: &States,
    wanted: Rows,
    hidden: &mut States,
) -> Result<()> {
    let role = |ffn| Role::Layer(layer, LayerRole::Shared(ffn));
    if !has_gate {
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
///
/// # Errors
/// As [`mixture`].
pub(crate) fn route(
    store: &dyn WeightStore,
    layer: usize,
    moe: &Moe,
    x: &States,
) -> Result<Vec<Vec<Choice>>> {
    let mut logits_TE = linear_states(store, Role::Layer(layer, LayerRole::Router), x)?;
    if moe.biases != Presence::Never {
        add_bias(store, Role::Layer(layer, LayerRole::RouterLogitBias), &mut logits_TE)?;
    }
    let bias_E = optional_vector(store, Role::Layer(layer, LayerRole::RouterBias))?;
    let mut choices_T = Vec::with_capacity(x.rows());
    for tokens in logits_TE.blocks() {
        let logits_BE = logits_TE.read(tokens)?;
        choices_T.par_extend(
            logits_BE.par_chunks(moe.experts).map(|logits_E| choose(moe, layer, logits_E, &bias_E)),
        );
    }
    Ok(choices_T)
}
