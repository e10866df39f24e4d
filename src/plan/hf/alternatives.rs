//! Types that a budget may choose from, for each linear layer, and what has to have one with it.

use std::collections::BTreeSet;

use super::{Packing, Stored, linear};
use crate::arch::{Ffn, LayerRole};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::plan::budget::{Candidate, Choices, Set};
use crate::plan::{Blueprint, Choice};

/// The types that fit each linear layer of the decoder, prediction layers left out. Types with a factor on a
/// whole tensor are none of them: a sample of its rows does not show it.
///
/// # Errors
/// As [`Packing::stored`].
pub(in crate::plan) fn alternatives(
    source: &Checkpoint,
    packing: &dyn Packing,
    default: &str,
    blueprint: &Blueprint,
) -> Result<Vec<Choices>> {
    let types = packing.alternatives(default);
    let mut all: Vec<Choices> = Vec::new();
    for (position, output) in blueprint.tensors.iter().enumerate() {
        let [piece] = output.pieces.as_slice() else { continue };
        let tensor = &source.tensors()[piece.source];
        let Some((layer, role)) = linear(tensor.role).filter(|(layer, _)| *layer < source.spec().layers)
        else {
            continue;
        };
        let mut candidates = Vec::new();
        for type_name in &types {
            if let Some(Stored::Encoded(scheme)) = packing.stored(type_name, tensor)?
                && scheme.codec.tensor_scale(1.0).is_none()
            {
                let choice = Choice::Type { name: (*type_name).to_owned(), group_size: None };
                candidates.push(Candidate { choice, codec: scheme.codec });
            }
        }
        let set = Set { before: r"model\.layers\.", layer, after: after(role, layer, &tensor.name) };
        all.push(Choices { tensor: position, set: Some(set), candidates });
    }
    // A set of which one member fits nothing stays as it is.
    let misfits: BTreeSet<Option<Set>> = all
        .iter()
        .filter(|choices| choices.candidates.is_empty())
        .map(|choices| choices.set.clone())
        .collect();
    all.retain(|choices| !misfits.contains(&choices.set));
    Ok(all)
}

/// What follows the number of the layer in the names of a fused set, as a regular expression.
fn after(role: LayerRole, layer: usize, name: &str) -> String {
    let fused = match role {
        LayerRole::Expert(..) => r"mlp\.experts\.\d+\.(gate|up|down)_proj",
        LayerRole::Shared(Ffn::Gate | Ffn::Up) => r"mlp\.shared_experts\.(gate|up)_proj",
        LayerRole::Dense(Ffn::Gate | Ffn::Up) => r"mlp\.(gate|up)_proj",
        LayerRole::QA | LayerRole::KvA => r"self_attn\.(q_a_proj|kv_a_proj_with_mqa)",
        _ => {
            let prefix = format!("model.layers.{layer}");
            return name.strip_prefix(&prefix).unwrap_or(name).replace('.', r"\.");
        }
    };
    format!(r"\.{fused}\.weight")
}
