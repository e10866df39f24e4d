//! A GGUF, one file or a split set, as a weight store; here the names of `deepseek2`.
//!
//! Source of names: llama.cpp `gguf-py/gguf/tensor_mapping.py`.

use std::collections::HashSet;
use std::path::Path;

use requant_formats::codec;
use requant_formats::container::gguf::Metadata;

use super::gguf_keys::Contents;
use super::packed::{Home, PackedStore, Place, Stored};
use super::{gguf_aside, gguf_families, gguf_grouped, gguf_keys, gguf_latent, gguf_tensors};
use crate::arch::{self, ArchSpec, Expected, Ffn, LayerRole, Role};
use crate::checkpoint::{GgufModel, SourceTensor};
use crate::error::Result;
use crate::source::Source;

/// What follows the layer in the name of an unsplit `kv_b_proj`.
const UNSPLIT: &str = ".attn_kv_b.weight";

/// What follows the layer in the name of the gate and up projections of experts in one tensor.
const MERGED: &str = ".ffn_gate_up_exps.weight";

/// A GGUF model.
pub(super) struct Gguf {
    pub(super) store: PackedStore,
    pub(super) metadata: Metadata,
    /// Name of its (first) file.
    pub(super) name: String,
}

/// Opens the file at `path`, and the other files of its set.
///
/// # Errors
/// When a file is missing, damaged or cut off, or the architecture is not one of ours.
pub(super) fn open(path: &Path) -> Result<Gguf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (source, tensors, metadata) = GgufModel::open(path)?.into_parts();
    let stored: Vec<Stored> = tensors.into_iter().filter_map(stored_tensor).collect();
    let stored = gguf_aside::resolve(&*source, stored)?;

    let architecture = gguf_keys::architecture(&metadata);
    let names: HashSet<&str> = stored.iter().map(|tensor| tensor.name.as_str()).collect();
    let contents = Contents { vocab: vocab(&stored), names: &names };
    let store = if architecture == gguf_latent::ARCHITECTURE {
        let spec = gguf_latent::spec(&metadata, &name, &contents)?;
        spec.check_size(&name)?;
        latent(source, spec, stored)?
    } else {
        let family = gguf_families::find(architecture, &name)?;
        let spec = gguf_grouped::spec(family, &metadata, &name, &contents)?;
        spec.check_size(&name)?;
        let expected = gguf_tensors::expected(&spec, family, &names);
        let home = |expected: &Expected| Some(gguf_tensors::home(&spec, family, expected));
        PackedStore::new(source, spec.clone(), &expected, stored, home)?
    };
    Ok(Gguf { store, metadata, name })
}

/// Rows of the token embedding.
fn vocab(stored: &[Stored]) -> usize {
    let embedding = stored.iter().find(|tensor| tensor.name == "token_embd.weight");
    embedding.and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0)
}

/// A `deepseek2` model with these hyper-parameters.
fn latent(source: Box<dyn Source>, spec: ArchSpec, stored: Vec<Stored>) -> Result<PackedStore> {
    let mut expected = arch::latent_tensors(&spec);
    // Layer by layer, there or not.
    expected
        .iter_mut()
        .filter(|tensor| matches!(tensor.role, Role::Layer(_, LayerRole::RouterBias)))
        .for_each(|tensor| tensor.required = false);
    // Files from before May 2025 keep the projection whole.
    let is_unsplit = stored.iter().any(|tensor| tensor.name.ends_with(UNSPLIT));
    let is_merged = stored.iter().any(|tensor| tensor.name.ends_with(MERGED));
    let home = |expected: &Expected| match expected.role {
        Role::Layer(layer, LayerRole::KvB) if is_unsplit => {
            Some(Home::Whole(format!("blk.{layer}{UNSPLIT}")))
        }
        // The gate comes first: llama.cpp `src/llama-graph.cpp` (`build_moe_ffn`).
        Role::Layer(layer, LayerRole::Expert(number, ffn @ (Ffn::Gate | Ffn::Up))) if is_merged => {
            Some(Home::Half { name: format!("blk.{layer}{MERGED}"), number, is_second: ffn == Ffn::Up })
        }
        role => home(role),
    };
    PackedStore::new(source, spec, &expected, stored, home)
}

/// As packed tensors are kept; every tensor of a GGUF file is one part.
fn stored_tensor(tensor: SourceTensor) -> Option<Stored> {
    let codec = tensor.row_major()?;
    let row_bytes = codec::part_len_bytes(codec, 0, tensor.matrix().1 as u64) as usize;
    let places = vec![Place { file: tensor.file, offset_bytes: tensor.offset_bytes, row_bytes }];
    Some(Stored { name: tensor.name, shape: tensor.shape, codec, places, factors: Vec::new() })
}

/// Where llama.cpp puts a tensor of latent attention's family.
fn home(role: Role) -> Option<Home> {
    let (layer, role) = match role {
        Role::TokenEmbedding => return Some(Home::Whole("token_embd.weight".into())),
        Role::OutputNorm => return Some(Home::Whole("output_norm.weight".into())),
        Role::Output => return Some(Home::Whole("output.weight".into())),
        Role::Layer(layer, role) => (layer, role),
        Role::OutputBias | Role::RopeDivisors | Role::RopeDivisorsLong | Role::RopeDivisorsShort => {
            return None;
        }
    };
    let name = |suffix: &str| format!("blk.{layer}.{suffix}");
    let whole = |suffix: &str| Some(Home::Whole(name(suffix)));
    match role {
        LayerRole::AttentionNorm => whole("attn_norm.weight"),
        LayerRole::Q => whole("attn_q.weight"),
        LayerRole::QA => whole("attn_q_a.weight"),
        LayerRole::QANorm => whole("attn_q_a_norm.weight"),
        LayerRole::QB => whole("attn_q_b.weight"),
        LayerRole::KvA => whole("attn_kv_a_mqa.weight"),
        LayerRole::KvANorm => whole("attn_kv_a_norm.weight"),
        LayerRole::KvB => Some(Home::KeyValue(name("attn_k_b.weight"), name("attn_v_b.weight"))),
        LayerRole::AttentionOutput => whole("attn_output.weight"),
        LayerRole::FfnNorm => whole("ffn_norm.weight"),
        LayerRole::Dense(ffn) => whole(&format!("ffn_{}.weight", short(ffn))),
        LayerRole::Router => whole("ffn_gate_inp.weight"),
        LayerRole::RouterBias => whole("exp_probs_b.bias"),
        LayerRole::Expert(expert, ffn) => {
            Some(Home::Stacked(name(&format!("ffn_{}_exps.weight", short(ffn))), expert))
        }
        LayerRole::Shared(ffn) => whole(&format!("ffn_{}_shexp.weight", short(ffn))),
        LayerRole::MtpEmbedding => whole("nextn.embed_tokens.weight"),
        LayerRole::MtpEmbeddingNorm => whole("nextn.enorm.weight"),
        LayerRole::MtpHiddenNorm => whole("nextn.hnorm.weight"),
        LayerRole::MtpProjection => whole("nextn.eh_proj.weight"),
        LayerRole::MtpHeadNorm => whole("nextn.shared_head_norm.weight"),
        LayerRole::MtpHead => whole("nextn.shared_head_head.weight"),
        _ => None,
    }
}

/// What llama.cpp calls a matrix.
pub(super) fn short(ffn: Ffn) -> &'static str {
    match ffn {
        Ffn::Gate => "gate",
        Ffn::Up => "up",
        Ffn::Down => "down",
    }
}
