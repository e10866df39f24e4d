//! Puts stored tensors together to logical ones: quantized matrices are kept in several tensors.

use std::collections::HashMap;

use requant_formats::Dtype;
use requant_formats::codec::MlxMode;
use requant_formats::container::gguf;
use requant_formats::container::safetensors::TensorEntry;
use serde_json::Value;

use super::TensorSummary;

mod packed;

/// Endings of scales.
const NOT_WEIGHTS: [&str; 4] = ["_scale_inv", ".weight_scale", ".input_scale", ".input_global_scale"];

/// Longest array shown whole; of a longer one, its length is.
const MAX_SHOWN: usize = 16;

/// Logical tensors of safetensors files. `config` says how MLX quantized them, if it did.
pub(super) fn logical_tensors(
    stored: Vec<(String, TensorEntry)>,
    config: Option<&Value>,
) -> Vec<TensorSummary> {
    let names: HashMap<&str, usize> =
        stored.iter().enumerate().map(|(id, (_, tensor))| (tensor.name.as_str(), id)).collect();
    let quantization = config.and_then(|config| config.get("quantization"));
    let packed = packed::find(&stored, &names, config);
    let mut tensors = Vec::new();
    for (id, (file, tensor)) in stored.iter().enumerate() {
        match packed.get(&id) {
            Some(None) => continue,
            Some(Some(weight)) => {
                tensors.push(weight.clone());
                continue;
            }
            None => {}
        }
        if let Some(stem) = tensor.name.strip_suffix(".scales").or(tensor.name.strip_suffix(".biases"))
            && names.contains_key(format!("{stem}.weight").as_str())
        {
            continue;
        }
        let stem = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        let part = |suffix| names.get(format!("{stem}.{suffix}").as_str()).map(|&id| &stored[id].1);
        let shape: Vec<u64> = tensor.shape.iter().map(|&d| d as u64).collect();
        let mut summary = TensorSummary {
            name: tensor.name.clone(),
            type_name: tensor.dtype.name().to_owned(),
            shape,
            bytes: tensor.len_bytes(),
            file: file.clone(),
            is_weight: !NOT_WEIGHTS.iter().any(|suffix| tensor.name.ends_with(suffix)),
        };
        if let (Dtype::U32, Some(scales), Some(quantization)) = (tensor.dtype, part("scales"), quantization) {
            let of_module = quantization.get(stem).unwrap_or(quantization);
            let name = of_module.get("mode").and_then(Value::as_str).unwrap_or(MlxMode::Affine.name());
            // What is absent or null is the mode's own, as for mlx-lm.
            let number =
                |key, default: usize| of_module.get(key).and_then(Value::as_u64).unwrap_or(default as u64);
            if let Some(mode) = MlxMode::find(name)
                && let bits = number("bits", mode.default_bits())
                && bits > 0
                && let Some(cols) = summary.shape.last_mut()
            {
                let group = number("group_size", mode.default_group_len());
                *cols = *cols * 32 / bits;
                summary.name = stem.to_owned();
                summary.type_name = match mode {
                    MlxMode::Affine => format!("affine{bits}_g{group}"),
                    _ => format!("mlx_{name}"),
                };
                summary.bytes += scales.len_bytes() + part("biases").map_or(0, TensorEntry::len_bytes);
            }
        }
        tensors.push(summary);
    }
    tensors
}

/// A GGUF value as JSON; long arrays are described.
pub(super) fn gguf_value(value: &gguf::Value) -> Value {
    if let Some(array) = value.as_array() {
        if let Some(strings) = array.as_strings().filter(|strings| strings.len() <= MAX_SHOWN) {
            return strings.into();
        }
        if let Some(numbers) = array.as_i32s().filter(|numbers| numbers.len() <= MAX_SHOWN) {
            return numbers.into();
        }
        return format!("[{} elements]", array.len()).into();
    }
    if let Some(text) = value.as_str() {
        return text.into();
    }
    if let Some(flag) = value.as_bool() {
        return flag.into();
    }
    if let Some(number) = value.as_u64() {
        return number.into();
    }
    value.as_f64().map_or_else(|| format!("{value:?}").into(), Value::from)
}
