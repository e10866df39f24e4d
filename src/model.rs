//! The reference forward pass, in f32, layer by layer for all tokens at once.
//!
//! Every weight is read and decoded once per run, and only a tile of it is in memory; between layers,
//! hidden states are all that is kept: in memory, or in scratch files. So a model of any size is evaluated on a
//! text of any size. Work is divided without regard to the number of threads: the result is the same at any.
//!
//! One file per block kind. A product that is NaN or infinite ends the run and names its tensor.
//!
//! Legend: T tokens of all windows, D hidden.
#![expect(non_snake_case, reason = "shape suffixes, see the legend on top of each file")]

use crate::checkpoint::{Weight, WeightStore};
use crate::error::{Error, Result};
use crate::family::{Attention, Ffn, LayerRole, Role};

pub(crate) mod attention_gqa;
pub(crate) mod attention_mla;
pub(crate) mod exponential;
pub(crate) mod ffn;
pub(crate) mod head;
pub(crate) mod linear;
mod log_sum;
pub(crate) mod matmul;
mod memory;
pub(crate) mod moe;
mod mtp;
pub(crate) mod norm;
mod order;
pub(crate) mod panel;
pub(crate) mod rope;
pub(crate) mod router;
mod saved;
pub(crate) mod states;
mod watch;

pub use head::{for_each_logit_chunk, for_each_logit_chunk_pair, logits, watch_output};
pub(crate) use log_sum::LogSum;
pub use matmul::product_rate;
pub use memory::{Workload, peak_ram_bytes, scratch_bytes};
pub use moe::picks;
pub use mtp::{before_second_next, has_second_next, second_next};
pub use order::order_of_need;
pub use router::Choice;
pub use saved::{Saved, Stopped, There};
pub use states::{States, Storage};

use linear::Rows;
use matmul::Into;

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
    pub(crate) states: States,
    norm: Role,
    head: Role,
}

/// A model on its way through its layers, one step a layer, so that two can go side by side.
pub struct Walk<'a> {
    store: &'a dyn WeightStore,
    context: usize,
    ropes: rope::Ropes,
    states: States,
    layer: usize,
}

impl<'a> Walk<'a> {
    /// Embeds `tokens`: windows of `context` tokens that do not see each other, the last one perhaps shorter.
    ///
    /// # Errors
    /// When a token is not in the vocabulary, its row cannot be read, or a scratch file cannot be made.
    pub fn new(
        store: &'a dyn WeightStore,
        tokens: &[u32],
        context: usize,
        storage: &Storage,
    ) -> Result<Self> {
        if context == 0 {
            return Err(Error::Request("a context of 0 tokens has nothing to evaluate".into()));
        }
        let weight = embedding(store, Role::TokenEmbedding, tokens)?;
        let mut states = States::new(storage, tokens.len(), weight.cols)?;
        states.for_each_block(states::BLOCK_ROWS, 0..weight.cols, Into::Replace, |rows, part| {
            let rows = tokens[rows].iter().zip(part.data.chunks_exact_mut(weight.cols));
            rows.into_iter().try_for_each(|(&token, row)| embed_row(store, &weight, token, row))
        })?;
        let ropes = rope::Ropes::new(store, context, context.min(tokens.len()))?;
        Ok(Self { store, context, ropes, states, layer: 0 })
    }

    /// Goes on behind the first `layers` layers, where `tokens` tokens had these `states`.
    ///
    /// # Errors
    /// When they are not states of this model and these tokens.
    pub fn resume(
        store: &'a dyn WeightStore,
        tokens: usize,
        context: usize,
        layers: usize,
        states: States,
    ) -> Result<Self> {
        let spec = store.spec();
        let found = [layers, states.rows(), states.cols()];
        if layers > spec.layers || found[1..] != [tokens, spec.hidden] {
            let message = format!(
                "a walk was saved of {} tokens, {} columns and {} layers; this model has {} columns and {} layers, and \
                 there are {tokens} tokens",
                found[1], found[2], found[0], spec.hidden, spec.layers
            );
            return Err(Error::Request(message));
        }
        let ropes = rope::Ropes::new(store, context, context.min(tokens))?;
        Ok(Self { store, context, ropes, states, layer: layers })
    }

    /// Runs the next layer; in a mixture of experts, returns the choices of every token.
    ///
    /// # Errors
    /// When a weight cannot be read or a product is not finite.
    ///
    /// # Panics
    /// After the last layer.
    pub fn step(&mut self) -> Result<Option<Vec<Vec<Choice>>>> {
        self.step_for(None)
    }

    /// The same for some tokens only, if they are given.
    fn step_for(&mut self, wanted: Option<&[usize]>) -> Result<Option<Vec<Vec<Choice>>>> {
        assert!(self.layer < self.store.spec().layers, "a step beyond the last layer");
        let picks: Option<Vec<(usize, f32)>> =
            wanted.map(|wanted| wanted.iter().map(|&token| (token, 1.0)).collect());
        let wanted = Rows::of(picks.as_deref());
        attention(self.store, self.layer, self.context, &self.ropes, wanted, &mut self.states)?;
        let choices = feed_forward(self.store, self.layer, None, wanted, &mut self.states)?;
        self.layer += 1;
        Ok(choices)
    }

    /// Runs the first half of the next layer.
    ///
    /// # Errors
    /// As [`Walk::step`].
    pub fn attend(&mut self) -> Result<()> {
        attention(self.store, self.layer, self.context, &self.ropes, Rows::All, &mut self.states)
    }

    /// Between the halves of a layer that is a mixture of experts: what its router chooses for every token.
    ///
    /// # Errors
    /// As [`Walk::step`].
    pub fn choices(&self) -> Result<Option<Vec<Vec<Choice>>>> {
        let Some(moe) = self.store.spec().moe(self.layer) else { return Ok(None) };
        let x = normed(self.store, self.layer, LayerRole::FfnNorm, &self.states)?;
        moe::route(self.store, self.layer, moe, &x).map(Some)
    }

    /// Runs the second half of the next layer, in a mixture of experts with `choices`.
    ///
    /// # Errors
    /// As [`Walk::step`].
    pub fn feed(&mut self, choices: Option<&[Vec<Choice>]>) -> Result<()> {
        feed_forward(self.store, self.layer, choices, Rows::All, &mut self.states)?;
        self.layer += 1;
        Ok(())
    }

    /// Hidden states as they are now, `[T, D]`.
    pub fn hidden(&self) -> &States {
        &self.states
    }

    /// Hidden states in front of the model's head.
    pub fn finish(self) -> Hidden {
        Hidden { states: self.states, norm: Role::OutputNorm, head: Role::Output }
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
    storage: &Storage,
    observer: &mut dyn Observer,
) -> Result<Hidden> {
    forward_for(store, tokens, None, context, storage, observer)
}

/// Runs all layers on `tokens`, the last one for `wanted` (positions, ascending) only, if they are given: the states of
/// other tokens mean nothing then.
///
/// # Errors
/// As [`forward`].
pub fn forward_for(
    store: &dyn WeightStore,
    tokens: &[u32],
    wanted: Option<&[usize]>,
    context: usize,
    storage: &Storage,
    observer: &mut dyn Observer,
) -> Result<Hidden> {
    let layers = store.spec().layers;
    let mut walk = Walk::new(store, tokens, context, storage)?;
    for layer in 0..layers {
        let wanted = if layer + 1 == layers { wanted } else { None };
        let choices_T = walk.step_for(wanted)?;
        observer.layer(layer, layers, choices_T.as_deref());
    }
    Ok(walk.finish())
}

/// The first half of a layer. What only rows that are not wanted need is left out.
pub(crate) fn attention(
    store: &dyn WeightStore,
    layer: usize,
    context: usize,
    ropes: &rope::Ropes,
    wanted: Rows,
    hidden: &mut States,
) -> Result<()> {
    let spec = store.spec();
    let x = normed(store, layer, LayerRole::AttentionNorm, hidden)?;
    let heads = match &spec.attention {
        Attention::Latent(latent) => {
            attention_mla::attention(store, latent, layer, context, ropes.of_latent(), &x)
        }
        Attention::Grouped(grouped) => {
            let rope = ropes.of_grouped(grouped, layer);
            attention_gqa::attention(store, grouped, layer, context, rope, &x)
        }
    }?;
    drop(x);
    add(store, layer, LayerRole::AttentionPostNorm, hidden, |sum| {
        let role = |own| Role::Layer(layer, own);
        let (input, output) = (wanted.of_input(&heads), wanted.of_output(sum));
        linear::linear(store, role(LayerRole::AttentionOutput), input, output)?;
        linear::add_bias(store, role(LayerRole::AttentionOutputBias), sum)
    })
}

/// The second half of a layer: a dense block, or a mixture of experts with `choices`, its own if there are none.
fn feed_forward(
    store: &dyn WeightStore,
    layer: usize,
    choices: Option<&[Vec<Choice>]>,
    wanted: Rows,
    hidden: &mut States,
) -> Result<Option<Vec<Vec<Choice>>>> {
    let spec = store.spec();
    let x = normed(store, layer, LayerRole::FfnNorm, hidden)?;
    add(store, layer, LayerRole::FfnPostNorm, hidden, |sum| {
        if let Some(moe) = spec.moe(layer) {
            if let Some(choices_T) = choices {
                moe::mixture(store, layer, moe, choices_T, &x, wanted, sum)?;
                return Ok(None);
            }
            let choices_T = moe::route(store, layer, moe, &x)?;
            moe::mixture(store, layer, moe, &choices_T, &x, wanted, sum)?;
            return Ok(Some(choices_T));
        }
        let role = |ffn| Role::Layer(layer, LayerRole::Dense(ffn));
        ffn::feed_forward(store, role, wanted.of_input(&x), wanted.of_output(sum))?;
        linear::add_bias(store, Role::Layer(layer, LayerRole::DenseBias(Ffn::Down)), sum)?;
        Ok(None)
    })
}

/// Adds to the hidden states what `block` adds to a sum: as it is, or normed where the model has norms there.
fn add<R>(
    store: &dyn WeightStore,
    layer: usize,
    norm: LayerRole,
    hidden: &mut States,
    block: impl FnOnce(&mut States) -> Result<R>,
) -> Result<R> {
    if !store.spec().norms.post {
        return block(hidden);
    }
    let mut sum = hidden.sibling(hidden.rows(), hidden.cols())?;
    let result = block(&mut sum)?;
    let sum = normed(store, layer, norm, &sum)?;
    hidden.for_each_block(states::BLOCK_ROWS, 0..sum.cols(), Into::Add, |tokens, part| {
        let sum = sum.read(tokens)?;
        part.data.iter_mut().zip(&*sum).for_each(|(hidden, sum)| *hidden += sum);
        Ok(())
    })?;
    Ok(result)
}

/// One of the norms of a layer.
pub(crate) fn normed(
    store: &dyn WeightStore,
    layer: usize,
    role: LayerRole,
    hidden: &States,
) -> Result<States> {
    let weight = linear::vector(store, Role::Layer(layer, role))?;
    norm::rms_norm(hidden, &weight, store.spec().norms.eps)
}

/// The embedding with this role, which has a row for each of `tokens`.
fn embedding(store: &dyn WeightStore, role: Role, tokens: &[u32]) -> Result<Weight> {
    let weight = store.weight(role)?;
    match tokens.iter().find(|&&token| token as usize >= weight.rows) {
        None => Ok(weight),
        Some(token) => {
            let message = format!(
                "tensor {}: token {token} is not in its {} rows; does the tokenizer belong to this model?",
                weight.name, weight.rows
            );
            Err(Error::checkpoint(&weight.file, message))
        }
    }
}

/// Reads the row of one token, not the whole matrix, and scales it where the model does so.
fn embed_row(store: &dyn WeightStore, embedding: &Weight, token: u32, row: &mut [f32]) -> Result<()> {
    let token = token as usize;
    store.read_rows(embedding, token..token + 1, row)?;
    let scale = store.spec().embedding.scale as f32;
    if scale != 1.0 {
        row.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(())
}
