//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), keys and values expanded.
//!
//! Heads go through in groups, and in each of them windows, which do not see each other: queries, keys and values
//! of a group in a window are all that exists of them, and each row of `q_b_proj` and `kv_b_proj` is read once.
//!
//! Legend: T tokens of all windows, W tokens of one window, B queries of one block, D hidden, G heads
//! of a group, N width without position, R rotary width, V value width, L rank of the latent.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::exponential;
use super::linear::{Input, check_finite, linear_states, vector};
use super::matmul::{Into, View, product, product_transposed, wide_product_transposed};
use super::norm::rms_norm;
use super::panel::{Slice, for_each_panel};
use super::rope::{Rope, score_scale};
use super::states::{Part, States};
use super::watch;
use crate::checkpoint::{Watched, WeightStore};
use crate::error::Result;
use crate::family::{Latent, LayerRole, Role, Spec};

/// Heads of a group.
pub(crate) const GROUP_HEADS: usize = 16;
/// Queries of a block: what is above the diagonal beyond it is not computed.
pub(crate) const QUERY_BLOCK: usize = 128;

/// Latents that queries, and keys with values, are expanded from.
struct Latents {
    /// None when queries come from the input itself.
    query_TL: Option<States>,
    value_TL: States,
    /// One rotary key for all heads, turned.
    key_TR: States,
}

/// Queries, keys and values of some heads in one window.
struct Group<'a> {
    spec: &'a Spec,
    latent: &'a Latent,
    heads: usize,
    /// `[W, G * (N + R)]`, rotary parts turned.
    query: &'a [f32],
    /// `[W, G * (N + V)]`.
    key_value: &'a [f32],
    /// `[W, R]`.
    key_WR: &'a [f32],
    /// `[W, L]`, where somebody wants to know what values are made of.
    latent_WL: Option<&'a [f32]>,
}

/// What the heads of layer `layer` say on `x`, side by side, for the output projection.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(crate) fn attention(
    store: &dyn WeightStore,
    latent: &Latent,
    layer: usize,
    context: usize,
    rope: &Rope,
    x: &States,
) -> Result<States> {
    let spec = store.spec();
    let role = |role| Role::Layer(layer, role);
    let latents = latents(store, latent, layer, context, rope, x)?;
    let query_TL = latents.query_TL.as_ref().unwrap_or(x);
    let query_role = if latent.q_lora.is_some() { LayerRole::QB } else { LayerRole::Q };
    let (query_weight, key_value_weight) =
        (store.weight(role(query_role))?, store.weight(role(LayerRole::KvB))?);
    let (query_width, value_width) = (latent.nope_dim + spec.rope.dim, latent.nope_dim + latent.v_dim);
    let heads_of = |first: usize| first..latent.heads.min(first + GROUP_HEADS);
    let rows = |heads: &Range<usize>, width: usize| heads.start * width..heads.end * width;
    let groups: Vec<Vec<Slice>> = (0..latent.heads)
        .step_by(GROUP_HEADS)
        .map(|first| {
            let heads = heads_of(first);
            vec![
                Slice { store, weight: &query_weight, rows: rows(&heads, query_width) },
                Slice { store, weight: &key_value_weight, rows: rows(&heads, value_width) },
            ]
        })
        .collect();
    watch::input(store, query_weight.role, &Input::All(query_TL), None)?;
    watch::input(store, key_value_weight.role, &Input::All(&latents.value_TL), None)?;
    let is_watched = watch::wants_sums(store);
    let mut out = x.sibling(x.rows(), latent.heads * latent.v_dim)?;
    for_each_panel(&groups, |slices, tiles| {
        let [query_slice, key_value_slice] = slices else { return Ok(()) };
        let first = query_slice.rows.start / query_width;
        let heads = heads_of(first);
        // By the first token of a window: what its queries were, and what attention made of its latents.
        let seen: Mutex<BTreeMap<usize, [Vec<f64>; 2]>> = Mutex::default();
        out.for_each_block(context, rows(&heads, latent.v_dim), Into::Replace, |tokens, part| {
            let expand = |latents: &States, slice: &Slice, w: View| -> Result<Vec<f32>> {
                let (x, width) = (latents.read(tokens.clone())?, slice.rows.len());
                let mut y = vec![0.0; tokens.len() * width];
                wide_product_transposed(View::new(&x, latents.cols()), w, &mut y, width, 0, Into::Replace);
                check_finite(slice.weight, tokens.start, &y, width, 0..width)?;
                Ok(y)
            };
            let mut query = expand(query_TL, query_slice, tiles[0])?;
            let queries = is_watched.then(|| head_squares(&query, heads.len(), query_width, latent.nope_dim));
            let key_value = expand(&latents.value_TL, key_value_slice, tiles[1])?;
            query.par_chunks_mut(heads.len() * query_width).enumerate().for_each(|(position, row)| {
                for head in row.chunks_exact_mut(query_width) {
                    rope.rotate(position, &mut head[latent.nope_dim..]);
                }
                if let Some(temperature) = &latent.temperature {
                    let factor = temperature.factor(position);
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            });
            let latent_WL = if is_watched { Some(latents.value_TL.read(tokens.clone())?) } else { None };
            let first_token = tokens.start;
            let key_WR = latents.key_TR.read(tokens)?;
            let group = Group {
                spec,
                latent,
                heads: heads.len(),
                query: &query,
                key_value: &key_value,
                key_WR: &key_WR,
                latent_WL: latent_WL.as_deref(),
            };
            let Part { data, stride, offset } = part;
            let blocks = data.par_chunks_mut(QUERY_BLOCK * stride).enumerate();
            let squares: Vec<Vec<f64>> = blocks
                .map(|(block, out)| group.attend(block * QUERY_BLOCK, Part { data: out, stride, offset }))
                .collect();
            if let Some(queries) = queries {
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(first_token, [queries, sum_in_order(squares)]);
            }
            Ok(())
        })?;
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        report(store, layer, heads, x.rows(), seen.into_values());
        Ok(())
    })?;
    Ok(out)
}

/// Sums of the squares of the first `width` columns of each head, `[G, width]`.
fn head_squares(query: &[f32], heads: usize, stride: usize, width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; heads * width];
    for row in query.chunks_exact(heads * stride) {
        for (sums, head) in sums.chunks_exact_mut(width).zip(row.chunks_exact(stride)) {
            sums.iter_mut().zip(head).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
    }
    sums
}

fn sum_in_order(parts: impl IntoIterator<Item = Vec<f64>>) -> Vec<f64> {
    let mut parts = parts.into_iter();
    let mut sums = parts.next().unwrap_or_default();
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, more)| *sum += more);
    }
    sums
}

/// Tells a store that watches what was seen of some heads, window after window.
fn report(
    store: &dyn WeightStore,
    layer: usize,
    heads: Range<usize>,
    tokens: usize,
    seen: impl Iterator<Item = [Vec<f64>; 2]>,
) {
    let Some(watcher) = store.watcher() else { return };
    let (queries, values): (Vec<_>, Vec<_>) = seen.map(|[queries, values]| (queries, values)).unzip();
    let of_heads = |sums: Vec<f64>, watched: fn(usize, usize) -> Watched| {
        let width = sums.len() / heads.len().max(1);
        for (head, sums) in heads.clone().zip(sums.chunks_exact(width.max(1))) {
            watcher.saw(watched(layer, head), sums, tokens);
        }
    };
    of_heads(sum_in_order(queries), Watched::KeyHead);
    of_heads(sum_in_order(values), Watched::ValueHead);
}

/// The low-rank parts, normed, and the turned key.
fn latents(
    store: &dyn WeightStore,
    latent: &Latent,
    layer: usize,
    context: usize,
    rope: &Rope,
    x: &States,
) -> Result<Latents> {
    let spec = store.spec();
    let role = |role| Role::Layer(layer, role);
    let query_TL = match latent.q_lora {
        None => None,
        Some(_) => {
            let low_TL = linear_states(store, role(LayerRole::QA), x)?;
            let norm = vector(store, role(LayerRole::QANorm))?;
            Some(rms_norm(&low_TL, &norm, spec.norms.eps)?)
        }
    };
    let low = linear_states(store, role(LayerRole::KvA), x)?;
    let norm = vector(store, role(LayerRole::KvANorm))?;
    let value_TL = rms_norm(&low, &norm, spec.norms.eps)?;
    let mut key_TR = low.sibling(low.rows(), spec.rope.dim)?;
    key_TR.for_each_block(context, 0..spec.rope.dim, Into::Replace, |tokens, part| {
        let low = low.read(tokens)?;
        let rows = part.data.chunks_exact_mut(spec.rope.dim).zip(low.chunks(latent.kv_lora + spec.rope.dim));
        for (position, (key_R, row)) in rows.enumerate() {
            key_R.copy_from_slice(&row[latent.kv_lora..]);
            rope.rotate(position, key_R);
        }
        Ok(())
    })?;
    Ok(Latents { query_TL, value_TL, key_TR })
}

impl Group<'_> {
    /// Attention of one block of queries, the first of which is at position `first_query`, into `out`. Where somebody
    /// wants to know, sums of the squares of what each head makes of the latents, `[G, L]`.
    fn attend(&self, first_query: usize, out: Part) -> Vec<f64> {
        let Latent { nope_dim, v_dim, .. } = *self.latent;
        let rope_dim = self.spec.rope.dim;
        let Part { data: out, stride, offset } = out;
        let queries = out.len() / stride;
        let keys = first_query + queries;
        let scale = score_scale(self.latent, &self.spec.rope);
        let (query_stride, value_stride) =
            (self.heads * (nope_dim + rope_dim), self.heads * (nope_dim + v_dim));
        let query = View::rows(self.query, first_query, queries, query_stride);
        let key_value = View::rows(self.key_value, 0, keys, value_stride);
        let key_WR = View::rows(self.key_WR, 0, keys, rope_dim);
        let mut scores_BW = vec![0.0; queries * keys];
        let mut squares = Vec::new();
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
            product(View::new(&scores_BW, keys), value_WV, out, stride, offset + head * v_dim);
            if let Some(latent_WL) = self.latent_WL {
                let width = self.latent.kv_lora;
                let mut seen_BL = vec![0.0; queries * width];
                let latent_WL = View::rows(latent_WL, 0, keys, width);
                product(View::new(&scores_BW, keys), latent_WL, &mut seen_BL, width, 0);
                squares.extend(head_squares(&seen_BL, 1, width, width));
            }
        }
        squares
    }
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
