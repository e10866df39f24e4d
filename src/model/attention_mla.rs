//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), keys and values expanded.
//!
//! Heads go through in groups: queries, keys and values of one group are all that exists at a time, and
//! each row of `q_b_proj` and `kv_b_proj` is still read once. Windows do not see each other.
//!
//! Legend: T tokens of all windows, W tokens of one window, B queries of one block, D hidden, G heads
//! of a group, N width without position, R rotary width, V value width, L rank of the latent.

use std::ops::Range;

use rayon::prelude::*;

use super::exponential;
use super::linear::{Output, linear, linear_rows, vector};
use super::matmul::{Into, View, product, product_transposed};
use super::norm::rms_norm;
use super::rope::{Rope, score_scale};
use crate::arch::{ArchSpec, Latent, LayerRole, Role};
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;

/// Heads of a group.
pub(super) const GROUP_HEADS: usize = 16;
/// Queries of a block: what is above the diagonal beyond it is not computed.
pub(super) const QUERY_BLOCK: usize = 128;

/// Latents that queries, and keys with values, are expanded from.
struct Latents {
    query_TL: Vec<f32>,
    query_weight: Weight,
    value_TL: Vec<f32>,
    /// One rotary key for all heads, turned.
    key_TR: Vec<f32>,
}

/// Queries, keys and values of some heads.
struct Group<'a> {
    spec: &'a ArchSpec,
    latent: &'a Latent,
    heads: usize,
    /// `[T, G * (N + R)]`, rotary parts turned.
    query: &'a [f32],
    /// `[T, G * (N + V)]`.
    key_value: &'a [f32],
    /// `[T, R]`.
    key_TR: &'a [f32],
}

/// Computes the attention of layer `layer` on `x_TD` into `y`.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(super) fn attention(
    store: &dyn WeightStore,
    latent: &Latent,
    layer: usize,
    context: usize,
    rope: &Rope,
    x_TD: &[f32],
    y: Output,
) -> Result<()> {
    let spec = store.spec();
    let tokens = x_TD.len() / spec.hidden;
    let latents = latents(store, latent, layer, context, rope, x_TD)?;
    let (query_width, value_width) = (latent.nope_dim + spec.rope.dim, latent.nope_dim + latent.v_dim);
    let kv_b = store.weight(Role::Layer(layer, LayerRole::KvB))?;
    let out_width = spec.heads * latent.v_dim;
    let mut out = vec![0.0; tokens * out_width];
    let (mut query, mut key_value) = (Vec::new(), Vec::new());
    for first in (0..spec.heads).step_by(GROUP_HEADS) {
        let heads = GROUP_HEADS.min(spec.heads - first);
        let rows = |width: usize| -> Range<usize> { first * width..(first + heads) * width };
        query.resize(tokens * heads * query_width, 0.0);
        key_value.resize(tokens * heads * value_width, 0.0);
        let y = Output::replace(&mut query, heads * query_width);
        linear_rows(store, &latents.query_weight, rows(query_width), &latents.query_TL, y)?;
        let y = Output::replace(&mut key_value, heads * value_width);
        linear_rows(store, &kv_b, rows(value_width), &latents.value_TL, y)?;
        query.par_chunks_mut(heads * query_width).enumerate().for_each(|(token, row)| {
            for head in row.chunks_exact_mut(query_width) {
                rope.rotate(token % context, &mut head[latent.nope_dim..]);
            }
        });
        let group = Group { spec, latent, heads, query: &query, key_value: &key_value, key_TR: &latents.key_TR };
        out.par_chunks_mut(context * out_width).enumerate().for_each(|(window, out)| {
            out.par_chunks_mut(QUERY_BLOCK * out_width).enumerate().for_each(|(block, out)| {
                group.attend(window * context, block * QUERY_BLOCK, out, first * latent.v_dim);
            });
        });
    }
    let role = Role::Layer(layer, LayerRole::AttentionOutput);
    linear(store, role, &out, y)
}

/// The low-rank parts, normed, and the turned key.
fn latents(
    store: &dyn WeightStore,
    latent: &Latent,
    layer: usize,
    context: usize,
    rope: &Rope,
    x_TD: &[f32],
) -> Result<Latents> {
    let spec = store.spec();
    let tokens = x_TD.len() / spec.hidden;
    let role = |role| Role::Layer(layer, role);
    let (query_TL, query_weight) = match latent.q_lora {
        None => (x_TD.to_vec(), store.weight(role(LayerRole::Q))?),
        Some(rank) => {
            let mut low_TL = vec![0.0; tokens * rank];
            linear(store, role(LayerRole::QA), x_TD, Output::replace(&mut low_TL, rank))?;
            let norm = vector(store, role(LayerRole::QANorm))?;
            (rms_norm(&low_TL, rank, &norm, spec.norm_eps), store.weight(role(LayerRole::QB))?)
        }
    };
    let stride = latent.kv_lora + spec.rope.dim;
    let mut low = vec![0.0; tokens * stride];
    linear(store, role(LayerRole::KvA), x_TD, Output::replace(&mut low, stride))?;
    let norm = vector(store, role(LayerRole::KvANorm))?;
    let value_TL = rms_norm(&low, stride, &norm, spec.norm_eps);
    let mut key_TR = vec![0.0; tokens * spec.rope.dim];
    for (token, (key_R, row)) in key_TR.chunks_exact_mut(spec.rope.dim).zip(low.chunks(stride)).enumerate() {
        key_R.copy_from_slice(&row[latent.kv_lora..]);
        rope.rotate(token % context, key_R);
    }
    Ok(Latents { query_TL, query_weight, value_TL, key_TR })
}

impl Group<'_> {
    /// Attention of one block of queries of the window that starts at token `window`; `out` holds the
    /// block's rows of all heads, this group's from column `column` on.
    fn attend(&self, window: usize, first_query: usize, out: &mut [f32], column: usize) {
        let Latent { nope_dim, v_dim, .. } = *self.latent;
        let rope_dim = self.spec.rope.dim;
        let out_width = self.spec.heads * v_dim;
        let queries = out.len() / out_width;
        let keys = first_query + queries;
        let scale = score_scale(self.latent, &self.spec.rope);
        let (query_stride, value_stride) =
            (self.heads * (nope_dim + rope_dim), self.heads * (nope_dim + v_dim));
        let query = rows(self.query, window + first_query, queries, query_stride);
        let key_value = rows(self.key_value, window, keys, value_stride);
        let key_WR = rows(self.key_TR, window, keys, rope_dim);
        let mut scores_BW = vec![0.0; queries * keys];
        for head in 0..self.heads {
            let at = head * (nope_dim + rope_dim);
            let (query_BN, query_BR) = (query.columns(at, nope_dim), query.columns(at + nope_dim, rope_dim));
            let at = head * (nope_dim + v_dim);
            let (key_WN, value_WV) =
                (key_value.columns(at, nope_dim), key_value.columns(at + nope_dim, v_dim));
            product_transposed(query_BN, key_WN, &mut scores_BW, keys, 0, Into::Replace);
            product_transposed(query_BR, key_WR, &mut scores_BW, keys, 0, Into::Add);
            for (query, scores_W) in scores_BW.chunks_exact_mut(keys).enumerate() {
                causal_softmax(scores_W, first_query + query + 1, scale);
            }
            product(View::new(&scores_BW, keys), value_WV, out, out_width, column + head * v_dim);
        }
    }
}

/// `count` rows of `data` from row `first` on.
fn rows(data: &[f32], first: usize, count: usize, stride: usize) -> View<'_> {
    View::new(&data[first * stride..][..count * stride], stride)
}

/// Softmax of the first `visible` scores times `scale`; the others become 0.
fn causal_softmax(scores_W: &mut [f32], visible: usize, scale: f32) {
    let (seen, unseen) = scores_W.split_at_mut(visible);
    unseen.fill(0.0);
    exponential::softmax(seen, scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sees_nothing_that_comes_later() {
        let mut scores = [1.0, 3.0, f32::INFINITY, 7.0];
        causal_softmax(&mut scores, 2, 0.5);
        let e = (-1.0f32).exp();
        assert!((scores[0] - e / (e + 1.0)).abs() < 1e-7 && (scores[1] - 1.0 / (e + 1.0)).abs() < 1e-7);
        assert_eq!(scores[2..], [0.0, 0.0]);
    }
}
