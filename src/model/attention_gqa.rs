//! Grouped-query attention (arXiv 2305.13245): query heads share keys and values in groups.
//!
//! Heads go through some at a time, whole groups, and in each pass windows, which do not see each other: queries, keys
//! and values of a pass in a window are all that exists of them, and each row of the three projections is read once.
//! Where a layer slides, a token sees the nearest ones only, itself included, and keys that no query of a block sees
//! are left out.
//!
//! Order in a head, as in llama.cpp's `build_qkv` and its callers: projection, bias, norm, rotation. Scores are scaled,
//! then capped, then normalized. Where a norm goes over all heads of a token together, what it multiplies them by is worked
//! out before the first pass.
//!
//! Legend: T tokens of all windows, W tokens of one window, S keys that a block of queries sees, B queries of one block,
//! D hidden, G query heads and K key-value heads of a pass, H width of a head of queries or keys, V of values.

use std::ops::Range;

use rayon::prelude::*;

use super::exponential;
use super::linear::{Input, add_to_row, check_finite, optional_vector};
use super::matmul::{Into, View, product, product_transposed, wide_product_transposed};
use super::norm::{norm_head, scale_of};
use super::panel::{Slice, for_each_panel, tiles};
use super::rope::Rope;
use super::states::{BLOCK_ROWS, Part, States};
use super::watch;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;
use crate::family::{Grouped, Heads, LayerRole, Presence, Role};

/// Query heads of a pass, about.
const PASS_HEADS: usize = 8;
/// Queries of a block: what is above the diagonal beyond it is not computed.
const QUERY_BLOCK: usize = 128;

/// Heads of a pass: whole groups.
pub(crate) fn pass_heads(heads: &Heads) -> Heads {
    let shared = heads.query / heads.key_value;
    let key_value = (PASS_HEADS / shared).max(1).min(heads.key_value);
    Heads { query: key_value * shared, key_value }
}

/// What becomes of the rows of one of the three projections.
pub(crate) struct Projection {
    /// Empty when there is none.
    pub(crate) bias: Vec<f32>,
    /// Of each head, or of all of them; empty when there is none.
    pub(crate) norm: Vec<f32>,
    /// Whether the norm goes over all heads together.
    pub(crate) is_whole: bool,
    is_turned: bool,
}

/// Queries, keys and values of a pass in one window.
struct Pass<'a> {
    grouped: &'a Grouped,
    /// Score of each head for no token; empty where there is none.
    sinks: &'a [f32],
    /// Tokens that a token sees.
    window: usize,
    heads: Heads,
    /// `[W, G * H]`.
    query: Vec<f32>,
    /// `[W, K * H]`.
    key: Vec<f32>,
    /// `[W, K * V]`.
    value: Vec<f32>,
}

/// What the heads of layer `layer` say on `x`, side by side, for the output projection.
///
/// # Errors
/// When a weight cannot be read or a product is not finite.
pub(crate) fn attention(
    store: &dyn WeightStore,
    grouped: &Grouped,
    layer: usize,
    context: usize,
    rope: &Rope,
    x: &States,
) -> Result<States> {
    let spec = store.spec();
    let role = |role| Role::Layer(layer, role);
    let Grouped { key_dim, value_dim, .. } = *grouped;
    let heads = grouped.heads.of(layer);
    let of_pass = pass_heads(heads);
    let [query, key, value] = projections(store, grouped, layer)?;
    let weights = [LayerRole::Q, LayerRole::K, LayerRole::V];
    let weights = weights.into_iter().map(|own| store.weight(role(own))).collect::<Result<Vec<_>>>()?;
    weights.iter().try_for_each(|weight| watch::input(store, weight.role, &Input::All(x), None))?;
    let sinks = match grouped.sinks {
        Presence::Never => Vec::new(),
        _ => optional_vector(store, role(LayerRole::Sinks))?,
    };
    let query_scales = whole_scales(store, &query, &weights[0], x)?;
    let key_scales = whole_scales(store, &key, &weights[1], x)?;
    let passes: Vec<Vec<Slice>> = (0..heads.key_value.div_ceil(of_pass.key_value))
        .map(|pass| {
            let of = |count: usize, all: usize, width: usize| {
                pass * count * width..all.min((pass + 1) * count) * width
            };
            let rows = [
                of(of_pass.query, heads.query, key_dim),
                of(of_pass.key_value, heads.key_value, key_dim),
                of(of_pass.key_value, heads.key_value, value_dim),
            ];
            weights.iter().zip(rows).map(|(weight, rows)| Slice { store, weight, rows }).collect()
        })
        .collect();
    let mut out = x.sibling(x.rows(), heads.query * value_dim)?;
    for_each_panel(&passes, |slices, tiles| {
        let ([query_slice, key_slice, value_slice], [query_w, key_w, value_w]) = (slices, tiles) else {
            return Ok(());
        };
        let columns = [query_slice.rows.start, query_slice.rows.end].map(|row| row / key_dim * value_dim);
        out.for_each_block(context, columns[0]..columns[1], Into::Replace, |tokens, part| {
            let x_WD = x.read(tokens.clone())?;
            let project = |(projection, scales): (&Projection, &[f32]),
                           slice: &Slice,
                           w: &View,
                           width: usize| {
                let stride = slice.rows.len();
                let mut y = vec![0.0; tokens.len() * stride];
                wide_product_transposed(View::new(&x_WD, x.cols()), *w, &mut y, stride, 0, Into::Replace);
                check_finite(slice.weight, tokens.start, &y, stride, 0..stride)?;
                y.par_chunks_mut(stride).enumerate().for_each(|(position, row)| {
                    let rows = slice.rows.clone();
                    if let Some(bias) = projection.bias.get(rows.clone()) {
                        add_to_row(row, bias);
                    }
                    if let Some(scale) = scales.get(tokens.start + position) {
                        row.iter_mut().zip(&projection.norm[rows]).for_each(|(y, w)| *y = w * (*y * scale));
                    }
                    projection.finish(row, width, spec.norms.eps, |head_H| {
                        rope.rotate(position, &mut head_H[..rope.dim()]);
                    });
                });
                Ok::<_, crate::error::Error>(y)
            };
            let first_head = query_slice.rows.start / key_dim;
            let pass = Pass {
                grouped,
                sinks: sinks.get(first_head..).unwrap_or_default(),
                window: grouped.window(layer).unwrap_or(usize::MAX),
                heads: Heads {
                    query: query_slice.rows.len() / key_dim,
                    key_value: key_slice.rows.len() / key_dim,
                },
                query: project((&query, &query_scales), query_slice, query_w, key_dim)?,
                key: project((&key, &key_scales), key_slice, key_w, key_dim)?,
                value: project((&value, &[]), value_slice, value_w, value_dim)?,
            };
            let Part { data, stride, offset } = part;
            data.par_chunks_mut(QUERY_BLOCK * stride).enumerate().for_each(|(block, out)| {
                pass.attend(block * QUERY_BLOCK, Part { data: out, stride, offset });
            });
            Ok(())
        })
    })?;
    Ok(out)
}

/// Of queries, keys, values.
pub(crate) fn projections(
    store: &dyn WeightStore,
    grouped: &Grouped,
    layer: usize,
) -> Result<[Projection; 3]> {
    let optional = |own| optional_vector(store, Role::Layer(layer, own));
    let is_whole = grouped.whole_norms;
    let turned = |bias, norm| -> Result<Projection> {
        Ok(Projection { bias: optional(bias)?, norm: optional(norm)?, is_whole, is_turned: true })
    };
    Ok([
        turned(LayerRole::QBias, LayerRole::QNorm)?,
        turned(LayerRole::KBias, LayerRole::KNorm)?,
        Projection { bias: optional(LayerRole::VBias)?, norm: Vec::new(), is_whole: false, is_turned: false },
    ])
}

/// What a norm over all heads multiplies the products of each token by; empty where there is no such norm.
fn whole_scales(
    store: &dyn WeightStore,
    projection: &Projection,
    weight: &Weight,
    x: &States,
) -> Result<Vec<f32>> {
    if !projection.is_whole || projection.norm.is_empty() {
        return Ok(Vec::new());
    }
    let panels: Vec<Vec<Slice>> = tiles(store, weight).map(|slice| vec![slice]).collect();
    let mut sums_T = vec![0.0; x.rows()];
    for_each_panel(&panels, |slices, tiles| {
        let ([slice], [w]) = (slices, tiles) else { return Ok(()) };
        sums_T.par_chunks_mut(BLOCK_ROWS).enumerate().try_for_each(|(block, sums)| {
            let (first, stride) = (block * BLOCK_ROWS, slice.rows.len());
            let x_BD = x.read(first..first + sums.len())?;
            let mut y = vec![0.0; sums.len() * stride];
            wide_product_transposed(View::new(&x_BD, x.cols()), *w, &mut y, stride, 0, Into::Replace);
            for (sum, row) in sums.iter_mut().zip(y.chunks_exact_mut(stride)) {
                if let Some(bias) = projection.bias.get(slice.rows.clone()) {
                    add_to_row(row, bias);
                }
                *sum += row.iter().map(|&y| f64::from(y) * f64::from(y)).sum::<f64>();
            }
            Ok(())
        })
    })?;
    let eps = store.spec().norms.eps;
    Ok(sums_T.into_iter().map(|sum| scale_of(sum, weight.rows, eps)).collect())
}

impl Projection {
    /// The norm of each head; empty where there is none.
    pub(crate) fn head_norm(&self) -> &[f32] {
        if self.is_whole { &[] } else { &self.norm }
    }

    /// What each head, of `width` columns of `row`, goes through on its own.
    fn finish(&self, row: &mut [f32], width: usize, eps: f64, turn: impl Fn(&mut [f32])) {
        let norm = self.head_norm();
        for head_H in row.chunks_exact_mut(width) {
            if !norm.is_empty() {
                norm_head(head_H, norm, eps);
            }
            if self.is_turned {
                turn(head_H);
            }
        }
    }
}

impl Pass<'_> {
    /// Attention of one block of queries, the first of which is at position `first_query`, into `out`.
    fn attend(&self, first_query: usize, out: Part) {
        let Grouped { key_dim, value_dim, .. } = *self.grouped;
        let Heads { query: heads, key_value: kv_heads } = self.heads;
        let shared = heads / kv_heads;
        let Part { data: out, stride, offset } = out;
        let queries = out.len() / stride;
        let first_key = (first_query + 1).saturating_sub(self.window);
        let keys = first_query + queries - first_key;
        let query = View::rows(&self.query, first_query, queries, heads * key_dim);
        let key = View::rows(&self.key, first_key, keys, kv_heads * key_dim);
        let value = View::rows(&self.value, first_key, keys, kv_heads * value_dim);
        let mut scores_BS = vec![0.0; queries * keys];
        for head in 0..heads {
            let (query_BH, key_SH) =
                (query.columns(head * key_dim, key_dim), key.columns(head / shared * key_dim, key_dim));
            product_transposed(query_BH, key_SH, &mut scores_BS, keys, 0, Into::Replace);
            for (query, scores_S) in scores_BS.chunks_exact_mut(keys).enumerate() {
                let end = first_query + query + 1;
                let seen = end.saturating_sub(self.window)..end;
                self.weigh(scores_S, seen.start - first_key..seen.end - first_key, self.sinks.get(head));
            }
            let value_SV = value.columns(head / shared * value_dim, value_dim);
            product(View::new(&scores_BS, keys), value_SV, out, stride, offset + head * value_dim);
        }
    }

    /// Softmax of the scores that are seen; the others become 0.
    fn weigh(&self, scores_S: &mut [f32], seen: Range<usize>, sink: Option<&f32>) {
        scores_S[..seen.start].fill(0.0);
        scores_S[seen.end..].fill(0.0);
        let scores_S = &mut scores_S[seen];
        let scale = self.grouped.score_scale as f32;
        let scale = match self.grouped.score_cap {
            None => scale,
            Some(cap) => {
                exponential::soft_cap(scores_S, scale, cap as f32);
                1.0
            }
        };
        match sink {
            None => exponential::softmax(scores_S, scale),
            Some(&sink) => exponential::softmax_beside(scores_S, scale, sink),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::ByLayer;

    const KEY: usize = 6;
    const VALUE: usize = 4;

    fn grouped(heads: usize, kv_heads: usize) -> Grouped {
        Grouped {
            heads: ByLayer::all(Heads { query: heads, key_value: kv_heads }),
            key_dim: KEY,
            value_dim: VALUE,
            score_scale: 0.4,
            score_cap: None,
            sliding: None,
            head_norms: Presence::Perhaps,
            whole_norms: false,
            sinks: Presence::Perhaps,
            biases: Presence::Perhaps,
            output_bias: Presence::Perhaps,
        }
    }

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 250.0 - 2.0).collect()
    }

    /// One head of one query, by the definition and in f64.
    fn naive(pass: &Pass, position: usize, head: usize) -> Vec<f64> {
        let Heads { query: heads, key_value: kv_heads } = pass.heads;
        let kv_head = head / (heads / kv_heads);
        let at =
            |data: &[f32], row: usize, width: usize, column: usize| f64::from(data[row * width + column]);
        let first = (position + 1).saturating_sub(pass.window);
        let powers = (first..=position).map(|other| {
            let products = (0..KEY).map(|column| {
                at(&pass.query, position * heads + head, KEY, column)
                    * at(&pass.key, other * kv_heads + kv_head, KEY, column)
            });
            let score = products.sum::<f64>() * pass.grouped.score_scale;
            pass.grouped.score_cap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
        });
        let powers: Vec<f64> = powers.collect();
        let sink = pass.sinks.get(head).map_or(0.0, |&sink| f64::from(sink).exp());
        let sum = powers.iter().sum::<f64>() + sink;
        let value = |column| {
            let terms = powers.iter().zip(first..);
            let terms = terms
                .map(|(power, other)| power * at(&pass.value, other * kv_heads + kv_head, VALUE, column));
            terms.sum::<f64>() / sum
        };
        (0..VALUE).map(value).collect()
    }

    /// Blocks of queries, windows shorter and longer than a block, caps, shared and unshared keys, sinks.
    #[test]
    fn attention_is_that_of_the_definition() {
        for (heads, kv_heads, window, score_cap, len, sinks) in [
            (4, 2, usize::MAX, None, 150, &[][..]),
            (3, 1, 5, None, 300, &[]),
            (2, 2, 200, Some(1.5), 300, &[]),
            (6, 2, 1, None, 20, &[]),
            (2, 1, 128, Some(0.3), 257, &[]),
            (4, 2, 40, None, 150, &[1.5, -3.0, 40.0, 0.25]),
            (2, 1, 128, Some(0.3), 257, &[0.5, -0.25]),
        ] {
            let grouped = Grouped { score_cap, ..grouped(heads, kv_heads) };
            let pass = Pass {
                grouped: &grouped,
                sinks,
                window,
                heads: *grouped.heads.of(0),
                query: values(len * heads * KEY, 1),
                key: values(len * kv_heads * KEY, 2),
                value: values(len * kv_heads * VALUE, 3),
            };
            // Columns of other passes stay as they are.
            let stride = heads * VALUE + 2;
            let mut out = vec![9.0; len * stride];
            for (block, data) in out.chunks_mut(QUERY_BLOCK * stride).enumerate() {
                pass.attend(block * QUERY_BLOCK, Part { data, stride, offset: 1 });
            }
            for (position, row) in out.chunks(stride).enumerate() {
                assert_eq!((row[0], row[stride - 1]), (9.0, 9.0));
                for (head, found) in row[1..].chunks_exact(VALUE).enumerate() {
                    for (found, exact) in found.iter().zip(naive(&pass, position, head)) {
                        // Scores up to 10 carry errors of 2^-24 of that, and sums a few more.
                        let error = (f64::from(*found) - exact).abs();
                        assert!(error < 1e-5, "{heads} {kv_heads} {window} {position} {head}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_pass_has_whole_groups() {
        for (heads, kv_heads, expected) in
            [(32, 32, (8, 8)), (32, 8, (8, 2)), (20, 5, (8, 2)), (96, 8, (12, 1)), (4, 2, (4, 2))]
        {
            let Heads { query, key_value } = pass_heads(grouped(heads, kv_heads).heads.of(0));
            assert_eq!((query, key_value), expected);
        }
    }
}
