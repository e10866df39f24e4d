//! The routers of DeepSeek-V2 and V3 (arXiv 2405.04434 and 2412.19437): which experts a token goes to.
//!
//! Scores are sigmoids, a softmax, square roots of softplus, or the logits themselves. A correction bias, where there is one, counts for the choice, not for the weight.
//! V3 has one, and judges a group of experts by the sum of its two best biased scores; V2 has none, and judges a
//! group by its best score, or has no groups. Among the experts of the best groups the best are chosen.
//! Weights are the scores of the chosen (of logits, their softmax), normalized to sum 1 where configured, times the routed scale.
//! llama.cpp normalizes by 2^-14 at least: that differs where all chosen scores are nearly 0, which sigmoids of logits below
//! -10 would be. Between equals the lower number wins. Other families' routers are among these: a softmax over all experts, or
//! sigmoids and a bias with one group.

use crate::family::{ExpertChoice, Moe, Scoring};

/// An expert chosen for a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Number of the expert.
    pub expert: usize,
    /// Factor on what it says.
    pub weight: f32,
}

/// Chooses the experts of one token in layer `layer` from its router logits; `bias` is empty where it has none.
pub(crate) fn choose(moe: &Moe, layer: usize, logits: &[f32], bias: &[f32]) -> Vec<Choice> {
    let router = &moe.router;
    let scores = scores(router.scoring, logits);
    let biased: Vec<f32> = match bias {
        [] => scores.clone(),
        bias => scores.iter().zip(bias).map(|(score, bias)| score + bias).collect(),
    };
    let group_len = moe.experts / router.groups;
    let group_scores: Vec<f32> = match router.choice {
        ExpertChoice::GroupsByTwoBest => biased.chunks(group_len).map(best_two).collect(),
        ExpertChoice::GroupsByBest => biased.chunks(group_len).map(best).collect(),
        ExpertChoice::Ungrouped => vec![0.0; router.groups],
    };
    let top_groups = if router.choice == ExpertChoice::Ungrouped { router.groups } else { router.top_groups };
    let groups = largest(&group_scores, 0..group_scores.len(), top_groups);
    let candidates =
        (0..router.groups).filter(|g| groups.contains(g)).flat_map(|g| g * group_len..(g + 1) * group_len);
    let chosen = largest(&biased, candidates, *moe.per_token.of(layer));
    let mut weights: Vec<f32> = chosen.iter().map(|&expert| scores[expert]).collect();
    if router.scoring == Scoring::SoftmaxOfChosen {
        weights = softmax(&weights);
    }
    let divisor = if router.normalize { weights.iter().sum::<f32>() + 1e-20 } else { 1.0 };
    let scaled = |weight: f32| weight / divisor * router.scale as f32;
    chosen
        .into_iter()
        .zip(weights)
        .map(|(expert, weight)| Choice { expert, weight: scaled(weight) })
        .collect()
}

fn scores(scoring: Scoring, logits: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        Scoring::Softmax => softmax(logits),
        Scoring::SoftmaxOfChosen => logits.to_vec(),
        Scoring::SqrtSoftplus => logits.iter().map(|&logit| softplus(logit).sqrt()).collect(),
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = best(logits);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// `ln(1 + exp(x))`, so that no power overflows.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn best(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |best, &value| best.max(value))
}

/// Sum of the two largest values.
fn best_two(values: &[f32]) -> f32 {
    largest(values, 0..values.len(), 2).into_iter().map(|index| values[index]).sum()
}

/// Positions of the `count` largest values among `candidates`, largest first.
fn largest(values: &[f32], candidates: impl Iterator<Item = usize>, count: usize) -> Vec<usize> {
    let mut candidates: Vec<usize> = candidates.collect();
    candidates.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    candidates.truncate(count);
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{ByLayer, Presence, Router};

    /// Eight experts in four groups of two, two groups and two experts chosen.
    fn moe() -> Moe {
        let router = Router {
            scoring: Scoring::Sigmoid,
            choice: ExpertChoice::GroupsByTwoBest,
            groups: 4,
            top_groups: 2,
            bias: Presence::Always,
            normalize: true,
            scale: 2.0,
        };
        Moe {
            experts: 8,
            per_token: ByLayer::all(2),
            width: ByLayer::all(8),
            router,
            shared: None,
            biases: Presence::Never,
        }
    }

    /// The same with another router.
    fn routed(change: impl FnOnce(&mut Router)) -> Moe {
        let mut moe = moe();
        change(&mut moe.router);
        moe
    }

    #[test]
    fn a_strong_expert_in_a_weak_group_is_not_chosen() {
        // Expert 0 is the best of all, but groups 1 and 2 have the larger sums.
        let logits = [3.0, -9.0, 2.0, 1.0, 1.5, 1.6, -9.0, -9.0];
        let chosen = choose(&moe(), 0, &logits, &[0.0; 8]);
        assert_eq!(chosen.iter().map(|choice| choice.expert).collect::<Vec<_>>(), [2, 5]);
        assert!((chosen[0].weight + chosen[1].weight - 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_bias_counts_for_the_choice_but_not_for_the_weight() {
        let mut bias = [0.0; 8];
        (bias[6], bias[7]) = (5.0, 4.0);
        let chosen = choose(&moe(), 0, &[0.0; 8], &bias);
        assert_eq!(chosen, [Choice { expert: 6, weight: 1.0 }, Choice { expert: 7, weight: 1.0 }]);
    }

    #[test]
    fn a_softmax_router_takes_the_groups_with_the_best_expert() {
        let mut moe = routed(|router| {
            router.scoring = Scoring::Softmax;
            router.choice = ExpertChoice::GroupsByBest;
            router.normalize = false;
        });
        let logits = [3.0, -9.0, 2.0, 1.0, 1.5, 1.6, -9.0, -9.0];
        let chosen = choose(&moe, 0, &logits, &[]);
        assert_eq!(chosen.iter().map(|choice| choice.expert).collect::<Vec<_>>(), [0, 2]);
        let sum: f32 = logits.iter().map(|logit: &f32| logit.exp()).sum();
        assert!((chosen[0].weight - 2.0 * 3f32.exp() / sum).abs() < 1e-6);
        // Without groups, the second best of all may be in any.
        moe.router.choice = ExpertChoice::Ungrouped;
        moe.per_token = ByLayer::all(4);
        let chosen = choose(&moe, 0, &logits, &[]);
        assert_eq!(chosen.iter().map(|choice| choice.expert).collect::<Vec<_>>(), [0, 2, 5, 4]);
    }

    #[test]
    fn the_bias_and_how_groups_are_judged_are_free_of_each_other() {
        // Expert 0 is the best; of sigmoids, groups 1 and 2 have the largest sums. The bias lifts expert 7.
        let logits = [3.0, -9.0, 2.0, 1.0, 1.5, 1.6, -9.0, -9.0];
        let mut bias = [0.0; 8];
        bias[7] = 1.9;
        for (scoring, choice, without, with) in [
            (Scoring::Sigmoid, ExpertChoice::GroupsByTwoBest, [2, 5], [7, 5]),
            (Scoring::Sigmoid, ExpertChoice::GroupsByBest, [0, 2], [7, 0]),
            (Scoring::Softmax, ExpertChoice::GroupsByTwoBest, [0, 2], [7, 0]),
            (Scoring::Softmax, ExpertChoice::Ungrouped, [0, 2], [7, 0]),
        ] {
            for (bias, expected) in [(&[] as &[f32], without), (&bias, with)] {
                let moe = routed(|router| (router.scoring, router.choice) = (scoring, choice));
                let chosen = choose(&moe, 0, &logits, bias);
                let experts: Vec<usize> = chosen.iter().map(|choice| choice.expert).collect();
                assert_eq!(experts, expected, "{scoring:?} {choice:?} {bias:?}");
            }
        }
    }

    #[test]
    fn a_softmax_of_the_chosen_is_among_them_alone_and_normalized_as_it_is() {
        let logits = [3.0, -9.0, 2.0, 1.0, 1.5, 1.6, -9.0, -9.0];
        let mut bias = [0.0; 8];
        bias[7] = 20.0;
        for normalize in [false, true] {
            let moe = routed(|router| {
                router.scoring = Scoring::SoftmaxOfChosen;
                router.choice = ExpertChoice::Ungrouped;
                router.normalize = normalize;
            });
            let chosen = choose(&moe, 0, &logits, &bias);
            assert_eq!((chosen[0].expert, chosen[1].expert), (7, 0));
            let (a, b) = ((-9f32).exp(), 3f32.exp());
            assert!((chosen[0].weight / (2.0 * a / (a + b)) - 1.0).abs() < 1e-5);
            assert!((chosen[1].weight / (2.0 * b / (a + b)) - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn square_roots_of_softplus() {
        let logits = [3.0f32, -30.0, 100.0, 0.0, -9.0, -9.0, -9.0, -9.0];
        let mut moe = routed(|router| {
            router.scoring = Scoring::SqrtSoftplus;
            router.choice = ExpertChoice::Ungrouped;
            router.normalize = false;
        });
        moe.per_token = ByLayer::all(8);
        for Choice { expert, weight } in choose(&moe, 0, &logits, &[0.0; 8]) {
            let expected = 2.0 * f64::from(logits[expert]).exp().ln_1p().sqrt();
            assert!((f64::from(weight) / expected - 1.0).abs() < 1e-6, "{expert}: {weight} {expected}");
        }
        moe.router.normalize = true;
        let normalized = choose(&moe, 0, &logits, &[0.0; 8]);
        assert!((normalized.iter().map(|choice| choice.weight).sum::<f32>() - 2.0).abs() < 1e-6);
    }

    #[test]
    fn a_layer_may_have_a_number_of_its_own() {
        let moe = Moe { per_token: ByLayer::each([2, 1]).unwrap(), ..moe() };
        let count = |layer| choose(&moe, layer, &[0.0; 8], &[0.0; 8]).len();
        assert_eq!([0, 1, 2].map(count), [2, 1, 1]);
    }

    #[test]
    fn between_equals_the_lower_number_wins() {
        let chosen = choose(&moe(), 0, &[0.0; 8], &[0.0; 8]);
        assert_eq!(chosen.iter().map(|choice| choice.expert).collect::<Vec<_>>(), [0, 1]);
    }
}
