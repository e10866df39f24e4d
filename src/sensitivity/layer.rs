//! Backwards through a layer, second half first. What is inside is computed anew from the hidden states in front of it.

use super::{Pass, Sink, attention_gqa, attention_mla, ffn, linear, moe, norm};
use crate::error::Result;
use crate::family::{Attention, Ffn, LayerRole, Role};
use crate::model;
use crate::model::linear::{Input, Output, Rows, add_bias, linear as forward, vector};
use crate::model::states::States;

/// `gradient` is that of the hidden states behind layer `layer`, and becomes that of those in front of it, `hidden`.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept; what the sink says.
pub(super) fn back(
    pass: &Pass,
    layer: usize,
    hidden: &States,
    sink: &mut dyn Sink,
    gradient: &mut States,
) -> Result<()> {
    let mut between = States::copy_of(hidden, &hidden.storage())?;
    model::attention(pass.store, layer, pass.context, pass.ropes, Rows::All, &mut between)?;
    feed_forward(pass, layer, &between, sink, gradient)?;
    drop(between);
    attention(pass, layer, hidden, sink, gradient)
}

/// The half behind `hidden` that is a feed-forward block.
fn feed_forward(
    pass: &Pass,
    layer: usize,
    hidden: &States,
    sink: &mut dyn Sink,
    gradient: &mut States,
) -> Result<()> {
    let store = pass.store;
    let role = |ffn| Role::Layer(layer, LayerRole::Dense(ffn));
    let x = model::normed(store, layer, LayerRole::FfnNorm, hidden)?;
    let moe = store.spec().moe(layer);
    let dsum = before_post_norm(pass, layer, LayerRole::FfnPostNorm, gradient, || {
        let mut sum = x.sibling(x.rows(), x.cols())?;
        if let Some(moe) = moe {
            let choices = model::moe::route(store, layer, moe, &x)?;
            model::moe::mixture(store, layer, moe, &choices, &x, Rows::All, &mut sum)?;
        } else {
            model::ffn::feed_forward(store, role, Input::All(&x), Output::Add(&mut sum))?;
            add_bias(store, Role::Layer(layer, LayerRole::DenseBias(Ffn::Down)), &mut sum)?;
        }
        Ok(sum)
    })?;
    let dx = match moe {
        Some(moe) => {
            let mut dx = x.sibling(x.rows(), x.cols())?;
            moe::add_back(store, layer, moe, &x, &dsum, sink, &mut dx)?;
            dx
        }
        None => ffn::back(store, role, &Input::All(&x), None, dsum, sink)?.0,
    };
    before_norm(pass, layer, LayerRole::FfnNorm, hidden, &dx, gradient)
}

/// The half behind `hidden` that is attention.
fn attention(
    pass: &Pass,
    layer: usize,
    hidden: &States,
    sink: &mut dyn Sink,
    gradient: &mut States,
) -> Result<()> {
    let store = pass.store;
    let x = model::normed(store, layer, LayerRole::AttentionNorm, hidden)?;
    let heads = match &store.spec().attention {
        Attention::Latent(latent) => {
            let rope = pass.ropes.of_latent();
            model::attention_mla::attention(store, latent, layer, pass.context, rope, &x)
        }
        Attention::Grouped(grouped) => {
            let rope = pass.ropes.of_grouped(grouped, layer);
            model::attention_gqa::attention(store, grouped, layer, pass.context, rope, &x)
        }
    }?;
    let output = Role::Layer(layer, LayerRole::AttentionOutput);
    let dsum = before_post_norm(pass, layer, LayerRole::AttentionPostNorm, gradient, || {
        let mut sum = x.sibling(x.rows(), x.cols())?;
        forward(store, output, Input::All(&heads), Output::Replace(&mut sum))?;
        add_bias(store, Role::Layer(layer, LayerRole::AttentionOutputBias), &mut sum)?;
        Ok(sum)
    })?;
    sink.product(output, 0, &Input::All(&heads), None, &dsum)?;
    drop(heads);
    let dheads = linear::back(store, output, &dsum)?;
    drop(dsum);
    let mut dx = x.sibling(x.rows(), x.cols())?;
    match &store.spec().attention {
        Attention::Latent(latent) => attention_mla::add_back(pass, latent, layer, &x, &dheads, sink, &mut dx),
        Attention::Grouped(grouped) => {
            attention_gqa::add_back(pass, grouped, layer, &x, &dheads, sink, &mut dx)
        }
    }?;
    before_norm(pass, layer, LayerRole::AttentionNorm, hidden, &dx, gradient)
}

/// The gradient of what a block says, `sum`, from that of what is added to the hidden states.
fn before_post_norm(
    pass: &Pass,
    layer: usize,
    role: LayerRole,
    gradient: &States,
    sum: impl FnOnce() -> Result<States>,
) -> Result<States> {
    if !pass.store.spec().norms.post {
        return States::copy_of(gradient, &gradient.storage());
    }
    let mut dsum = gradient.sibling(gradient.rows(), gradient.cols())?;
    before_norm(pass, layer, role, &sum()?, gradient, &mut dsum)?;
    Ok(dsum)
}

/// Adds to `dx` what one of the layer's norms of `x` passes on of `dy`.
fn before_norm(
    pass: &Pass,
    layer: usize,
    role: LayerRole,
    x: &States,
    dy: &States,
    dx: &mut States,
) -> Result<()> {
    let weight = vector(pass.store, Role::Layer(layer, role))?;
    norm::add_back(x, &weight, pass.store.spec().norms.eps, dy, dx)
}
