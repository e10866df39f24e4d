//! The dense feed-forward block: gate, up and down projection.

use crate::family::place::{Ecosystem, Place};
use crate::family::tensors::{List, Names};
use crate::family::{Family, Ffn, LayerRole, Presence, Role};

/// An expression for the names of what engines fuse.
pub(super) const FUSED: &str = r"mlp\.(gate|up)_proj";

const WEIGHTS: [Names; 3] = [
    Names::new("mlp.gate_proj.weight", "ffn_gate.weight"),
    Names::new("mlp.up_proj.weight", "ffn_up.weight"),
    Names::new("mlp.down_proj.weight", "ffn_down.weight"),
];
const BIASES: [Names; 3] = [
    Names::new("mlp.gate_proj.bias", "ffn_gate.bias"),
    Names::new("mlp.up_proj.bias", "ffn_up.bias"),
    Names::new("mlp.down_proj.bias", "ffn_down.bias"),
];

/// The order in which mlx-lm's modules hold the matrices.
pub(super) fn order(family: &Family) -> [Ffn; 3] {
    if family.naming.mlx.down_before_up { [Ffn::Gate, Ffn::Down, Ffn::Up] } else { Ffn::ALL }
}

/// Adds a block of this width.
pub(in crate::family) fn add(list: &mut List, width: usize) {
    let hidden = list.spec.hidden;
    for ffn in order(list.family) {
        let shape = ffn.shape(hidden, width);
        let mut places = list.whole(Role::Layer(0, LayerRole::Dense(ffn)), ffn.of(WEIGHTS));
        if list.family.naming.gate_is_in_up && ffn != Ffn::Down {
            // The gate is the first half of the matrix that is called the up projection.
            let first = if ffn == Ffn::Gate { 0 } else { width };
            let name = list.name(Ecosystem::Gguf, Ffn::Up.of(WEIGHTS).gguf);
            places.gguf = vec![Place::Rows { name, first, of: 2 * width }];
        }
        list.in_layer(LayerRole::Dense(ffn), &shape, Presence::Always, places);
        let biases = list.spec.ffn.dense.biases;
        list.whole_in_layer(LayerRole::DenseBias(ffn), &shape[..1], biases, ffn.of(BIASES));
    }
}
