//! Backwards through grouped-query attention, window after window; in a window heads of keys are worked on side by side,
//! each with the query heads that share it. Queries, keys and values are computed anew.
//!
//! Legend: T tokens of all windows, W tokens of one window.

use std::borrow::Cow;

use rayon::prelude::*;

use super::attention::{HeadParts, Scores, add_to, columns, put_columns};
use super::{Pass, Sink, linear, norm};
use crate::error::Result;
use crate::family::{Grouped, Heads, LayerRole, Role};
use crate::model::attention_gqa::{Projection, projections};
use crate::model::linear::{Input, add_bias, linear_states, optional_vector};
use crate::model::norm::norm_head;
use crate::model::rope::Rope;
use crate::model::states::States;

/// The three projections.
const ROLES: [LayerRole; 3] = [LayerRole::Q, LayerRole::K, LayerRole::V];
const BIASES: [LayerRole; 3] = [LayerRole::QBias, LayerRole::KBias, LayerRole::VBias];

/// Adds to `dx` what attention of layer `layer` on `x` passes on of `dheads`, the gradient of what its heads say.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept; what the sink says.
pub(super) fn add_back(
    pass: &Pass,
    grouped: &Grouped,
    layer: usize,
    x: &States,
    dheads: &States,
    sink: &mut dyn Sink,
    dx: &mut States,
) -> Result<()> {
    let store = pass.store;
    let role = |own| Role::Layer(layer, own);
    let Grouped { key_dim, value_dim, .. } = *grouped;
    let heads = *grouped.heads.of(layer);
    let rope = pass.ropes.of(grouped.window(layer).is_some());
    let [query, key, _] = projections(store, grouped, layer)?;
    let mut raw = Vec::with_capacity(ROLES.len());
    for (own, bias) in ROLES.into_iter().zip(BIASES) {
        let mut y = linear_states(store, role(own), x)?;
        add_bias(store, role(bias), &mut y)?;
        raw.push(y);
    }
    let sinks = optional_vector(store, role(LayerRole::Sinks))?;
    let scores = |head: usize| Scores {
        scale: grouped.score_scale as f32,
        cap: grouped.score_cap.map(|cap| cap as f32),
        window: grouped.window(layer).unwrap_or(usize::MAX),
        sink: sinks.get(head).copied(),
    };
    let eps = store.spec().norms.eps;
    let [query, key] = [query, key].map(|projection| Turned { projection, rope, width: key_dim, eps });
    let mut gradients =
        raw.iter().map(|raw| raw.sibling(raw.rows(), raw.cols())).collect::<Result<Vec<_>>>()?;
    for first in (0..x.rows()).step_by(pass.context) {
        let rows = first..x.rows().min(first + pass.context);
        let dout = dheads.read(rows.clone())?;
        let read = raw.iter().map(|raw| raw.read(rows.clone())).collect::<Result<Vec<_>>>()?;
        let normed = [query.over_all_heads(&read[0]), key.over_all_heads(&read[1])];
        let (shared, len) = (heads.query / heads.key_value, rows.len());
        let of_key_head = |kv_head: usize| {
            let raw_key = columns(&normed[1], heads.key_value * key_dim, kv_head * key_dim, key_dim);
            let value = columns(&read[2], heads.key_value * value_dim, kv_head * value_dim, value_dim);
            let mut head = HeadParts { query: Vec::new(), key: key.turned(&raw_key), value };
            let mut dkey = vec![0.0; len * key_dim];
            let mut dvalue = vec![0.0; len * value_dim];
            let mut dqueries = Vec::with_capacity(shared);
            for number in kv_head * shared..(kv_head + 1) * shared {
                let raw_query = columns(&normed[0], heads.query * key_dim, number * key_dim, key_dim);
                head.query = query.turned(&raw_query);
                let dout = columns(&dout, heads.query * value_dim, number * value_dim, value_dim);
                let found = scores(number).back(&head, &dout, key_dim, value_dim);
                add_to(&mut dkey, &found.key);
                add_to(&mut dvalue, &found.value);
                dqueries.push(query.back(&raw_query, found.query));
            }
            (dqueries, key.back(&raw_key, dkey), dvalue)
        };
        let found: Vec<_> = (0..heads.key_value).into_par_iter().map(of_key_head).collect();
        let Heads { query: query_heads, key_value: kv_heads } = heads;
        let mut dquery = vec![0.0; len * query_heads * key_dim];
        let mut dkey = vec![0.0; len * kv_heads * key_dim];
        let mut dvalue = vec![0.0; len * kv_heads * value_dim];
        for (kv_head, (queries, of_key, of_value)) in found.into_iter().enumerate() {
            for (at, of_query) in queries.into_iter().enumerate() {
                let first = (kv_head * shared + at) * key_dim;
                put_columns(&mut dquery, query_heads * key_dim, first, key_dim, &of_query);
            }
            put_columns(&mut dkey, kv_heads * key_dim, kv_head * key_dim, key_dim, &of_key);
            put_columns(&mut dvalue, kv_heads * value_dim, kv_head * value_dim, value_dim, &of_value);
        }
        let dquery = query.back_over_all_heads(&read[0], dquery);
        let dkey = key.back_over_all_heads(&read[1], dkey);
        for (states, values) in gradients.iter_mut().zip([dquery, dkey, dvalue]) {
            states.write(first, &values)?;
        }
    }
    drop(raw);
    for (own, gradient) in ROLES.into_iter().zip(gradients) {
        sink.product(role(own), 0, &Input::All(x), None, &gradient)?;
        linear::add_back(store, role(own), &gradient, dx)?;
    }
    Ok(())
}

/// What follows the projection of queries or keys.
struct Turned<'a> {
    projection: Projection,
    rope: &'a Rope,
    width: usize,
    eps: f64,
}

impl Turned<'_> {
    /// The norm of all heads of a token together; `None` where there is no such norm.
    fn whole_norm(&self) -> Option<&[f32]> {
        let norm = self.projection.norm.as_slice();
        (self.projection.is_whole && !norm.is_empty()).then_some(norm)
    }

    /// Rows of all heads behind that norm.
    fn over_all_heads<'a>(&self, raw: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(norm) = self.whole_norm() else { return raw.into() };
        let mut normed = raw.to_vec();
        normed.chunks_exact_mut(norm.len()).for_each(|row| norm_head(row, norm, self.eps));
        normed.into()
    }

    /// The gradient of `raw` from that of what is behind that norm.
    fn back_over_all_heads(&self, raw: &[f32], gradient: Vec<f32>) -> Vec<f32> {
        match self.whole_norm() {
            None => gradient,
            Some(norm) => back_through(norm, self.eps, raw, &gradient),
        }
    }

    /// Of one head in one window.
    fn turned(&self, raw: &[f32]) -> Vec<f32> {
        let mut turned = raw.to_vec();
        for (position, head) in turned.chunks_exact_mut(self.width).enumerate() {
            let norm = self.projection.head_norm();
            if !norm.is_empty() {
                norm_head(head, norm, self.eps);
            }
            self.rope.rotate(position, &mut head[..self.rope.dim()]);
        }
        turned
    }

    /// The gradient of `raw` from that of what became of it.
    fn back(&self, raw: &[f32], mut gradient: Vec<f32>) -> Vec<f32> {
        for (position, head) in gradient.chunks_exact_mut(self.width).enumerate() {
            self.rope.rotate_back(position, &mut head[..self.rope.dim()]);
        }
        match self.projection.head_norm() {
            [] => gradient,
            norm => back_through(norm, self.eps, raw, &gradient),
        }
    }
}

/// The gradient of `raw` from that of its norm, row by row.
fn back_through(norm: &[f32], eps: f64, raw: &[f32], gradient: &[f32]) -> Vec<f32> {
    let mut passed = vec![0.0; gradient.len()];
    let rows = raw.chunks_exact(norm.len()).zip(gradient.chunks_exact(norm.len()));
    for ((x, dy), dx) in rows.zip(passed.chunks_exact_mut(norm.len())) {
        norm::add_back_row(x, norm, eps, dy, dx);
    }
    passed
}
