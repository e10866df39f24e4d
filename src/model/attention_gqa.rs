//! Grouped-query attention (arXiv 2305.13245): query heads share keys and values in groups.
//!
//! Heads go through some at a time, whole groups: their queries, keys and values are all that exists at once, and each
//! row of the three projections is still read once. Windows do not see each other; where a layer slides, a token sees
//! the nearest ones only, itself included, and keys that no query of a block sees are left out.
//!
//! Order in a head, as llama.cpp's `build_qkv` and its callers have it: projection, bias, norm, rotation. Scores are
//! scaled, then capped, then normalized.
//!
//! Legend: T tokens of all windows, W keys that a block sees, B queries of one block, D hidden, G query heads and K
//! key-value heads of a pass, H width of a head.

use std::ops::Range;

use rayon::prelude::*;

use super::exponential;
use super::linear::{Output, add_bias, linear, linear_rows, vector};
use super::matmul::{Into, View, product, product_transposed};
use super::norm::norm_head;
use super::rope::Rope;
use crate::arch::{ArchSpec, Grouped, LayerRole, Role};
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;

/// Query heads of a pass, about.
const PASS_HEADS: usize = 16;
/// Queries of a block: what is above the diagonal beyond it is not computed.
pub(super) const QUERY_BLOCK: usize = 128;

/// Key-value heads of a pass.
fn pass_kv_heads(heads: usize, grouped: &Grouped) -> usize {
    (PASS_HEADS / (heads / grouped.kv_heads)).max(1).min(grouped.kv_heads)
}

/// Most floats per token beside input and output.
pub(super) fn floats_per_token(heads: usize, grouped: &Grouped) -> usize {
    let kv_heads = pass_kv_heads(heads, grouped);
    (heads + kv_heads * (heads / grouped.kv_heads + 2)) * grouped.head_dim
}

/// One of the three projections of a layer.
struct Projection {
    weight: Weight,
    /// Empty when there is none.
    bias: Vec<f32>,
    /// Of each head; empty when there is none.
    norm: Vec<f32>,
    is_turned: bool,
}

/// Where heads stand.
struct Place<'a> {
    spec: &'a ArchSpec,
    grouped: &'a Grouped,
    context: usize,
    rope: &'a Rope,
}

/// Queries, keys and values of a pass.
struct Pass<'a> {
    spec: &'a ArchSpec,
    grouped: &'a Grouped,
    /// Tokens that a token sees.
    window: usize,
    heads: usize,
    /// `[T, G * H]`.
    query: &'a [f32],
    /// `[T, K * H]`.
    key: &'a [f32],
    /// `[T, K * H]`.
    value: &'a [f32],
}

/// Computes the attention of layer `layer` on `x_TD` into `y`.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(super) fn attention(
    store: &dyn WeightStore,
    grouped: &Grouped,
    layer: usize,
    context: usize,
    rope: &Rope,
    x_TD: &[f32],
    y: Output,
) -> Result<()> {
    let spec = store.spec();
    let tokens = x_TD.len() / spec.hidden;
    let width = grouped.head_dim;
    let place = Place { spec, grouped, context, rope };
    let projections = projections(store, grouped, layer)?;
    let out_width = spec.heads * width;
    let mut out = vec![0.0; tokens * out_width];
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    let shared = spec.heads / grouped.kv_heads;
    for first in (0..grouped.kv_heads).step_by(pass_kv_heads(spec.heads, grouped)) {
        let kv_heads = pass_kv_heads(spec.heads, grouped).min(grouped.kv_heads - first);
        let heads = kv_heads * shared;
        let rows = [(first * shared, heads), (first, kv_heads), (first, kv_heads)];
        for ((projection, part), (first, heads)) in projections.iter().zip(&mut parts).zip(rows) {
            part.resize(tokens * heads * width, 0.0);
            project(store, projection, &place, first * width..(first + heads) * width, x_TD, part)?;
        }
        let [query, key, value] = &parts;
        let window = grouped.window(layer).unwrap_or(usize::MAX);
        let pass = Pass { spec, grouped, window, heads, query, key, value };
        out.par_chunks_mut(context * out_width).enumerate().for_each(|(number, out)| {
            out.par_chunks_mut(QUERY_BLOCK * out_width).enumerate().for_each(|(block, out)| {
                pass.attend(number * context, block * QUERY_BLOCK, out, first * shared * width);
            });
        });
    }
    drop(parts);
    let Output { data, stride, offset, into } = y;
    let y = Output { data: &mut *data, stride, offset, into };
    linear(store, Role::Layer(layer, LayerRole::AttentionOutput), &out, y)?;
    if grouped.output_bias {
        let bias = vector(store, Role::Layer(layer, LayerRole::AttentionOutputBias))?;
        add_bias(data, stride, offset, &bias);
    }
    Ok(())
}

/// Queries, keys, values.
fn projections(store: &dyn WeightStore, grouped: &Grouped, layer: usize) -> Result<[Projection; 3]> {
    let role = |role| Role::Layer(layer, role);
    let optional = |is_there: bool, own| -> Result<Vec<f32>> {
        if is_there { vector(store, role(own)) } else { Ok(Vec::new()) }
    };
    let biases = grouped.biases;
    Ok([
        Projection {
            weight: store.weight(role(LayerRole::Q))?,
            bias: optional(biases.query, LayerRole::QBias)?,
            norm: optional(grouped.head_norms, LayerRole::QNorm)?,
            is_turned: true,
        },
        Projection {
            weight: store.weight(role(LayerRole::K))?,
            bias: optional(biases.key, LayerRole::KBias)?,
            norm: optional(grouped.head_norms, LayerRole::KNorm)?,
            is_turned: true,
        },
        Projection {
            weight: store.weight(role(LayerRole::V))?,
            bias: optional(biases.value, LayerRole::VBias)?,
            norm: Vec::new(),
            is_turned: false,
        },
    ])
}

/// Rows `rows` of one projection, whole heads, into all of `part`.
fn project(
    store: &dyn WeightStore,
    projection: &Projection,
    place: &Place,
    rows: Range<usize>,
    x_TD: &[f32],
    part: &mut [f32],
) -> Result<()> {
    let stride = rows.len();
    linear_rows(store, &projection.weight, rows.clone(), x_TD, Output::replace(part, stride))?;
    if let Some(bias) = projection.bias.get(rows) {
        add_bias(part, stride, 0, bias);
    }
    if !projection.is_turned {
        return Ok(());
    }
    let Place { spec, grouped, context, rope } = *place;
    part.par_chunks_mut(stride).enumerate().for_each(|(token, row)| {
        for head_H in row.chunks_exact_mut(grouped.head_dim) {
            if !projection.norm.is_empty() {
                norm_head(head_H, &projection.norm, spec.norm_eps);
            }
            rope.rotate(token % context, &mut head_H[..rope.dim()]);
        }
    });
    Ok(())
}

impl Pass<'_> {
    /// Attention of one block of queries of the window of text that starts at token `start`; `out` holds the block's
    /// rows of all heads, this pass's from column `column` on.
    fn attend(&self, start: usize, first_query: usize, out: &mut [f32], column: usize) {
        let width = self.grouped.head_dim;
        let shared = self.spec.heads / self.grouped.kv_heads;
        let out_width = self.spec.heads * width;
        let queries = out.len() / out_width;
        let first_key = (first_query + 1).saturating_sub(self.window);
        let keys = first_query + queries - first_key;
        let kv_stride = self.heads / shared * width;
        let query = rows(self.query, start + first_query, queries, self.heads * width);
        let key = rows(self.key, start + first_key, keys, kv_stride);
        let value = rows(self.value, start + first_key, keys, kv_stride);
        let mut scores_BW = vec![0.0; queries * keys];
        for head in 0..self.heads {
            let at = head / shared * width;
            let (query_BH, key_WH) = (query.columns(head * width, width), key.columns(at, width));
            product_transposed(query_BH, key_WH, &mut scores_BW, keys, 0, Into::Replace);
            for (query, scores_W) in scores_BW.chunks_exact_mut(keys).enumerate() {
                let end = first_query + query + 1;
                let seen = end.saturating_sub(self.window).max(first_key) - first_key..end - first_key;
                self.weigh(scores_W, seen);
            }
            let value_WH = value.columns(at, width);
            product(View::new(&scores_BW, keys), value_WH, out, out_width, column + head * width);
        }
    }

    /// Softmax of the scores that are seen; the others become 0.
    fn weigh(&self, scores_W: &mut [f32], seen: Range<usize>) {
        scores_W[..seen.start].fill(0.0);
        scores_W[seen.end..].fill(0.0);
        let scores_W = &mut scores_W[seen];
        let scale = self.grouped.score_scale as f32;
        match self.grouped.score_cap {
            None => exponential::softmax(scores_W, scale),
            Some(cap) => {
                exponential::soft_cap(scores_W, scale, cap as f32);
                exponential::softmax(scores_W, 1.0);
            }
        }
    }
}

/// `count` rows of `data` from row `first` on.
fn rows(data: &[f32], first: usize, count: usize, stride: usize) -> View<'_> {
    View::new(&data[first * stride..][..count * stride], stride)
}
