//! config.json of the result: `load_config`, `quantize_model` and `save_config` of
//! `mlx_lm/utils.py`.
//!
//! The source's own config.json, with `eos_token_id` of generation_config.json, without
//! `_name_or_path` and `vision_config`, and with the quantization under two keys, sorted at the
//! top level. Without quantization a source's `quantization_config` stays as it is (`mlx_lm` does
//! not look at it when there are no scales to apply it to).

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::family::Config;
use crate::plan::{Sidecar, python_json};
use crate::small;

const NAME: &str = "config.json";
const GENERATION: &str = "generation_config.json";
/// Keys that mlx-lm takes out.
const REMOVED: [&str; 2] = ["_name_or_path", "vision_config"];

/// Refuses what mlx-lm's model could not be built from.
///
/// # Errors
/// What the family says, or a config that is already one of MLX.
pub(super) fn check(source: &Checkpoint) -> Result<()> {
    let config = source.config();
    if config.get("quantization").is_some() {
        return Err(Error::Unsupported {
            what: "config.json: quantization, the mark of an MLX model,".into(),
            hint: "convert the checkpoint that it was made from".into(),
        });
    }
    source.family().check_mlx(&Config::new(config))
}

/// config.json with `quantization` in it.
///
/// # Errors
/// When generation_config.json cannot be read.
pub(super) fn sidecar(source: &Checkpoint, quantization: Option<Map<String, Value>>) -> Result<Sidecar> {
    let generation = source.source().read_small(GENERATION)?;
    let config = merged(source.config(), generation.as_deref(), quantization);
    Ok(Sidecar { name: NAME.into(), bytes: python_json::dump(&config).into_bytes() })
}

fn merged(config: &Value, generation: Option<&[u8]>, quantization: Option<Map<String, Value>>) -> Value {
    let mut entries = config.as_object().cloned().unwrap_or_default();
    // A file that is not JSON counts as absent, as for mlx-lm.
    let generation: Option<Value> = generation.and_then(|bytes| small::json(GENERATION, bytes).ok());
    if let Some(ids) =
        generation.as_ref().and_then(|file| file.get("eos_token_id")).filter(|ids| is_true(ids))
    {
        entries.insert("eos_token_id".into(), ids.clone());
    }
    for key in REMOVED {
        entries.remove(key);
    }
    if let Some(section) = quantization {
        entries.insert("quantization".into(), Value::from(section.clone()));
        entries.insert("quantization_config".into(), Value::from(section));
    }
    let mut sorted: Vec<(String, Value)> = entries.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    Value::from(Map::from_iter(sorted))
}

/// Whether Python takes a value for true.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}
