//! The parameters of mlx-lm's `deepseek_v3` model in its own order, and what they are made of.
//!
//! The order is that of `tree_flatten(model.parameters())`: attributes as the constructors set
//! them. It decides how tensors are dealt out to shards. Source: `mlx_lm/models/deepseek_v3.py`,
//! `switch_layers.py` and `mla.py`.
//!
//! Two tensors are not simply copied. Routed experts are stacked, `[experts, rows, cols]`. And
//! `kv_b_proj`, per head `nope` key rows and then `v` value rows of length `kv_lora`, becomes
//! `embed_q` `[heads, kv_lora, nope]`, the key rows transposed, and `unembed_out`
//! `[heads, v, kv_lora]`.

use std::ops::Range;

use crate::arch::{Ffn, LayerRole, Role};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::plan::Piece;

/// One parameter, not yet quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
    /// Its module has `to_quantized`: linear layers and embeddings, but not the router.
    pub(super) is_quantizable: bool,
    /// `cast_predicate`: false for the router's correction bias.
    pub(super) is_cast: bool,
}

impl Parameter {
    /// Length of a row: the innermost dimension.
    pub(super) fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Path of its module, under which config.json has what is particular to it.
    pub(super) fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(&*self.name, |(module, _)| module)
    }
}

/// All of them.
///
/// # Errors
/// When a tensor is missing, which opening the checkpoint already rules out.
pub(super) fn parameters(source: &Checkpoint) -> Result<Vec<Parameter>> {
    let mut list = List { source, parameters: Vec::new() };
    let spec = source.spec();
    list.linear("model.embed_tokens.weight", Role::TokenEmbedding)?;
    for layer in 0..spec.layers {
        list.attention(layer)?;
        list.feed_forward(layer)?;
        list.layer_vector(layer, "input_layernorm.weight", LayerRole::AttentionNorm)?;
        list.layer_vector(layer, "post_attention_layernorm.weight", LayerRole::FfnNorm)?;
    }
    list.whole("model.norm.weight".into(), Role::OutputNorm, false)?;
    let head = if source.by_role(Role::Output).is_some() { Role::Output } else { Role::TokenEmbedding };
    list.linear("lm_head.weight", head)?;
    Ok(list.parameters)
}

struct List<'a> {
    source: &'a Checkpoint,
    parameters: Vec<Parameter>,
}

impl List<'_> {
    fn attention(&mut self, layer: usize) -> Result<()> {
        let spec = self.source.spec();
        let latent = spec.latent()?;
        if latent.q_lora.is_some() {
            self.layer_linear(layer, "self_attn.q_a_proj.weight", LayerRole::QA)?;
            self.layer_vector(layer, "self_attn.q_a_layernorm.weight", LayerRole::QANorm)?;
            self.layer_linear(layer, "self_attn.q_b_proj.weight", LayerRole::QB)?;
        } else {
            self.layer_linear(layer, "self_attn.q_proj.weight", LayerRole::Q)?;
        }
        self.layer_linear(layer, "self_attn.kv_a_proj_with_mqa.weight", LayerRole::KvA)?;
        self.layer_vector(layer, "self_attn.kv_a_layernorm.weight", LayerRole::KvANorm)?;

        let kv_b = self.find(Role::Layer(layer, LayerRole::KvB))?;
        let head_rows = latent.nope_dim + latent.v_dim;
        let per_head = |rows: Range<usize>, transposed| -> Vec<Piece> {
            (0..latent.heads)
                .map(|head| head * head_rows)
                .map(|first| Piece {
                    source: kv_b,
                    rows: first + rows.start..first + rows.end,
                    transposed,
                    unscaled: false,
                })
                .collect()
        };
        let keys = per_head(0..latent.nope_dim, true);
        let values = per_head(latent.nope_dim..head_rows, false);
        let keys_shape = vec![latent.heads, latent.kv_lora, latent.nope_dim];
        let values_shape = vec![latent.heads, latent.v_dim, latent.kv_lora];
        self.push(in_layer(layer, "self_attn.embed_q.weight"), keys_shape, keys, true);
        self.push(in_layer(layer, "self_attn.unembed_out.weight"), values_shape, values, true);
        self.layer_linear(layer, "self_attn.o_proj.weight", LayerRole::AttentionOutput)
    }

    fn feed_forward(&mut self, layer: usize) -> Result<()> {
        let spec = self.source.spec();
        if !spec.is_moe(layer) {
            for ffn in Ffn::ALL {
                self.layer_linear(layer, &format!("mlp.{}.weight", ffn.hf_name()), LayerRole::Dense(ffn))?;
            }
            return Ok(());
        }
        for ffn in Ffn::ALL {
            self.stacked_experts(layer, ffn)?;
        }
        self.layer_vector(layer, "mlp.gate.weight", LayerRole::Router)?;
        let bias = in_layer(layer, "mlp.gate.e_score_correction_bias");
        self.whole(bias, Role::Layer(layer, LayerRole::RouterBias), false)?;
        if let Some(bias) = self.parameters.last_mut() {
            bias.is_cast = false;
        }
        if spec.shared_experts > 0 {
            for ffn in Ffn::ALL {
                let suffix = format!("mlp.shared_experts.{}.weight", ffn.hf_name());
                self.layer_linear(layer, &suffix, LayerRole::Shared(ffn))?;
            }
        }
        Ok(())
    }

    fn stacked_experts(&mut self, layer: usize, ffn: Ffn) -> Result<()> {
        let experts = self.source.spec().experts;
        let mut pieces = Vec::with_capacity(experts);
        let mut shape = vec![experts];
        for expert in 0..experts {
            let id = self.find(Role::Layer(layer, LayerRole::Expert(expert, ffn)))?;
            let (rows, cols) = self.source.tensors()[id].matrix();
            shape.splice(1.., [rows, cols]);
            pieces.push(Piece { source: id, rows: 0..rows, transposed: false, unscaled: false });
        }
        let name = in_layer(layer, &format!("mlp.switch_mlp.{}.weight", ffn.hf_name()));
        self.push(name, shape, pieces, true);
        Ok(())
    }

    fn linear(&mut self, name: &str, role: Role) -> Result<()> {
        self.whole(name.to_owned(), role, true)
    }

    fn layer_linear(&mut self, layer: usize, suffix: &str, role: LayerRole) -> Result<()> {
        self.whole(in_layer(layer, suffix), Role::Layer(layer, role), true)
    }

    fn layer_vector(&mut self, layer: usize, suffix: &str, role: LayerRole) -> Result<()> {
        self.whole(in_layer(layer, suffix), Role::Layer(layer, role), false)
    }

    /// A source tensor as it is.
    fn whole(&mut self, name: String, role: Role, is_quantizable: bool) -> Result<()> {
        let id = self.find(role)?;
        let tensor = &self.source.tensors()[id];
        let pieces =
            vec![Piece { source: id, rows: 0..tensor.matrix().0, transposed: false, unscaled: false }];
        self.push(name, tensor.shape.clone(), pieces, is_quantizable);
        Ok(())
    }

    fn push(&mut self, name: String, shape: Vec<usize>, pieces: Vec<Piece>, is_quantizable: bool) {
        self.parameters.push(Parameter { name, shape, pieces, is_quantizable, is_cast: true });
    }

    fn find(&self, role: Role) -> Result<usize> {
        self.source.by_role(role).ok_or_else(|| {
            Error::checkpoint("model.safetensors.index.json", format!("no tensor for {role:?}"))
        })
    }
}

fn in_layer(layer: usize, suffix: &str) -> String {
    format!("model.layers.{layer}.{suffix}")
}
