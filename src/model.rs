//! The reference forward pass, in f32, layer by layer for all tokens at once.
//!
//! Every weight is read and decoded once per run, and only a tile of it is in memory; between layers,
//! hidden states are all that is kept. So a model of any size is evaluated in the memory its tokens
//! need. Work is divided without regard to the number of threads: the result is the same at any.
//!
//! One file per block kind. A product that is NaN or infinite ends the run and names its tensor.
//!
//! Legend: T tokens of all windows, D hidden.
#![expect(non_snake_case, reason = "shape suffixes, see the legend on top of each file")]

use rayon::prelude::*;

use crate::arch::{Attention, LayerRole, Role};
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};

mod attention_gqa;
mod attention_mla;
mod exponential;
mod ffn;
mod head;
mod linear;
mod matmul;
mod memory;
mod moe;
mod mtp;
mod norm;
mod order;
mod rope;
mod router;

pub use head::{for_each_logit_chunk, for_each_logit_chunk_pair};
pub use memory::{Workload, peak_ram_bytes};
pub use mtp::{has_second_next, second_next};
pub use order::order_of_need;
pub use router::Choice;

/// Receives what a forward pass has done so far, and what it saw.
pub trait Observer: Send {
    /// Layer `layer` of `layers` is done; in a mixture of experts, `choices` are those of every token.
    fn layer(&mut self, layer: usize, layers: usize, choices: Option<&[Vec<Choice>]>);
}

/// Looks at nothing.
pub struct Unobserved;

impl Observer for Unobserved {
    fn layer(&mut self, _: usize, _: usize, _: Option<&[Vec<Choice>]>) {}
}

/// Hidden states in front of an output head and its norm.
pub struct Hidden {
    hidden_TD: Vec<f32>,
    norm: Role,
    head: Role,
}

/// A model on its way through its layers, one step a layer, so that two can go side by side.
pub struct Walk<'a> {
    store: &'a dyn WeightStore,
    context: usize,
    ropes: rope::Ropes,
    hidden_TD: Vec<f32>,
    layer: usize,
}

impl<'a> Walk<'a> {
    /// Embeds `tokens`: windows of `context` tokens that do not see each other, the last one perhaps shorter.
    ///
    /// # Errors
    /// When a token is not in the vocabulary or its row cannot be read.
    pub fn new(store: &'a dyn WeightStore, tokens: &[u32], context: usize) -> Result<Self> {
        if context == 0 {
            return Err(Error::Request("a context of 0 tokens has nothing to evaluate".into()));
        }
        let hidden_TD = embed(store, Role::TokenEmbedding, tokens)?;
        let ropes = rope::Ropes::new(store, context, context.min(tokens.len()))?;
        Ok(Self { store, context, ropes, hidden_TD, layer: 0 })
    }

    /// Runs the next layer; in a mixture of experts, returns the choices of every token.
    ///
    /// # Errors
    /// When a weight cannot be read or a product is not finite.
    ///
    /// # Panics
    /// After the last layer.
    pub fn step(&mut self) -> Result<Option<Vec<Vec<Choice>>>> {
        assert!(self.layer < self.store.spec().layers, "a step beyond the last layer");
        let choices = layer(self.store, self.layer, self.context, &self.ropes, &mut self.hidden_TD)?;
        self.layer += 1;
        Ok(choices)
    }

    /// Hidden states as they are now, `[T, D]`.
    pub fn hidden(&self) -> &[f32] {
        &self.hidden_TD
    }

    /// Hidden states in front of the model's head.
    pub fn finish(self) -> Hidden {
        Hidden { hidden_TD: self.hidden_TD, norm: Role::OutputNorm, head: Role::Output }
    }
}

/// Runs all layers on `tokens`.
///
/// # Errors
/// As [`Walk::new`] and [`Walk::step`].
pub fn forward(
    store: &dyn WeightStore,
    tokens: &[u32],
    context: usize,
    observer: &mut dyn Observer,
) -> Result<Hidden> {
    let layers = store.spec().layers;
    let mut walk = Walk::new(store, tokens, context)?;
    for layer in 0..layers {
        let choices_T = walk.step()?;
        observer.layer(layer, layers, choices_T.as_deref());
    }
    Ok(walk.finish())
}

/// One layer: attention, then a dense block or a mixture of experts.
fn layer(
    store: &dyn WeightStore,
    layer: usize,
    context: usize,
    ropes: &rope::Ropes,
    hidden_TD: &mut [f32],
) -> Result<Option<Vec<Vec<Choice>>>> {
    let spec = store.spec();
    let x_TD = normed(store, layer, LayerRole::AttentionNorm, hidden_TD)?;
    add(store, layer, LayerRole::AttentionPostNorm, hidden_TD, |sum_TD| {
        let y = linear::Output::add(sum_TD, spec.hidden);
        match &spec.attention {
            Attention::Latent(latent) => {
                attention_mla::attention(store, latent, layer, context, ropes.of(false), &x_TD, y)
            }
            Attention::Grouped(grouped) => {
                let rope = ropes.of(grouped.window(layer).is_some());
                attention_gqa::attention(store, grouped, layer, context, rope, &x_TD, y)
            }
        }
    })?;
    let x_TD = normed(store, layer, LayerRole::FfnNorm, hidden_TD)?;
    add(store, layer, LayerRole::FfnPostNorm, hidden_TD, |sum_TD| {
        if spec.is_moe(layer) {
            return moe::mixture(store, layer, &x_TD, sum_TD).map(Some);
        }
        let role = |ffn| Role::Layer(layer, LayerRole::Dense(ffn));
        ffn::feed_forward(store, role, &x_TD, linear::Output::add(sum_TD, spec.hidden))?;
        Ok(None)
    })
}

/// Adds what `block` adds to a sum to the hidden states: as it is, or normed where the model has norms there.
fn add<R>(
    store: &dyn WeightStore,
    layer: usize,
    norm: LayerRole,
    hidden_TD: &mut [f32],
    block: impl FnOnce(&mut [f32]) -> Result<R>,
) -> Result<R> {
    if !store.spec().post_norms {
        return block(hidden_TD);
    }
    let mut sum_TD = vec![0.0; hidden_TD.len()];
    let result = block(&mut sum_TD)?;
    let sum_TD = normed(store, layer, norm, &sum_TD)?;
    hidden_TD.par_iter_mut().zip(sum_TD).for_each(|(hidden, sum)| *hidden += sum);
    Ok(result)
}

/// One of the norms of a layer.
fn normed(store: &dyn WeightStore, layer: usize, role: LayerRole, hidden_TD: &[f32]) -> Result<Vec<f32>> {
    let weight = linear::vector(store, Role::Layer(layer, role))?;
    Ok(norm::rms_norm(hidden_TD, weight.len(), &weight, store.spec().norm_eps))
}

/// Rows of the token embedding, scaled where the model does so; a row is read for each token, not the whole matrix.
fn embed(store: &dyn WeightStore, role: Role, tokens: &[u32]) -> Result<Vec<f32>> {
    let weight = store.weight(role)?;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= weight.rows) {
        let message = format!(
            "tensor {}: token {token} is not in its {} rows; does the tokenizer belong to this model?",
            weight.name, weight.rows
        );
        return Err(Error::checkpoint(&weight.file, message));
    }
    let scale = store.spec().embedding_scale as f32;
    let mut hidden_TD = vec![0.0; tokens.len() * weight.cols];
    hidden_TD.par_chunks_mut(weight.cols).zip(tokens).try_for_each(|(row, &token)| {
        let token = token as usize;
        store.read_rows(&weight, token..token + 1, row)?;
        if scale != 1.0 {
            row.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(())
    })?;
    Ok(hidden_TD)
}
