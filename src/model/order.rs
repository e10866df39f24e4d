//! In which order a forward pass reads the weights, for sources whose files come and go.

use super::{linear, mtp};
use crate::checkpoint::WeightStore;
use crate::family::{Attention, Divisors, Ffn, LayerRole, Moe, Role};

/// The roles of all weights as they are read, those that take turns together; with the prediction layer if
/// `with_prediction` says so, by a walk that begins with layer `first`. Experts without a token are left out by the pass,
/// not here.
pub fn order_of_need(store: &dyn WeightStore, first: usize, with_prediction: bool) -> Vec<Vec<Role>> {
    let spec = store.spec();
    let mut visits = Vec::new();
    if first == 0 {
        visits.push(vec![Role::TokenEmbedding]);
    }
    match spec.rope.divisors {
        Divisors::Absent | Divisors::ByWavelength(_) => {}
        Divisors::Always => visits.push(vec![Role::RopeDivisors]),
        // One of them, by context.
        Divisors::ByContext { .. } => visits.push(vec![Role::RopeDivisorsLong, Role::RopeDivisorsShort]),
    }
    (first..spec.layers).for_each(|number| layer(store, number, &mut visits));
    visits.push(vec![Role::OutputNorm]);
    head(store, Role::Output, &mut visits);
    if with_prediction {
        let number = spec.layers;
        let own = |role| vec![Role::Layer(number, role)];
        visits.extend([
            own(LayerRole::MtpEmbeddingNorm),
            vec![Role::OutputNorm],
            own(LayerRole::MtpHiddenNorm),
            vec![mtp::own_or(store, LayerRole::MtpEmbedding, Role::TokenEmbedding)],
            own(LayerRole::MtpProjection),
        ]);
        layer(store, number, &mut visits);
        visits.push(vec![mtp::own_or(store, LayerRole::MtpHeadNorm, Role::OutputNorm)]);
        head(store, mtp::own_or(store, LayerRole::MtpHead, Role::Output), &mut visits);
    }
    visits
}

/// The head with this role, after its bias.
fn head(store: &dyn WeightStore, role: Role, visits: &mut Vec<Vec<Role>>) {
    if role == Role::Output && linear::has(store, Role::OutputBias) {
        visits.push(vec![Role::OutputBias]);
    }
    visits.push(vec![role]);
}

/// One layer: see [`super::layer`].
fn layer(store: &dyn WeightStore, number: usize, visits: &mut Vec<Vec<Role>>) {
    let spec = store.spec();
    // Biases and norms of heads are there or not.
    let mut visit = |roles: &[LayerRole]| {
        let roles = roles.iter().map(|&role| Role::Layer(number, role));
        let there: Vec<Role> = roles.filter(|&role| !is_optional(role) || linear::has(store, role)).collect();
        if !there.is_empty() {
            visits.push(there);
        }
    };
    visit(&[LayerRole::AttentionNorm]);
    attention(&spec.attention, &mut visit);
    if spec.norms.post {
        visit(&[LayerRole::AttentionPostNorm]);
    }
    visit(&[LayerRole::FfnNorm]);
    if let Some(moe) = spec.moe(number) {
        mixture(moe, &mut visit);
    } else {
        visit(&[LayerRole::DenseBias(Ffn::Gate)]);
        visit(&[LayerRole::DenseBias(Ffn::Up)]);
        feed_forward(LayerRole::Dense, &mut visit);
        visit(&[LayerRole::DenseBias(Ffn::Down)]);
    }
    if spec.norms.post {
        visit(&[LayerRole::FfnPostNorm]);
    }
}

/// Whether a layer may lack it.
fn is_optional(role: Role) -> bool {
    use LayerRole::{
        AttentionOutputBias, DenseBias, ExpertBias, KBias, KNorm, QBias, QNorm, RouterBias, RouterLogitBias,
        Sinks, VBias,
    };
    matches!(
        role,
        Role::Layer(
            _,
            QBias
                | QNorm
                | KBias
                | KNorm
                | VBias
                | Sinks
                | AttentionOutputBias
                | DenseBias(_)
                | RouterLogitBias
                | RouterBias
                | ExpertBias(..)
        )
    )
}

fn attention(attention: &Attention, visit: &mut impl FnMut(&[LayerRole])) {
    match attention {
        Attention::Latent(latent) => {
            if latent.q_lora.is_some() {
                visit(&[LayerRole::QA]);
                visit(&[LayerRole::QANorm]);
            }
            visit(&[LayerRole::KvA]);
            visit(&[LayerRole::KvANorm]);
            // Head by head, in turns.
            visit(&[if latent.q_lora.is_some() { LayerRole::QB } else { LayerRole::Q }, LayerRole::KvB]);
            visit(&[LayerRole::AttentionOutput]);
        }
        Attention::Grouped(_) => {
            use LayerRole::{KBias, KNorm, QBias, QNorm, Sinks, VBias};
            [QBias, QNorm, KBias, KNorm, VBias, Sinks].iter().for_each(|&role| visit(&[role]));
            // Heads in turns.
            visit(&[LayerRole::Q, LayerRole::K, LayerRole::V]);
            visit(&[LayerRole::AttentionOutput]);
            visit(&[LayerRole::AttentionOutputBias]);
        }
    }
}

fn mixture(moe: &Moe, visit: &mut impl FnMut(&[LayerRole])) {
    visit(&[LayerRole::Router]);
    visit(&[LayerRole::RouterLogitBias]);
    visit(&[LayerRole::RouterBias]);
    for expert in 0..moe.experts {
        let biases = Ffn::ALL.map(|ffn| LayerRole::ExpertBias(expert, ffn));
        biases[..2].iter().for_each(|&role| visit(&[role]));
        feed_forward(|ffn| LayerRole::Expert(expert, ffn), visit);
        visit(&biases[2..]);
    }
    if let Some(shared) = &moe.shared {
        if shared.gate {
            visit(&[LayerRole::SharedGate]);
        }
        feed_forward(LayerRole::Shared, visit);
    }
}

fn feed_forward(role: impl Fn(Ffn) -> LayerRole, visit: &mut impl FnMut(&[LayerRole])) {
    visit(&[role(Ffn::Gate), role(Ffn::Up)]);
    visit(&[role(Ffn::Down)]);
}
