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

use crate::arch::{LayerRole, Role};
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};

mod attention_mla;
mod ffn;
mod head;
mod linear;
mod matmul;
mod moe;
mod norm;
mod rope;
mod router;

pub use head::for_each_logit_chunk;
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

/// Hidden states after the last layer, before the final norm.
pub struct Hidden {
    hidden_TD: Vec<f32>,
}

/// Runs all layers on `tokens`: windows of `context` tokens that do not see each other, the last one
/// perhaps shorter.
///
/// # Errors
/// When a token is not in the vocabulary, a weight cannot be read, or a product is not finite.
pub fn forward(
    store: &dyn WeightStore,
    tokens: &[u32],
    context: usize,
    observer: &mut dyn Observer,
) -> Result<Hidden> {
    let spec = store.spec();
    if context == 0 {
        return Err(Error::Request("a context of 0 tokens has nothing to evaluate".into()));
    }
    let mut hidden_TD = embed(store, tokens)?;
    let rope = rope::Rope::new(spec, context.min(tokens.len()));
    for layer in 0..spec.layers {
        let x_TD = normed(store, layer, LayerRole::AttentionNorm, &hidden_TD)?;
        attention_mla::attention(store, layer, context, &rope, &x_TD, &mut hidden_TD)?;
        let x_TD = normed(store, layer, LayerRole::FfnNorm, &hidden_TD)?;
        let choices_T = if spec.is_moe(layer) {
            Some(moe::mixture(store, layer, &x_TD, &mut hidden_TD)?)
        } else {
            let role = |ffn| Role::Layer(layer, LayerRole::Dense(ffn));
            let y = linear::Output::add(&mut hidden_TD, spec.hidden);
            ffn::feed_forward(store, role, &x_TD, y)?;
            None
        };
        observer.layer(layer, spec.layers, choices_T.as_deref());
    }
    Ok(Hidden { hidden_TD })
}

/// One of the two norms of a layer.
fn normed(store: &dyn WeightStore, layer: usize, role: LayerRole, hidden_TD: &[f32]) -> Result<Vec<f32>> {
    let weight = linear::vector(store, Role::Layer(layer, role))?;
    Ok(norm::rms_norm(hidden_TD, weight.len(), &weight, store.spec().norm_eps))
}

/// Rows of the token embedding; a row is read for each token, not the whole matrix.
fn embed(store: &dyn WeightStore, tokens: &[u32]) -> Result<Vec<f32>> {
    let weight = store.weight(Role::TokenEmbedding)?;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= weight.rows) {
        let message = format!(
            "tensor {}: token {token} is not in its {} rows; does the tokenizer belong to this model?",
            weight.name, weight.rows
        );
        return Err(Error::checkpoint(&weight.file, message));
    }
    let mut hidden_TD = vec![0.0; tokens.len() * weight.cols];
    hidden_TD.par_chunks_mut(weight.cols).zip(tokens).try_for_each(|(row, &token)| {
        let token = token as usize;
        store.read_rows(&weight, token..token + 1, row)
    })?;
    Ok(hidden_TD)
}
