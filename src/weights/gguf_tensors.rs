//! The tensors of GGUF families with grouped-query attention: names, shapes, and which hold several matrices.
//!
//! Source: llama.cpp `src/llama-arch.cpp` (names), `src/models/*.cpp` and `create_tensor_qkv` (shapes).

use super::gguf::short;
use super::gguf_families::Family;
use super::packed::Home;
use crate::arch::{ArchSpec, Attention, Divisors, Expected, Ffn, Grouped, LayerRole, Role};

/// Queries, keys and values in one matrix.
const FUSED_QKV: &str = "attn_qkv.weight";

/// Every tensor that a file with these hyper-parameters holds, by the name that it has there.
pub(super) fn expected(spec: &ArchSpec, family: &Family, is_fused: bool) -> Vec<Expected> {
    let Attention::Grouped(grouped) = &spec.attention else { return Vec::new() };
    let hidden = spec.hidden;
    let mut tensors = Vec::new();
    let mut top = |name: &str, shape: Vec<usize>, role| {
        tensors.push(Expected { name: name.to_owned(), shape, role, required: true });
    };
    top("token_embd.weight", vec![spec.vocab, hidden], Role::TokenEmbedding);
    top("output_norm.weight", vec![hidden], Role::OutputNorm);
    if !spec.tied_embeddings {
        top("output.weight", vec![spec.vocab, hidden], Role::Output);
    }
    let pairs = vec![spec.rope.dim / 2];
    match spec.rope.divisors {
        Divisors::Absent => {}
        Divisors::Always => top("rope_freqs.weight", pairs, Role::RopeDivisors),
        Divisors::ByContext { .. } => {
            top("rope_factors_long.weight", pairs.clone(), Role::RopeDivisorsLong);
            top("rope_factors_short.weight", pairs, Role::RopeDivisorsShort);
        }
    }
    for layer in 0..spec.layers + spec.mtp_layers {
        let mut list = List { spec, grouped, layer, tensors: &mut tensors };
        list.attention(is_fused);
        list.add(&format!("{}.weight", family.ffn_norm), vec![hidden], LayerRole::FfnNorm);
        list.feed_forward(family);
        if spec.post_norms {
            list.add("post_attention_norm.weight", vec![hidden], LayerRole::AttentionPostNorm);
            list.add("post_ffw_norm.weight", vec![hidden], LayerRole::FfnPostNorm);
        }
        if layer >= spec.layers {
            list.prediction();
        }
    }
    tensors
}

struct List<'a> {
    spec: &'a ArchSpec,
    grouped: &'a Grouped,
    layer: usize,
    tensors: &'a mut Vec<Expected>,
}

impl List<'_> {
    fn add(&mut self, suffix: &str, shape: Vec<usize>, role: LayerRole) {
        let name = format!("blk.{}.{suffix}", self.layer);
        self.tensors.push(Expected { name, shape, role: Role::Layer(self.layer, role), required: true });
    }

    fn attention(&mut self, is_fused: bool) {
        let (hidden, width) = (self.spec.hidden, self.grouped.head_dim);
        let (query, key) = (self.spec.heads * width, self.grouped.kv_heads * width);
        let Grouped { biases, output_bias, head_norms, .. } = *self.grouped;
        self.add("attn_norm.weight", vec![hidden], LayerRole::AttentionNorm);
        let parts = [
            ("q", query, biases.query, LayerRole::Q, LayerRole::QBias),
            ("k", key, biases.key, LayerRole::K, LayerRole::KBias),
            ("v", key, biases.value, LayerRole::V, LayerRole::VBias),
        ];
        for (part, rows, has_bias, role, bias_role) in parts {
            let own = format!("attn_{part}.weight");
            self.add(if is_fused { FUSED_QKV } else { &own }, vec![rows, hidden], role);
            if has_bias {
                self.add(&format!("attn_{part}.bias"), vec![rows], bias_role);
            }
        }
        if head_norms {
            self.add("attn_q_norm.weight", vec![width], LayerRole::QNorm);
            self.add("attn_k_norm.weight", vec![width], LayerRole::KNorm);
        }
        self.add("attn_output.weight", vec![hidden, query], LayerRole::AttentionOutput);
        if output_bias {
            self.add("attn_output.bias", vec![hidden], LayerRole::AttentionOutputBias);
        }
    }

    fn feed_forward(&mut self, family: &Family) {
        let ArchSpec { hidden, experts, .. } = *self.spec;
        let shape = |ffn, width| match ffn {
            Ffn::Gate | Ffn::Up => vec![width, hidden],
            Ffn::Down => vec![hidden, width],
        };
        if !self.spec.is_moe(self.layer) {
            for ffn in Ffn::ALL {
                let stored = if ffn == Ffn::Gate && family.is_gate_in_up { Ffn::Up } else { ffn };
                let suffix = format!("ffn_{}.weight", short(stored));
                self.add(&suffix, shape(ffn, self.spec.dense_intermediate), LayerRole::Dense(ffn));
            }
            return;
        }
        self.add("ffn_gate_inp.weight", vec![experts, hidden], LayerRole::Router);
        if self.spec.router_bias {
            self.add("exp_probs_b.bias", vec![experts], LayerRole::RouterBias);
        }
        for expert in 0..experts {
            for ffn in Ffn::ALL {
                let suffix = format!("ffn_{}_exps.weight", short(ffn));
                self.add(&suffix, shape(ffn, self.spec.expert_intermediate), LayerRole::Expert(expert, ffn));
            }
        }
        if self.spec.shared_experts > 0 {
            for ffn in Ffn::ALL {
                let suffix = format!("ffn_{}_shexp.weight", short(ffn));
                self.add(&suffix, shape(ffn, self.spec.shared_intermediate), LayerRole::Shared(ffn));
            }
        }
        if self.spec.shared_gate {
            self.add("ffn_gate_inp_shexp.weight", vec![1, hidden], LayerRole::SharedGate);
        }
    }

    /// What a prediction layer has beside.
    fn prediction(&mut self) {
        let ArchSpec { hidden, vocab, .. } = *self.spec;
        self.add("nextn.eh_proj.weight", vec![hidden, 2 * hidden], LayerRole::MtpProjection);
        self.add("nextn.enorm.weight", vec![hidden], LayerRole::MtpEmbeddingNorm);
        self.add("nextn.hnorm.weight", vec![hidden], LayerRole::MtpHiddenNorm);
        let optional = self.tensors.len();
        self.add("nextn.embed_tokens.weight", vec![vocab, hidden], LayerRole::MtpEmbedding);
        self.add("nextn.shared_head_head.weight", vec![vocab, hidden], LayerRole::MtpHead);
        self.add("nextn.shared_head_norm.weight", vec![hidden], LayerRole::MtpHeadNorm);
        self.tensors[optional..].iter_mut().for_each(|tensor| tensor.required = false);
    }
}

/// Where a tensor of [`expected`] is.
pub(super) fn home(spec: &ArchSpec, family: &Family, is_fused: bool, expected: &Expected) -> Home {
    let name = expected.name.clone();
    let Role::Layer(_, role) = expected.role else { return Home::Whole(name) };
    let (width, kv_heads) = match &spec.attention {
        Attention::Grouped(grouped) => (grouped.head_dim, grouped.kv_heads),
        Attention::Latent(_) => return Home::Whole(name),
    };
    let (query, key) = (spec.heads * width, kv_heads * width);
    let qkv = |name, first| Home::Part { name, first, rows: query + 2 * key };
    match role {
        LayerRole::Expert(expert, _) => Home::Stacked(name, expert),
        LayerRole::Q if is_fused => qkv(name, 0),
        LayerRole::K if is_fused => qkv(name, query),
        LayerRole::V if is_fused => qkv(name, query + key),
        // The gate is the first half of the matrix that is called the up projection.
        LayerRole::Dense(ffn @ (Ffn::Gate | Ffn::Up)) if family.is_gate_in_up => {
            let first = if ffn == Ffn::Gate { 0 } else { spec.dense_intermediate };
            Home::Part { name, first, rows: 2 * spec.dense_intermediate }
        }
        _ => Home::Whole(name),
    }
}
