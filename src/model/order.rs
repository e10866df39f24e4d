//! In which order a forward pass reads the weights, for sources whose files come and go.

use super::mtp;
use crate::arch::{ExpertChoice, Ffn, LayerRole, Role};
use crate::checkpoint::WeightStore;

/// The roles of all weights as they are read, those that take turns together; with the prediction layer if
/// `with_prediction` says so. Experts without a token are left out by the pass, not here.
pub fn order_of_need(store: &dyn WeightStore, with_prediction: bool) -> Vec<Vec<Role>> {
    let spec = store.spec();
    let mut visits = vec![vec![Role::TokenEmbedding]];
    (0..spec.layers).for_each(|number| layer(store, number, &mut visits));
    visits.extend([vec![Role::OutputNorm], vec![Role::Output]]);
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
        visits.push(own(LayerRole::MtpHeadNorm));
        visits.push(vec![mtp::own_or(store, LayerRole::MtpHead, Role::Output)]);
    }
    visits
}

/// One layer: see [`super::layer`].
fn layer(store: &dyn WeightStore, number: usize, visits: &mut Vec<Vec<Role>>) {
    let spec = store.spec();
    let mut visit = |roles: &[LayerRole]| {
        visits.push(roles.iter().map(|&role| Role::Layer(number, role)).collect());
    };
    visit(&[LayerRole::AttentionNorm]);
    if spec.q_lora.is_some() {
        visit(&[LayerRole::QA]);
        visit(&[LayerRole::QANorm]);
    }
    visit(&[LayerRole::KvA]);
    visit(&[LayerRole::KvANorm]);
    // Head by head, in turns.
    visit(&[if spec.q_lora.is_some() { LayerRole::QB } else { LayerRole::Q }, LayerRole::KvB]);
    visit(&[LayerRole::AttentionOutput]);
    visit(&[LayerRole::FfnNorm]);
    if !spec.is_moe(number) {
        return feed_forward(LayerRole::Dense, &mut visit);
    }
    visit(&[LayerRole::Router]);
    if spec.choice == ExpertChoice::BiasedGroups {
        visit(&[LayerRole::RouterBias]);
    }
    for expert in 0..spec.experts {
        feed_forward(|ffn| LayerRole::Expert(expert, ffn), &mut visit);
    }
    if spec.shared_experts > 0 {
        feed_forward(LayerRole::Shared, &mut visit);
    }
}

fn feed_forward(role: impl Fn(Ffn) -> LayerRole, visit: &mut impl FnMut(&[LayerRole])) {
    visit(&[role(Ffn::Gate), role(Ffn::Up)]);
    visit(&[role(Ffn::Down)]);
}
