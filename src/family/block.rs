//! The blocks that decoder layers are made of. One file each: which tensors a block has, their shapes, what each ecosystem
//! calls them and how it arranges them, and which of its matrices serving engines fuse.
//!
//! Source of names: the models' classes in transformers and their checkpoints on the hub; llama.cpp
//! `gguf-py/gguf/tensor_mapping.py`, `src/llama-arch.cpp`, `src/models/*.cpp`, `conversion/*.py`; mlx-lm `models/*.py`.
//! Tensors are listed in the order in which mlx-lm's modules hold them, which decides how MLX files are cut into shards.

use super::{Attention, Family, Ffn, LayerRole, Spec};

pub(super) mod dense;
pub(super) mod gqa;
pub(super) mod mla;
pub(super) mod moe;
pub(super) mod mtp;

/// Matrices of a layer that serving engines fuse and then want stored alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fused {
    /// The first of them, which stands for all.
    pub first: LayerRole,
    /// A regular expression for what follows the layer's number in the names of checkpoints, without `.weight`.
    pub names: String,
}

/// The set that the matrix with this role belongs to; `None` when it is on its own.
pub(super) fn fused(family: &Family, spec: &Spec, role: LayerRole) -> Option<Fused> {
    let (first, names) = match role {
        LayerRole::Expert(..) => (LayerRole::Expert(0, Ffn::Gate), moe::fused_experts(family)),
        LayerRole::Shared(Ffn::Gate | Ffn::Up) => (LayerRole::Shared(Ffn::Gate), moe::fused_shared(family)),
        LayerRole::Dense(Ffn::Gate | Ffn::Up) => (LayerRole::Dense(Ffn::Gate), dense::FUSED.to_owned()),
        role => {
            let sets = match &spec.attention {
                Attention::Latent(_) => mla::FUSED,
                Attention::Grouped(_) => gqa::FUSED,
            };
            let (members, names) = sets.iter().find(|(members, _)| members.contains(&role))?;
            (members[0], (*names).to_owned())
        }
    };
    Some(Fused { first, names })
}
