//! The small files beside the shards: config, index, generation config, tokenizer.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::shard::Shard;
use super::{Dimensions, text_file};
use crate::content::DiskFile;
use crate::repo::RepoFile;

/// What the hub has for DeepSeek-V3, as far as converters read it.
const REAL_CONFIG: &str = include_str!("deepseek_v3_config.json");
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// The real ones are numbered like this, with six digits for the total.
pub(crate) fn shard_name(index: usize, total: usize) -> String {
    format!("model-{:05}-of-{total:06}.safetensors", index + 1)
}

pub(crate) fn files(dimensions: &Dimensions, shards: &[Shard]) -> io::Result<Vec<RepoFile>> {
    Ok(vec![
        text_file("config.json", &config(dimensions)?)?,
        text_file("generation_config.json", &generation_config())?,
        text_file("model.safetensors.index.json", &index(shards))?,
    ])
}

pub(crate) fn tokenizer_files(directory: &Path) -> io::Result<Vec<RepoFile>> {
    let mut files = Vec::new();
    for name in TOKENIZER_FILES {
        let path = directory.join(name);
        if path.exists() {
            files.push(RepoFile::new(name, Arc::new(DiskFile::open(&path)?))?);
        }
    }
    Ok(files)
}

fn index(shards: &[Shard]) -> Value {
    let (mut weight_map, mut total) = (Map::new(), 0);
    for (number, shard) in shards.iter().enumerate() {
        let file = shard_name(number, shards.len());
        for placed in shard.tensors() {
            total += placed.tensor.len_bytes();
            weight_map.insert(placed.tensor.name.clone(), json!(file));
        }
    }
    json!({ "metadata": { "total_size": total }, "weight_map": weight_map })
}

fn generation_config() -> Value {
    json!({
        "_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1, "do_sample": true,
        "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.39.3",
    })
}

fn config(dimensions: &Dimensions) -> io::Result<Value> {
    let mut config: Value = serde_json::from_str(REAL_CONFIG)?;
    // Groups must divide the experts; a slice with few of them has one group.
    let (groups, chosen) =
        if dimensions.experts.is_multiple_of(8) && dimensions.experts >= 16 { (8, 4) } else { (1, 1) };
    for (key, value) in [
        ("first_k_dense_replace", dimensions.dense_layers),
        ("n_group", groups),
        ("n_routed_experts", dimensions.experts),
        ("num_experts_per_tok", dimensions.experts.min(8)),
        ("num_hidden_layers", dimensions.layers()),
        ("num_nextn_predict_layers", usize::from(dimensions.mtp)),
        ("topk_group", chosen),
        ("vocab_size", dimensions.vocab),
    ] {
        config[key] = json!(value);
    }
    Ok(config)
}
