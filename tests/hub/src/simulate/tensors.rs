//! The tensors of DeepSeek-V3: names, shapes and types in the order of the layers.

use super::Dimensions;

const HIDDEN: u64 = 7168;
const DENSE: u64 = 18_432;
const EXPERT: u64 = 2048;
const Q_LORA: u64 = 1536;
const KV_LORA: u64 = 512;
const ROPE: u64 = 64;
/// 128 heads of 128 + 64.
const Q_ROWS: u64 = 24_576;
/// 128 heads of 128 + 128.
const KV_ROWS: u64 = 32_768;
/// 128 heads of 128.
const V_COLS: u64 = 16_384;
const BLOCK: u64 = 128;

/// A tensor as a safetensors header has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Full name.
    pub name: String,
    /// `F8_E4M3`, `BF16` or `F32`.
    pub dtype: &'static str,
    /// Rows, columns; or one length.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// Size in bytes.
    pub fn len_bytes(&self) -> u64 {
        let elem_bytes = match self.dtype {
            "F8_E4M3" => 1,
            "BF16" => 2,
            _ => 4,
        };
        self.shape.iter().product::<u64>() * elem_bytes
    }
}

/// All tensors of the model.
pub fn tensors(dimensions: &Dimensions) -> Vec<Tensor> {
    let vocab = dimensions.vocab as u64;
    let mut list = List(Vec::new());
    list.add("model.embed_tokens.weight", "BF16", &[vocab, HIDDEN]);
    for layer in 0..dimensions.layers() {
        list.layer(layer, layer < dimensions.dense_layers, dimensions.experts);
    }
    // The prediction layer has the next number and comes before the output, as in the real shards.
    if dimensions.mtp {
        let prefix = format!("model.layers.{}", dimensions.layers());
        list.add(&format!("{prefix}.embed_tokens.weight"), "BF16", &[vocab, HIDDEN]);
        list.add(&format!("{prefix}.enorm.weight"), "BF16", &[HIDDEN]);
        list.add(&format!("{prefix}.hnorm.weight"), "BF16", &[HIDDEN]);
        list.add(&format!("{prefix}.eh_proj.weight"), "BF16", &[HIDDEN, 2 * HIDDEN]);
        list.layer(dimensions.layers(), false, dimensions.experts);
        list.add(&format!("{prefix}.shared_head.norm.weight"), "BF16", &[HIDDEN]);
        list.add(&format!("{prefix}.shared_head.head.weight"), "BF16", &[vocab, HIDDEN]);
    }
    list.add("model.norm.weight", "BF16", &[HIDDEN]);
    list.add("lm_head.weight", "BF16", &[vocab, HIDDEN]);
    list.0
}

struct List(Vec<Tensor>);

impl List {
    fn add(&mut self, name: &str, dtype: &'static str, shape: &[u64]) {
        self.0.push(Tensor { name: name.to_string(), dtype, shape: shape.to_vec() });
    }

    /// A matrix in FP8 and its scales, one for a block of 128 x 128.
    fn fp8(&mut self, name: &str, rows: u64, cols: u64) {
        self.add(&format!("{name}.weight"), "F8_E4M3", &[rows, cols]);
        let blocks = [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
        self.add(&format!("{name}.weight_scale_inv"), "F32", &blocks);
    }

    fn gated_mlp(&mut self, prefix: &str, width: u64) {
        self.fp8(&format!("{prefix}.gate_proj"), width, HIDDEN);
        self.fp8(&format!("{prefix}.up_proj"), width, HIDDEN);
        self.fp8(&format!("{prefix}.down_proj"), HIDDEN, width);
    }

    fn layer(&mut self, layer: usize, dense: bool, experts: usize) {
        let prefix = format!("model.layers.{layer}");
        let attention = format!("{prefix}.self_attn");
        self.add(&format!("{prefix}.input_layernorm.weight"), "BF16", &[HIDDEN]);
        self.fp8(&format!("{attention}.q_a_proj"), Q_LORA, HIDDEN);
        self.add(&format!("{attention}.q_a_layernorm.weight"), "BF16", &[Q_LORA]);
        self.fp8(&format!("{attention}.q_b_proj"), Q_ROWS, Q_LORA);
        self.fp8(&format!("{attention}.kv_a_proj_with_mqa"), KV_LORA + ROPE, HIDDEN);
        self.add(&format!("{attention}.kv_a_layernorm.weight"), "BF16", &[KV_LORA]);
        self.fp8(&format!("{attention}.kv_b_proj"), KV_ROWS, KV_LORA);
        self.fp8(&format!("{attention}.o_proj"), HIDDEN, V_COLS);
        self.add(&format!("{prefix}.post_attention_layernorm.weight"), "BF16", &[HIDDEN]);
        if dense {
            self.gated_mlp(&format!("{prefix}.mlp"), DENSE);
            return;
        }
        let gate = format!("{prefix}.mlp.gate");
        self.add(&format!("{gate}.weight"), "BF16", &[experts as u64, HIDDEN]);
        self.add(&format!("{gate}.e_score_correction_bias"), "F32", &[experts as u64]);
        self.gated_mlp(&format!("{prefix}.mlp.shared_experts"), EXPERT);
        for expert in 0..experts {
            self.gated_mlp(&format!("{prefix}.mlp.experts.{expert}"), EXPERT);
        }
    }
}
