//! Backwards through a router: from the gradient of the weights of the chosen experts to that of the logits. Which experts
//! are chosen does not change.
//!
//! With scores `s`, weights are `scale s / sum of s` of the chosen, or `scale s`. Legend: E experts.

use crate::family::{Moe, Scoring};
use crate::model::Choice;

/// The gradient of one token's logits. `dweights` are those of the weights of `chosen`.
pub(super) fn back(moe: &Moe, logits_E: &[f32], chosen: &[Choice], dweights: &[f32]) -> Vec<f32> {
    let router = &moe.router;
    let logits: Vec<f64> = logits_E.iter().map(|&logit| f64::from(logit)).collect();
    let mut dlogits = vec![0.0f64; logits.len()];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let all: Vec<f64> = match router.scoring {
        Scoring::Sigmoid => logits.iter().map(|&x| sigmoid(x)).collect(),
        Scoring::Softmax => softmax(&logits),
        Scoring::SoftmaxOfChosen => Vec::new(),
        Scoring::SqrtSoftplus => logits.iter().map(|&x| softplus(x).sqrt()).collect(),
    };
    let scores: Vec<f64> = match router.scoring {
        Scoring::SoftmaxOfChosen => {
            softmax(&chosen.iter().map(|choice| logits[choice.expert]).collect::<Vec<_>>())
        }
        _ => chosen.iter().map(|choice| all[choice.expert]).collect(),
    };
    let mut dscores: Vec<f64> = dweights.iter().map(|&d| f64::from(d) * router.scale).collect();
    if router.normalize {
        let sum = scores.iter().sum::<f64>() + 1e-20;
        let mean = scores.iter().zip(&dscores).map(|(s, d)| s * d).sum::<f64>() / sum;
        dscores.iter_mut().for_each(|d| *d = (*d - mean) / sum);
    }
    let along: f64 = scores.iter().zip(&dscores).map(|(s, d)| s * d).sum();
    for ((choice, score), dscore) in chosen.iter().zip(&scores).zip(&dscores) {
        let logit = logits[choice.expert];
        dlogits[choice.expert] = match router.scoring {
            Scoring::Sigmoid => dscore * score * (1.0 - score),
            Scoring::Softmax => dscore * score,
            Scoring::SoftmaxOfChosen => (dscore - along) * score,
            // Flat where the score underflows.
            Scoring::SqrtSoftplus if *score == 0.0 => 0.0,
            Scoring::SqrtSoftplus => dscore * sigmoid(logit) / (2.0 * score),
        };
    }
    if router.scoring == Scoring::Softmax {
        dlogits.iter_mut().zip(&all).for_each(|(d, score)| *d -= along * score);
    }
    dlogits.into_iter().map(|d| d as f32).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().fold(f64::NEG_INFINITY, |largest, &x| largest.max(x));
    let powers: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// `ln(1 + exp(x))`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{ByLayer, ExpertChoice, Presence, Router};
    use crate::model::router::choose;
    use crate::sensitivity::tests::{check_gradient, numbers};

    #[test]
    fn it_is_the_slope_of_the_weights() {
        let logits = numbers(8, 5);
        for scoring in [Scoring::Sigmoid, Scoring::Softmax, Scoring::SoftmaxOfChosen, Scoring::SqrtSoftplus] {
            for normalize in [false, true] {
                let router = Router {
                    scoring,
                    choice: ExpertChoice::Ungrouped,
                    groups: 1,
                    top_groups: 1,
                    bias: Presence::Never,
                    normalize,
                    scale: 1.7,
                };
                let moe = Moe {
                    experts: 8,
                    per_token: ByLayer::all(3),
                    width: ByLayer::all(8),
                    router,
                    shared: None,
                    biases: Presence::Never,
                };
                let chosen = choose(&moe, 0, &logits, &[]);
                let dweights = numbers(3, 9);
                let found = back(&moe, &logits, &chosen, &dweights);
                // By the definition, for the same choice.
                check_gradient(&logits, &found, 1e-6, |x| {
                    let powers: Vec<f64> = x.iter().map(|x| x.exp()).collect();
                    let own: f64 = chosen.iter().map(|choice| powers[choice.expert]).sum();
                    let score = |expert: usize| match scoring {
                        Scoring::Sigmoid => powers[expert] / (1.0 + powers[expert]),
                        Scoring::Softmax => powers[expert] / powers.iter().sum::<f64>(),
                        Scoring::SoftmaxOfChosen => powers[expert] / own,
                        Scoring::SqrtSoftplus => (1.0 + powers[expert]).ln().sqrt(),
                    };
                    let sum: f64 = chosen.iter().map(|choice| score(choice.expert)).sum();
                    let weight = |expert| 1.7 * score(expert) / if normalize { sum } else { 1.0 };
                    let terms = chosen.iter().zip(&dweights);
                    terms.map(|(choice, &d)| weight(choice.expert) * f64::from(d)).sum()
                });
            }
        }
    }
}
