//! The tensors of a `deepseek2` GGUF: names, order, shapes, and the rows they are made of.
//!
//! Source: llama.cpp `conversion/deepseek.py` (`DeepseekV2Model.modify_tensors`),
//! `gguf-py/gguf/tensor_mapping.py` (names), `src/llama-model-loader.h` (order:
//! `weight_name_comparer`).

use super::mix;
use crate::arch::{ArchSpec, Ffn, Latent, LayerRole, Role};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};
use crate::plan::{Dropped, Piece};

/// A tensor of the result, without its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
}

impl Planned {
    /// Extents as GGUF states them: fastest first.
    pub(super) fn ne(&self) -> Vec<u64> {
        self.shape.iter().rev().map(|&extent| extent as u64).collect()
    }

    /// Number of elements.
    pub(super) fn len_elems(&self) -> u64 {
        self.shape.iter().map(|&extent| extent as u64).product()
    }

    /// Whether the outermost dimension counts routed experts.
    pub(super) fn is_experts(&self) -> bool {
        self.name.contains("_exps.")
    }
}

/// Every tensor, in the order in which llama-quantize writes them: those outside the layers,
/// then layer by layer, each group by name.
///
/// # Errors
/// A tensor that the family requires and the checkpoint lacks.
pub(super) fn tensors(source: &Checkpoint) -> Result<Vec<Planned>> {
    let spec = source.spec();
    let mut planned = vec![
        whole(source, "token_embd.weight".into(), Role::TokenEmbedding)?,
        whole(source, "output_norm.weight".into(), Role::OutputNorm)?,
    ];
    if !spec.tied_embeddings {
        planned.push(whole(source, "output.weight".into(), Role::Output)?);
    }
    for layer in 0..spec.layers {
        add_layer(source, layer, &mut planned)?;
    }
    planned.sort_by(|a, b| (mix::layer(&a.name), &a.name).cmp(&(mix::layer(&b.name), &b.name)));
    Ok(planned)
}

/// What the target leaves out.
pub(super) fn dropped(source: &Checkpoint) -> Vec<Dropped> {
    let spec = source.spec();
    let mut groups: Vec<Dropped> = Vec::new();
    for (position, tensor) in source.tensors().iter().enumerate() {
        let Some(reason) = drop_reason(spec, tensor) else { continue };
        let tensors = std::iter::once(position).chain(tensor.companions().iter().copied());
        match groups.iter_mut().find(|group| group.reason == reason) {
            Some(group) => group.tensors.extend(tensors),
            None => groups.push(Dropped { tensors: tensors.collect(), reason }),
        }
    }
    groups
}

fn drop_reason(spec: &ArchSpec, tensor: &SourceTensor) -> Option<String> {
    match tensor.role {
        Some(Role::Layer(layer, _)) if layer >= spec.layers => {
            Some(format!("multi-token prediction layer {layer}: llama.cpp does not read it"))
        }
        Some(Role::Output) if spec.tied_embeddings => {
            Some("output head: config.json says it is the token embedding".into())
        }
        None if tensor.name.ends_with(".rotary_emb.inv_freq") => {
            Some("rotary frequencies: llama.cpp computes them".into())
        }
        _ => None,
    }
}

fn add_layer(source: &Checkpoint, layer: usize, planned: &mut Vec<Planned>) -> Result<()> {
    let spec = source.spec();
    let mut add = |suffix: &str, role| -> Result<()> {
        planned.push(whole(source, format!("blk.{layer}.{suffix}"), Role::Layer(layer, role))?);
        Ok(())
    };
    add("attn_norm.weight", LayerRole::AttentionNorm)?;
    if spec.latent()?.q_lora.is_some() {
        add("attn_q_a.weight", LayerRole::QA)?;
        add("attn_q_a_norm.weight", LayerRole::QANorm)?;
        add("attn_q_b.weight", LayerRole::QB)?;
    } else {
        add("attn_q.weight", LayerRole::Q)?;
    }
    add("attn_kv_a_mqa.weight", LayerRole::KvA)?;
    add("attn_kv_a_norm.weight", LayerRole::KvANorm)?;
    add("attn_output.weight", LayerRole::AttentionOutput)?;
    add("ffn_norm.weight", LayerRole::FfnNorm)?;
    if spec.is_moe(layer) {
        add("ffn_gate_inp.weight", LayerRole::Router)?;
        add("exp_probs_b.bias", LayerRole::RouterBias)?;
        for ffn in Ffn::ALL {
            if spec.shared_experts > 0 {
                add(&format!("ffn_{}_shexp.weight", short(ffn)), LayerRole::Shared(ffn))?;
            }
        }
        for ffn in Ffn::ALL {
            planned.push(experts(source, layer, ffn)?);
        }
    } else {
        for ffn in Ffn::ALL {
            add(&format!("ffn_{}.weight", short(ffn)), LayerRole::Dense(ffn))?;
        }
    }
    planned.extend(key_value(source, layer)?);
    Ok(())
}

fn short(ffn: Ffn) -> &'static str {
    match ffn {
        Ffn::Gate => "gate",
        Ffn::Up => "up",
        Ffn::Down => "down",
    }
}

/// One source tensor as it is.
fn whole(source: &Checkpoint, name: String, role: Role) -> Result<Planned> {
    let position = find(source, role)?;
    let tensor = &source.tensors()[position];
    let rows = 0..tensor.matrix().0;
    Ok(Planned {
        name,
        shape: tensor.shape.clone(),
        pieces: vec![Piece { source: position, rows, transposed: false, unscaled: false }],
    })
}

/// The experts' matrices one after the other: `[experts, rows, cols]`.
fn experts(source: &Checkpoint, layer: usize, ffn: Ffn) -> Result<Planned> {
    let count = source.spec().experts;
    let mut pieces = Vec::with_capacity(count);
    let mut shape = vec![count, 0, 0];
    for expert in 0..count {
        let position = find(source, Role::Layer(layer, LayerRole::Expert(expert, ffn)))?;
        let (rows, cols) = source.tensors()[position].matrix();
        shape = vec![count, rows, cols];
        pieces.push(Piece { source: position, rows: 0..rows, transposed: false, unscaled: false });
    }
    Ok(Planned { name: format!("blk.{layer}.ffn_{}_exps.weight", short(ffn)), shape, pieces })
}

/// `kv_b_proj`, `[heads * (nope + v), kv_lora]`, as llama.cpp's latent attention wants it: the key
/// half of each head transposed, `[heads, kv_lora, nope]`, the value half `[heads, v, kv_lora]`.
fn key_value(source: &Checkpoint, layer: usize) -> Result<[Planned; 2]> {
    let &Latent { heads, nope_dim, v_dim, kv_lora, .. } = source.spec().latent()?;
    let position = find(source, Role::Layer(layer, LayerRole::KvB))?;
    let first_row = |head: usize| head * (nope_dim + v_dim);
    let piece = |start: usize, len: usize, transposed| Piece {
        source: position,
        rows: start..start + len,
        transposed,
        unscaled: false,
    };
    Ok([
        Planned {
            name: format!("blk.{layer}.attn_k_b.weight"),
            shape: vec![heads, kv_lora, nope_dim],
            pieces: (0..heads).map(|head| piece(first_row(head), nope_dim, true)).collect(),
        },
        Planned {
            name: format!("blk.{layer}.attn_v_b.weight"),
            shape: vec![heads, v_dim, kv_lora],
            pieces: (0..heads).map(|head| piece(first_row(head) + nope_dim, v_dim, false)).collect(),
        },
    ])
}

fn find(source: &Checkpoint, role: Role) -> Result<usize> {
    source.by_role(role).ok_or_else(|| {
        let message = format!("the tensor for {role:?} is missing");
        Error::checkpoint(source.source().location(), message)
    })
}
