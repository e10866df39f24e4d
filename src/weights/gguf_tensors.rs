//! The tensors of GGUF families with grouped-query attention: names, shapes, and which hold several matrices.
//!
//! Source: llama.cpp `src/llama-arch.cpp` (names), `src/models/*.cpp` and `create_tensor_qkv` (shapes).

use std::collections::HashSet;

use super::gguf::short;
use super::gguf_families::{Family, HeadNorms};
use super::packed::Home;
use crate::arch::{ArchSpec, Attention, Divisors, Expected, Ffn, Grouped, Heads, LayerRole, Role};

/// Queries, keys and values in one matrix, or their biases in one vector.
const FUSED_QKV: &str = "attn_qkv";

const OUTPUT_BIAS: &str = "output.bias";

/// Every tensor that a file with these hyper-parameters and tensors of these names holds or may hold, by the name that it
/// has there.
pub(super) fn expected(spec: &ArchSpec, family: &Family, names: &HashSet<&str>) -> Vec<Expected> {
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
    if family.has_output_bias && names.contains(OUTPUT_BIAS) {
        top(OUTPUT_BIAS, vec![spec.vocab], Role::OutputBias);
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
        list.attention(family, names);
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

    /// Adds what files hold or not, layer by layer.
    fn may_have(&mut self, suffix: &str, shape: Vec<usize>, role: LayerRole) {
        let first = self.tensors.len();
        self.add(suffix, shape, role);
        self.tensors[first..].iter_mut().for_each(|tensor| tensor.required = false);
    }

    fn attention(&mut self, family: &Family, names: &HashSet<&str>) {
        let (hidden, width) = (self.spec.hidden, self.grouped.key_dim);
        let Rows { query, key, value } = Rows::of(self.grouped, self.layer);
        self.add("attn_norm.weight", vec![hidden], LayerRole::AttentionNorm);
        let parts = [
            ("q", query, LayerRole::Q, LayerRole::QBias),
            ("k", key, LayerRole::K, LayerRole::KBias),
            ("v", value, LayerRole::V, LayerRole::VBias),
        ];
        let name = |part: &str, kind: &str| {
            let fused = format!("{FUSED_QKV}.{kind}");
            let is_fused = names.contains(format!("blk.{}.{fused}", self.layer).as_str());
            if is_fused { fused } else { format!("attn_{part}.{kind}") }
        };
        let parts = parts.map(|(part, rows, role, bias_role)| {
            (name(part, "weight"), name(part, "bias"), rows, role, bias_role)
        });
        for (weight, bias, rows, role, bias_role) in parts {
            self.add(&weight, vec![rows, hidden], role);
            self.may_have(&bias, vec![rows], bias_role);
        }
        for (suffix, role) in
            [("attn_q_norm.weight", LayerRole::QNorm), ("attn_k_norm.weight", LayerRole::KNorm)]
        {
            match family.head_norms {
                HeadNorms::Never => {}
                HeadNorms::Always => self.add(suffix, vec![width], role),
                HeadNorms::Perhaps => self.may_have(suffix, vec![width], role),
            }
        }
        let out = self.grouped.heads.of(self.layer).query * self.grouped.value_dim;
        self.add("attn_output.weight", vec![hidden, out], LayerRole::AttentionOutput);
        self.may_have("attn_output.bias", vec![hidden], LayerRole::AttentionOutputBias);
    }

    fn feed_forward(&mut self, family: &Family) {
        let ArchSpec { hidden, experts, .. } = *self.spec;
        let shape = |ffn, width| match ffn {
            Ffn::Gate | Ffn::Up => vec![width, hidden],
            Ffn::Down => vec![hidden, width],
        };
        if !self.spec.is_moe(self.layer) {
            let width = *self.spec.dense_intermediate.of(self.layer);
            for ffn in Ffn::ALL {
                let stored = if ffn == Ffn::Gate && family.is_gate_in_up { Ffn::Up } else { ffn };
                let suffix = format!("ffn_{}.weight", short(stored));
                self.add(&suffix, shape(ffn, width), LayerRole::Dense(ffn));
                if family.has_dense_biases {
                    let rows = shape(ffn, width)[0];
                    self.may_have(&format!("ffn_{}.bias", short(ffn)), vec![rows], LayerRole::DenseBias(ffn));
                }
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
                self.add(
                    &suffix,
                    shape(ffn, *self.spec.expert_intermediate.of(self.layer)),
                    LayerRole::Expert(expert, ffn),
                );
            }
        }
        if self.spec.shared_experts > 0 {
            for ffn in Ffn::ALL {
                let suffix = format!("ffn_{}_shexp.weight", short(ffn));
                self.add(
                    &suffix,
                    shape(ffn, *self.spec.shared_intermediate.of(self.layer)),
                    LayerRole::Shared(ffn),
                );
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
        self.may_have("nextn.embed_tokens.weight", vec![vocab, hidden], LayerRole::MtpEmbedding);
        self.may_have("nextn.shared_head_head.weight", vec![vocab, hidden], LayerRole::MtpHead);
        self.may_have("nextn.shared_head_norm.weight", vec![hidden], LayerRole::MtpHeadNorm);
    }
}

/// Where a tensor of [`expected`] is.
pub(super) fn home(spec: &ArchSpec, family: &Family, expected: &Expected) -> Home {
    let name = expected.name.clone();
    let Role::Layer(layer, role) = expected.role else { return Home::Whole(name) };
    let Attention::Grouped(grouped) = &spec.attention else { return Home::Whole(name) };
    let rows = Rows::of(grouped, layer);
    match role {
        LayerRole::Expert(expert, _) => Home::Stacked(name, expert),
        LayerRole::Q | LayerRole::K | LayerRole::V if is_fused(&name) => {
            Home::Part { name, first: rows.before(role), rows: rows.all() }
        }
        LayerRole::QBias | LayerRole::KBias | LayerRole::VBias if is_fused(&name) => {
            Home::Section { name, first: rows.before(role), len: rows.all() }
        }
        // The gate is the first half of the matrix that is called the up projection.
        LayerRole::Dense(ffn @ (Ffn::Gate | Ffn::Up)) if family.is_gate_in_up => {
            let width = *spec.dense_intermediate.of(layer);
            Home::Part { name, first: if ffn == Ffn::Gate { 0 } else { width }, rows: 2 * width }
        }
        _ => Home::Whole(name),
    }
}

/// Whether a tensor holds queries, keys and values, in this order.
fn is_fused(name: &str) -> bool {
    name.split('.').nth(2) == Some(FUSED_QKV)
}

/// Rows of the three projections of a layer, which follow each other where they are fused.
struct Rows {
    query: usize,
    key: usize,
    value: usize,
}

impl Rows {
    fn of(grouped: &Grouped, layer: usize) -> Self {
        let Heads { query, key_value } = *grouped.heads.of(layer);
        let Grouped { key_dim, value_dim, .. } = *grouped;
        Self { query: query * key_dim, key: key_value * key_dim, value: key_value * value_dim }
    }

    fn all(&self) -> usize {
        self.query + self.key + self.value
    }

    /// Rows before the first of those with this role.
    fn before(&self, role: LayerRole) -> usize {
        match role {
            LayerRole::K | LayerRole::KBias => self.query,
            LayerRole::V | LayerRole::VBias => self.query + self.key,
            _ => 0,
        }
    }
}
