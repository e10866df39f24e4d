//! Backwards through a mixture of experts: through every expert that a token chose, the shared ones, and the router, which
//! weighs what they say.
//!
//! Legend: T tokens, E experts.

use super::{Sink, ffn, linear, router};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::{LayerRole, Moe, Role};
use crate::model::linear::{Input, Picks, add_bias, linear_states};
use crate::model::matmul::Into;
use crate::model::moe::route;
use crate::model::picks;
use crate::model::states::{BLOCK_ROWS, States};

/// Adds to `dx` what the experts of layer `layer` on `x` pass on of `dy`.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept; what the sink says.
pub(super) fn add_back(
    store: &dyn WeightStore,
    layer: usize,
    moe: &Moe,
    x: &States,
    dy: &States,
    sink: &mut dyn Sink,
    dx: &mut States,
) -> Result<()> {
    let choices_T = route(store, layer, moe, x)?;
    let mut dweights_T: Vec<Vec<f32>> = choices_T.iter().map(|choices| vec![0.0; choices.len()]).collect();
    for expert in 0..moe.experts {
        let picks = picks(&choices_T, expert);
        if picks.is_empty() {
            continue;
        }
        let role = |ffn| Role::Layer(layer, LayerRole::Expert(expert, ffn));
        let (own, dfactors) = of_picks(store, role, x, &picks, dy, sink)?;
        for (&(token, _), dfactor) in picks.iter().zip(dfactors) {
            let place = choices_T[token].iter().position(|choice| choice.expert == expert);
            if let Some(place) = place {
                dweights_T[token][place] = dfactor;
            }
        }
        add_picked(&own, &picks, dx)?;
    }
    if let Some(shared) = &moe.shared {
        add_shared(store, layer, shared.gate, x, dy, sink, dx)?;
    }
    let role = Role::Layer(layer, LayerRole::Router);
    let mut logits_TE = linear_states(store, role, x)?;
    add_bias(store, Role::Layer(layer, LayerRole::RouterLogitBias), &mut logits_TE)?;
    let mut dlogits_TE = logits_TE.sibling(logits_TE.rows(), moe.experts)?;
    dlogits_TE.for_each_block(BLOCK_ROWS, 0..moe.experts, Into::Replace, |rows, part| {
        let logits = logits_TE.read(rows.clone())?;
        let tokens = rows.zip(logits.chunks_exact(moe.experts));
        for (dlogits_E, (token, logits_E)) in part.data.chunks_exact_mut(moe.experts).zip(tokens) {
            let found = router::back(moe, logits_E, &choices_T[token], &dweights_T[token]);
            dlogits_E.copy_from_slice(&found);
        }
        Ok(())
    })?;
    sink.product(role, 0, &Input::All(x), None, &dlogits_TE)?;
    linear::add_back(store, role, &dlogits_TE, dx)
}

/// The shared experts, perhaps weighed by a sigmoid.
fn add_shared(
    store: &dyn WeightStore,
    layer: usize,
    has_gate: bool,
    x: &States,
    dy: &States,
    sink: &mut dyn Sink,
    dx: &mut States,
) -> Result<()> {
    let role = |ffn| Role::Layer(layer, LayerRole::Shared(ffn));
    if !has_gate {
        let dy = States::copy_of(dy, &dy.storage())?;
        let (own, _) = ffn::back(store, role, &Input::All(x), None, dy, sink)?;
        return add_all(&own, dx);
    }
    let gate_role = Role::Layer(layer, LayerRole::SharedGate);
    let gate_T = linear_states(store, gate_role, x)?;
    let gate_T = gate_T.read(0..x.rows())?;
    let picks: Vec<(usize, f32)> =
        gate_T.iter().map(|gate| 1.0 / (1.0 + (-gate).exp())).enumerate().collect();
    let (own, mut dgates) = of_picks(store, role, x, &picks, dy, sink)?;
    add_picked(&own, &picks, dx)?;
    dgates.iter_mut().zip(&picks).for_each(|(d, (_, share))| *d *= share * (1.0 - share));
    let mut dgate_T = x.sibling(x.rows(), 1)?;
    dgate_T.write(0, &dgates)?;
    sink.product(gate_role, 0, &Input::All(x), None, &dgate_T)?;
    linear::add_back(store, gate_role, &dgate_T, dx)
}

/// A block for some tokens.
fn of_picks(
    store: &dyn WeightStore,
    role: impl Fn(crate::family::Ffn) -> Role,
    x: &States,
    picks: &Picks,
    dy: &States,
    sink: &mut dyn Sink,
) -> Result<(States, Vec<f32>)> {
    let mut own = dy.sibling(picks.len(), dy.cols())?;
    let cols = dy.cols();
    own.for_each_block(BLOCK_ROWS, 0..cols, Into::Replace, |rows, part| {
        part.data.copy_from_slice(&dy.gather(picks[rows].iter().map(|&(token, _)| token))?);
        Ok(())
    })?;
    ffn::back(store, role, &Input::Picked(x, picks), Some(picks), own, sink)
}

/// Adds the rows of some tokens.
fn add_picked(own: &States, picks: &Picks, dx: &mut States) -> Result<()> {
    // Factors are in the gradients already.
    let plain: Vec<(usize, f32)> = picks.iter().map(|&(token, _)| (token, 1.0)).collect();
    dx.add_to_rows(&plain, 0..own.cols(), |rows, y| {
        y.copy_from_slice(&own.read(rows)?);
        Ok(())
    })
}

/// Adds all rows.
pub(super) fn add_all(own: &States, dx: &mut States) -> Result<()> {
    dx.for_each_block(BLOCK_ROWS, 0..own.cols(), Into::Add, |rows, part| {
        part.data.iter_mut().zip(&*own.read(rows)?).for_each(|(dx, own)| *dx += own);
        Ok(())
    })
}
