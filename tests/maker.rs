//! Makes small DeepSeek-V3-shaped checkpoints, filled with seeded noise, whole or broken.

use std::collections::BTreeMap;
use std::path::Path;

use requant_formats::Dtype;
use requant_formats::container::gguf::{self, Metadata, TensorSpec};
use serde_json::{Value, json};

/// A tensor to be written.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
    /// Number of the shard it goes to.
    pub(crate) shard: usize,
}

/// A checkpoint in memory. Change it, then [`Checkpoint::write`] it.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Tensor>,
    /// Whether to write an index (and shards) or a single `model.safetensors`.
    pub(crate) indexed: bool,
    /// Extra entries for the index: tensor, shard file name.
    pub(crate) extra_index: Vec<(String, String)>,
}

/// Hyper-parameters that differ between tests.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) hidden: usize,
    pub(crate) experts: usize,
    pub(crate) layers: usize,
    pub(crate) expert_width: usize,
    pub(crate) kv_lora: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { hidden: 256, experts: 4, layers: 2, expert_width: 128, kv_lora: 128 }
    }
}

/// How weights are stored.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Storage {
    /// FP8 with F32 scales in 128 x 128 blocks.
    Fp8(Dtype),
    /// FP8 with one-byte exponent scales.
    Fp8Exponents(Dtype),
    /// Unquantized.
    Plain(Dtype),
}

const HEADS: usize = 4;
const NOPE: usize = 32;
const ROPE: usize = 16;
const V: usize = 64;
const Q_LORA: usize = 96;
const VOCAB: usize = 1536;

/// A whole checkpoint in one shard.
pub(crate) fn checkpoint(size: Size, storage: Storage) -> Checkpoint {
    let mut maker = Maker { tensors: Vec::new(), storage, state: 0x9e37_79b9_7f4a_7c15 };
    let h = size.hidden;
    maker.plain("model.embed_tokens.weight", &[VOCAB, h]);
    for layer in 0..=size.layers {
        let prefix = format!("model.layers.{layer}.");
        let name = |suffix: &str| format!("{prefix}{suffix}");
        maker.plain(&name("input_layernorm.weight"), &[h]);
        maker.weight(&name("self_attn.q_a_proj.weight"), Q_LORA, h);
        maker.plain(&name("self_attn.q_a_layernorm.weight"), &[Q_LORA]);
        maker.weight(&name("self_attn.q_b_proj.weight"), HEADS * (NOPE + ROPE), Q_LORA);
        maker.weight(&name("self_attn.kv_a_proj_with_mqa.weight"), size.kv_lora + ROPE, h);
        maker.plain(&name("self_attn.kv_a_layernorm.weight"), &[size.kv_lora]);
        maker.weight(&name("self_attn.kv_b_proj.weight"), HEADS * (NOPE + V), size.kv_lora);
        maker.weight(&name("self_attn.o_proj.weight"), h, HEADS * V);
        maker.plain(&name("post_attention_layernorm.weight"), &[h]);
        if layer == 0 {
            maker.ffn(&name("mlp."), h, 2 * h);
            continue;
        }
        maker.plain(&name("mlp.gate.weight"), &[size.experts, h]);
        maker.tensor(&name("mlp.gate.e_score_correction_bias"), Dtype::F32, &[size.experts]);
        for expert in 0..size.experts {
            maker.ffn(&name(&format!("mlp.experts.{expert}.")), h, size.expert_width);
        }
        maker.ffn(&name("mlp.shared_experts."), h, size.expert_width);
        if layer == size.layers {
            maker.plain(&name("embed_tokens.weight"), &[VOCAB, h]);
            maker.plain(&name("enorm.weight"), &[h]);
            maker.plain(&name("hnorm.weight"), &[h]);
            maker.plain(&name("eh_proj.weight"), &[h, 2 * h]);
            maker.plain(&name("shared_head.norm.weight"), &[h]);
            maker.plain(&name("shared_head.head.weight"), &[VOCAB, h]);
        }
    }
    maker.plain("model.norm.weight", &[h]);
    maker.plain("lm_head.weight", &[VOCAB, h]);
    Checkpoint {
        config: config(size, storage),
        tensors: maker.tensors,
        indexed: true,
        extra_index: Vec::new(),
    }
}

fn config(size: Size, storage: Storage) -> Value {
    let mut config = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "hidden_size": size.hidden, "num_hidden_layers": size.layers, "num_nextn_predict_layers": 1,
        "first_k_dense_replace": 1, "intermediate_size": 2 * size.hidden,
        "moe_intermediate_size": size.expert_width, "n_routed_experts": size.experts,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
        "routed_scaling_factor": 2.5, "norm_topk_prob": true, "scoring_func": "sigmoid",
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "q_lora_rank": Q_LORA,
        "kv_lora_rank": size.kv_lora, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": V,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 4096,
        "tie_word_embeddings": false, "attention_bias": false, "torch_dtype": "bfloat16",
    });
    if !matches!(storage, Storage::Plain(_)) {
        config["quantization_config"] = json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        });
    }
    if matches!(storage, Storage::Fp8Exponents(_)) {
        config["quantization_config"]["scale_fmt"] = json!("ue8m0");
    }
    config
}

/// Writes a GGUF file: `contents` are the bytes of each tensor.
pub(crate) fn gguf(path: &Path, metadata: Metadata, specs: Vec<TensorSpec>, contents: &[Vec<u8>]) {
    let (header, mut bytes) = gguf::write_header(metadata, specs).unwrap();
    for (tensor, content) in header.tensors.iter().zip(contents) {
        bytes.resize((header.data_offset_bytes + tensor.offset_bytes) as usize, 0);
        bytes.extend(content);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    std::fs::write(path, bytes).unwrap();
}

/// Puts the fixture's tokenizer into `directory`.
pub(crate) fn copy_tokenizer(directory: &Path) {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(crate::conversion::model().join(name), directory.join(name)).unwrap();
    }
}

struct Maker {
    tensors: Vec<Tensor>,
    storage: Storage,
    state: u64,
}

impl Maker {
    fn ffn(&mut self, prefix: &str, hidden: usize, width: usize) {
        self.weight(&format!("{prefix}gate_proj.weight"), width, hidden);
        self.weight(&format!("{prefix}up_proj.weight"), width, hidden);
        self.weight(&format!("{prefix}down_proj.weight"), hidden, width);
    }

    /// A matrix that the hub stores as FP8.
    fn weight(&mut self, name: &str, rows: usize, cols: usize) {
        let blocks = [rows.div_ceil(128), cols.div_ceil(128)];
        let scale_name = format!("{name}_scale_inv");
        match self.storage {
            Storage::Plain(dtype) => self.tensor(name, dtype, &[rows, cols]),
            Storage::Fp8(dtype) => {
                self.tensor(name, dtype, &[rows, cols]);
                self.tensor(&scale_name, Dtype::F32, &blocks);
            }
            Storage::Fp8Exponents(dtype) => {
                self.tensor(name, dtype, &[rows, cols]);
                self.tensor(&scale_name, Dtype::F8_E8M0, &blocks);
            }
        }
    }

    /// A tensor that the hub stores as BF16.
    fn plain(&mut self, name: &str, shape: &[usize]) {
        let dtype = if let Storage::Plain(dtype) = self.storage { dtype } else { Dtype::BF16 };
        self.tensor(name, dtype, shape);
    }

    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        let len: usize = shape.iter().product();
        let is_scale = name.ends_with("_scale_inv");
        let mut bytes = Vec::with_capacity(len * dtype.size_bytes());
        for _ in 0..len {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let noise = (self.state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            let value = if is_scale { 1e-3 * (noise + 1.0) } else { 0.1 * noise };
            match dtype {
                // Any code but NaN and infinity.
                Dtype::F8_E4M3 => {
                    bytes.push(((self.state >> 40) as u8 & 0x80) | ((self.state >> 50) as u8 % 0x7f))
                }
                Dtype::F8_E5M2 => {
                    bytes.push(((self.state >> 40) as u8 & 0x80) | ((self.state >> 50) as u8 % 0x60))
                }
                Dtype::F8_E8M0 => bytes.push(110 + (self.state >> 50) as u8 % 8),
                Dtype::BF16 => bytes.extend(((value.to_bits() >> 16) as u16).to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                _ => bytes.extend(value.to_le_bytes()),
            }
        }
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes, shard: 0 });
    }
}

impl Checkpoint {
    /// The tensor called `name`.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of that name")
    }

    /// Removes the tensor called `name`.
    pub(crate) fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// Spreads the tensors over `shards` shards, round robin: scales and weights part company.
    pub(crate) fn spread(&mut self, shards: usize) {
        for (number, tensor) in self.tensors.iter_mut().enumerate() {
            tensor.shard = number % shards;
        }
    }

    /// Writes the checkpoint into `directory`.
    pub(crate) fn write(&self, directory: &Path) {
        std::fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
        let mut shards: BTreeMap<usize, Vec<&Tensor>> = BTreeMap::new();
        for tensor in &self.tensors {
            shards.entry(tensor.shard).or_default().push(tensor);
        }
        let mut weight_map = serde_json::Map::new();
        for (number, tensors) in &shards {
            let file = if self.indexed {
                format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len())
            } else {
                "model.safetensors".to_owned()
            };
            std::fs::write(directory.join(&file), shard_bytes(tensors)).unwrap();
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
        }
        weight_map.extend(self.extra_index.iter().map(|(name, file)| (name.clone(), json!(file))));
        if self.indexed {
            let index = json!({ "metadata": {}, "weight_map": weight_map });
            std::fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

/// A safetensors file, put together by hand so that the reader is not tested against our writer.
fn shard_bytes(tensors: &[&Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes.len();
        let entry =
            json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    tensors.iter().for_each(|tensor| bytes.extend(&tensor.bytes));
    bytes
}
