//! What few families have in attention and experts.

use super::*;

/// As OLMoE's and MiniMax-M2's: norms over all heads together.
#[test]
fn norms_over_all_heads() {
    let grouped = Grouped { head_norms: Presence::Always, whole_norms: true, ..grouped() };
    check("whole norms", spec(Attention::Grouped(grouped), rotary(4, Pairing::Halves)));
}

/// As gpt-oss: sinks, windows, clamped blocks, biases of everything.
#[test]
fn sinks_and_clamped_experts_with_biases() {
    let sliding =
        Sliding { window: 4, layers: vec![true, false], rope: Box::new(rotary(6, Pairing::Halves)) };
    let grouped = Grouped {
        sinks: Presence::Always,
        biases: Presence::Always,
        output_bias: Presence::Always,
        sliding: Some(sliding),
        ..grouped()
    };
    let mut spec = spec(Attention::Grouped(grouped), rotary(6, Pairing::Halves));
    spec.ffn.activation = Activation::Clamped;
    spec.ffn.dense.layers = 0;
    let experts = of_experts(Scoring::SoftmaxOfChosen, false, None);
    spec.ffn.moe = Some(Moe { biases: Presence::Always, ..experts });
    check("gpt-oss", spec);
}
