//! Backwards through latent attention, window after window; in a window heads are worked on side by side. Latents,
//! queries, keys and values are computed anew.
//!
//! Legend: T tokens of all windows, W tokens of one window, N width without position, R rotary width, V value width, L
//! rank of the latent.

use rayon::prelude::*;

use super::attention::{HeadParts, Scores, add_to, columns, put_columns};
use super::{Pass, Sink, linear, norm};
use crate::error::Result;
use crate::family::{Latent, LayerRole, Role};
use crate::model::linear::{Input, linear_states, vector};
use crate::model::norm::rms_norm;
use crate::model::rope::score_scale;
use crate::model::states::States;

/// Adds to `dx` what attention of layer `layer` on `x` passes on of `dheads`, the gradient of what its heads say.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept; what the sink says.
pub(super) fn add_back(
    pass: &Pass,
    latent: &Latent,
    layer: usize,
    x: &States,
    dheads: &States,
    sink: &mut dyn Sink,
    dx: &mut States,
) -> Result<()> {
    let store = pass.store;
    let (spec, role) = (store.spec(), |own| Role::Layer(layer, own));
    let eps = spec.norms.eps;
    let query_low = match latent.q_lora {
        None => None,
        Some(_) => {
            let low = linear_states(store, role(LayerRole::QA), x)?;
            let weight = vector(store, role(LayerRole::QANorm))?;
            let normed = rms_norm(&low, &weight, eps)?;
            Some((low, weight, normed))
        }
    };
    let value_low = linear_states(store, role(LayerRole::KvA), x)?;
    let value_norm = vector(store, role(LayerRole::KvANorm))?;
    let value_TL = rms_norm(&value_low, &value_norm, eps)?;
    let query_role = role(if query_low.is_some() { LayerRole::QB } else { LayerRole::Q });
    let query_input = query_low.as_ref().map_or(x, |(_, _, normed)| normed);

    let query = linear_states(store, query_role, query_input)?;
    let key_value = linear_states(store, role(LayerRole::KvB), &value_TL)?;
    let [dquery, dkey_value, dkey_TR] = of_heads(pass, latent, &query, &key_value, &value_low, dheads)?;
    drop((query, key_value));

    sink.product(query_role, 0, &Input::All(query_input), None, &dquery)?;
    match &query_low {
        None => linear::add_back(store, query_role, &dquery, dx)?,
        Some((low, weight, _)) => {
            let dnormed = linear::back(store, query_role, &dquery)?;
            let mut dlow = low.sibling(low.rows(), low.cols())?;
            norm::add_back(low, weight, eps, &dnormed, &mut dlow)?;
            sink.product(role(LayerRole::QA), 0, &Input::All(x), None, &dlow)?;
            linear::add_back(store, role(LayerRole::QA), &dlow, dx)?;
        }
    }
    drop((query_low, dquery));

    sink.product(role(LayerRole::KvB), 0, &Input::All(&value_TL), None, &dkey_value)?;
    let dvalue_TL = linear::back(store, role(LayerRole::KvB), &dkey_value)?;
    let mut dlow = value_low.sibling(value_low.rows(), value_low.cols())?;
    norm::add_back(&value_low, &value_norm, eps, &dvalue_TL, &mut dlow)?;
    for rows in dlow.blocks() {
        let mut low = dlow.read(rows.clone())?.into_owned();
        let key = dkey_TR.read(rows.clone())?;
        put_columns(&mut low, value_low.cols(), latent.kv_lora, spec.rope.dim, &key);
        dlow.write(rows.start, &low)?;
    }
    sink.product(role(LayerRole::KvA), 0, &Input::All(x), None, &dlow)?;
    linear::add_back(store, role(LayerRole::KvA), &dlow, dx)
}

/// Gradients of all queries `[T, heads * (N + R)]`, keys and values `[T, heads * (N + V)]`, and the rotary key `[T, R]`
/// before it is turned.
fn of_heads(
    pass: &Pass,
    latent: &Latent,
    query: &States,
    key_value: &States,
    value_low: &States,
    dheads: &States,
) -> Result<[States; 3]> {
    let spec = pass.store.spec();
    let Latent { heads, nope_dim, v_dim, kv_lora, .. } = *latent;
    let rope_dim = spec.rope.dim;
    let (key_dim, pair_dim) = (nope_dim + rope_dim, nope_dim + v_dim);
    let rope = pass.ropes.of(false);
    let scores = Scores { scale: score_scale(latent, &spec.rope), cap: None, window: usize::MAX, sink: None };
    let temperature =
        |position| latent.temperature.as_ref().map_or(1.0, |temperature| temperature.factor(position));
    let mut gradients = [
        query.sibling(query.rows(), query.cols())?,
        query.sibling(query.rows(), key_value.cols())?,
        query.sibling(query.rows(), rope_dim)?,
    ];
    for first in (0..query.rows()).step_by(pass.context) {
        let rows = first..query.rows().min(first + pass.context);
        let len = rows.len();
        let (queries, pairs) = (query.read(rows.clone())?, key_value.read(rows.clone())?);
        let dout = dheads.read(rows.clone())?;
        let mut turned_key = columns(&value_low.read(rows)?, value_low.cols(), kv_lora, rope_dim);
        for (position, key) in turned_key.chunks_exact_mut(rope_dim).enumerate() {
            rope.rotate(position, key);
        }
        let of_head = |head: usize| {
            let mut query = columns(&queries, heads * key_dim, head * key_dim, key_dim);
            for (position, row) in query.chunks_exact_mut(key_dim).enumerate() {
                rope.rotate(position, &mut row[nope_dim..]);
                row.iter_mut().for_each(|value| *value *= temperature(position));
            }
            let own = columns(&pairs, heads * pair_dim, head * pair_dim, nope_dim);
            let mut key = vec![0.0; len * key_dim];
            put_columns(&mut key, key_dim, 0, nope_dim, &own);
            put_columns(&mut key, key_dim, nope_dim, rope_dim, &turned_key);
            let value = columns(&pairs, heads * pair_dim, head * pair_dim + nope_dim, v_dim);
            let dout = columns(&dout, heads * v_dim, head * v_dim, v_dim);
            let mut found = scores.back(&HeadParts { query, key, value }, &dout, key_dim, v_dim);
            for (position, row) in found.query.chunks_exact_mut(key_dim).enumerate() {
                row.iter_mut().for_each(|value| *value *= temperature(position));
                rope.rotate_back(position, &mut row[nope_dim..]);
            }
            found
        };
        let found: Vec<HeadParts> = (0..heads).into_par_iter().map(of_head).collect();
        let mut dquery = vec![0.0; len * heads * key_dim];
        let mut dpairs = vec![0.0; len * heads * pair_dim];
        let mut dkey = vec![0.0; len * rope_dim];
        for (head, found) in found.iter().enumerate() {
            put_columns(&mut dquery, heads * key_dim, head * key_dim, key_dim, &found.query);
            let own = columns(&found.key, key_dim, 0, nope_dim);
            put_columns(&mut dpairs, heads * pair_dim, head * pair_dim, nope_dim, &own);
            put_columns(&mut dpairs, heads * pair_dim, head * pair_dim + nope_dim, v_dim, &found.value);
            add_to(&mut dkey, &columns(&found.key, key_dim, nope_dim, rope_dim));
        }
        for (position, key) in dkey.chunks_exact_mut(rope_dim).enumerate() {
            rope.rotate_back(position, key);
        }
        for (states, values) in gradients.iter_mut().zip([dquery, dpairs, dkey]) {
            states.write(first, &values)?;
        }
    }
    Ok(gradients)
}
