//! A mixture of experts: a router, routed experts, shared ones.
//!
//! Checkpoints have each expert's matrices on their own, GGUF files and MLX models stack those of a layer. A GGUF file may
//! hold gate and up projection of each expert one after the other in one stack; the gate comes first (llama.cpp
//! `src/llama-graph.cpp`, `build_moe_ffn`).

use super::dense;
use crate::family::place::{Ecosystem, Place};
use crate::family::tensors::{List, Places};
use crate::family::{Family, Ffn, LayerRole, Moe, Presence};

/// What a family calls the modules of the block, between the layer and `weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::family) struct MoeNames {
    /// The block.
    pub(in crate::family) block: &'static str,
    /// Gate, up and down projection of an expert.
    pub(in crate::family) matrices: [&'static str; 3],
    /// The shared experts, in the block.
    pub(in crate::family) shared: &'static str,
    /// The router, in the block.
    pub(in crate::family) router: &'static str,
    /// The bias of the router's choice, in the block.
    pub(in crate::family) bias: &'static str,
    /// The stacks of experts of MLX models, in the block.
    pub(in crate::family) stacks: &'static str,
}

/// DeepSeek's names.
pub(in crate::family) const NAMES: MoeNames = MoeNames {
    block: "mlp",
    matrices: ["gate_proj", "up_proj", "down_proj"],
    shared: "shared_experts",
    router: "gate",
    bias: "gate.e_score_correction_bias",
    stacks: "switch_mlp",
};

const STACKS: [&str; 3] = ["ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];
const STACKED_BIASES: [&str; 3] = ["ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"];
const GATE_AND_UP: &str = "ffn_gate_up_exps.weight";
const SHARED: [&str; 3] = ["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];
/// What mlx-lm calls the matrices, whatever a checkpoint calls them.
const MLX: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// An expression for the names of a layer's routed experts, which engines fuse.
pub(super) fn fused_experts(family: &Family) -> String {
    let MoeNames { block, matrices, .. } = family.naming.moe;
    format!(r"{block}\.experts\.\d+\.{}", either(&matrices))
}

/// The same for the shared experts, of which they fuse gate and up projection.
pub(super) fn fused_shared(family: &Family) -> String {
    let MoeNames { block, shared, .. } = family.naming.moe;
    format!(r"{block}\.{shared}\.{}", either(&MLX[..2]))
}

/// `(gate|up|down)_proj`.
fn either(names: &[&str]) -> String {
    let stems: Option<Vec<&str>> = names.iter().map(|name| name.strip_suffix("_proj")).collect();
    match stems {
        Some(stems) => format!("({})_proj", stems.join("|")),
        None => format!("({})", names.join("|")),
    }
}

/// Adds the block.
pub(in crate::family) fn add(list: &mut List, moe: &Moe, layer: usize) {
    let MoeNames { block, router: router_name, bias, .. } = list.family.naming.moe;
    let of_router = |list: &List, suffix: &str, gguf: &str| Places {
        hf: vec![Place::Whole(list.name(Ecosystem::Hf, &format!("{block}.{suffix}")))],
        gguf: vec![Place::Whole(list.name(Ecosystem::Gguf, gguf))],
        mlx: vec![Place::Whole(list.name(Ecosystem::Mlx, &format!("{block}.{suffix}")))],
    };
    let router = |list: &mut List| {
        let places = of_router(list, &format!("{router_name}.weight"), "ffn_gate_inp.weight");
        list.in_layer(LayerRole::Router, &[moe.experts, list.spec.hidden], Presence::Always, places);
        let places = of_router(list, &format!("{router_name}.bias"), "ffn_gate_inp.bias");
        list.in_layer(LayerRole::RouterLogitBias, &[moe.experts], moe.biases, places);
    };
    let router_bias = |list: &mut List| {
        let places = of_router(list, bias, "exp_probs_b.bias");
        list.in_layer(LayerRole::RouterBias, &[moe.experts], moe.router.bias, places);
    };
    if list.family.naming.mlx.router_first {
        router(list);
        experts(list, moe, layer);
        router_bias(list);
    } else {
        experts(list, moe, layer);
        router(list);
        router_bias(list);
    }
    shared(list, moe, layer);
}

fn experts(list: &mut List, moe: &Moe, layer: usize) {
    let MoeNames { block, matrices, stacks, .. } = list.family.naming.moe;
    let (count, width) = (moe.experts, *moe.width.of(layer));
    for number in 0..count {
        for ffn in Ffn::ALL {
            let shape = ffn.shape(list.spec.hidden, width);
            let rows = shape[0];
            let stacked = |ecosystem, suffix: &str, first, of| Place::Stacked {
                name: list.name(ecosystem, suffix),
                number,
                count,
                first,
                of,
            };
            let hf = format!("{block}.experts.{number}.{}.weight", ffn.of(matrices));
            let mlx = format!("{block}.{stacks}.{}.weight", ffn.of(MLX));
            let mut gguf = vec![stacked(Ecosystem::Gguf, ffn.of(STACKS), 0, rows)];
            if list.family.naming.merges_experts && ffn != Ffn::Down {
                let first = if ffn == Ffn::Gate { 0 } else { rows };
                gguf.push(stacked(Ecosystem::Gguf, GATE_AND_UP, first, 2 * rows));
            }
            let places = Places {
                hf: vec![Place::Whole(list.name(Ecosystem::Hf, &hf))],
                gguf,
                mlx: vec![stacked(Ecosystem::Mlx, &mlx, 0, rows)],
            };
            let hf = format!("{block}.experts.{number}.{}.bias", ffn.of(matrices));
            let mlx = format!("{block}.{stacks}.{}.bias", ffn.of(MLX));
            let biases = Places {
                hf: vec![Place::Whole(list.name(Ecosystem::Hf, &hf))],
                gguf: vec![stacked(Ecosystem::Gguf, ffn.of(STACKED_BIASES), 0, 1)],
                mlx: vec![stacked(Ecosystem::Mlx, &mlx, 0, 1)],
            };
            list.in_layer(LayerRole::Expert(number, ffn), &shape, Presence::Always, places);
            list.in_layer(LayerRole::ExpertBias(number, ffn), &shape[..1], moe.biases, biases);
        }
    }
}

fn shared(list: &mut List, moe: &Moe, layer: usize) {
    let Some(shared) = moe.shared.as_ref() else { return };
    let MoeNames { block, shared: holder, .. } = list.family.naming.moe;
    let hidden = list.spec.hidden;
    let places = |list: &List, name: &str, gguf: &str| Places {
        hf: vec![Place::Whole(list.name(Ecosystem::Hf, name))],
        gguf: vec![Place::Whole(list.name(Ecosystem::Gguf, gguf))],
        mlx: vec![Place::Whole(list.name(Ecosystem::Mlx, name))],
    };
    for ffn in dense::order(list.family) {
        let name = format!("{block}.{holder}.{}.weight", ffn.of(MLX));
        let places = places(list, &name, ffn.of(SHARED));
        let shape = ffn.shape(hidden, *shared.width.of(layer));
        list.in_layer(LayerRole::Shared(ffn), &shape, Presence::Always, places);
    }
    if shared.gate {
        let places = places(list, &format!("{block}.{holder}_gate.weight"), "ffn_gate_inp_shexp.weight");
        list.in_layer(LayerRole::SharedGate, &[1, hidden], Presence::Always, places);
    }
}
