//! An MLX directory as a weight store.
//!
//! Source: `mlx_lm/utils.py` (`load_model`: a module is quantized when it has scales; `quantization` may say otherwise
//! module by module).

use std::collections::HashMap;

use requant_formats::Dtype;
use requant_formats::codec::{self, Codec, MlxMode};
use serde_json::Value;

use super::packed::{PackedStore, Stored, Stream};
use crate::checkpoint::{Catalogue, SourceTensor};
use crate::error::{Error, Result};
use crate::family::{Ecosystem, Family, Spec};
use crate::source::Source;

/// Its weights.
///
/// # Errors
/// A quantization that MLX does not have, a part that is missing or has the wrong shape.
pub(super) fn store(
    catalogue: &Catalogue,
    config: &Value,
    family: &'static Family,
    spec: &Spec,
) -> Result<PackedStore> {
    // mlx-lm drops the prediction layers.
    let spec = Spec { mtp_layers: 0, ..spec.clone() };
    let (source, headers) = (catalogue.shared_source(), catalogue.tensors());
    let by_name: HashMap<&str, &SourceTensor> =
        headers.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut stored = Vec::new();
    for tensor in headers {
        let stem = |suffix: &str| tensor.name.strip_suffix(suffix);
        if let Some(stem) = stem(".scales").or_else(|| stem(".biases"))
            && by_name.contains_key(format!("{stem}.weight").as_str())
        {
            continue;
        }
        let scales = stem(".weight").and_then(|stem| by_name.get(format!("{stem}.scales").as_str()));
        stored.push(match scales {
            Some(scales) => quantized(&*source, config, tensor, scales, &by_name)?,
            None => plain(&*source, tensor)?,
        });
    }
    PackedStore::new(source, family, spec, Ecosystem::Mlx, stored)
}

/// A tensor stored as plain numbers.
fn plain(source: &dyn Source, tensor: &SourceTensor) -> Result<Stored> {
    let codec = match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => codec::find(tensor.dtype.name()),
        _ => None,
    };
    let codec = codec.ok_or_else(|| {
        let message =
            format!("tensor {}: found dtype {}, expected F32, F16, BF16", tensor.name, tensor.dtype);
        Error::checkpoint(&source.files()[tensor.file].name, message)
    })?;
    let row_bytes = tensor.matrix().1 * tensor.dtype.size_bytes();
    let streams = vec![Stream { file: tensor.file, offset_bytes: tensor.offset_bytes, row_bytes }];
    Ok(Stored { name: tensor.name.clone(), shape: tensor.shape.clone(), codec, streams, factors: Vec::new() })
}

/// A tensor in parts: with scales, and in affine mode with biases.
fn quantized(
    source: &dyn Source,
    config: &Value,
    weight: &SourceTensor,
    scales: &SourceTensor,
    by_name: &HashMap<&str, &SourceTensor>,
) -> Result<Stored> {
    let file = &source.files()[weight.file].name;
    let stem = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
    let codec = codec_of(config, stem, scales.dtype).map_err(|what| Error::Unsupported {
        what: format!("{file}: tensor {}: {what}", weight.name),
        hint: hint(),
    })?;
    let name = codec.name();
    let mut parts = vec![weight, scales];
    for part in &codec.parts()[2..] {
        let part_name = format!("{stem}.{}", part.name);
        parts.push(by_name.get(part_name.as_str()).ok_or_else(|| {
            Error::checkpoint(file, format!("tensor {part_name} is missing, but {} is there", scales.name))
        })?);
    }
    let (rows, groups) = scales.matrix();
    let mut shape = scales.shape.clone();
    if let Some(cols) = shape.last_mut() {
        *cols *= codec.group_len_elems();
    }
    let mut streams = Vec::with_capacity(parts.len());
    for (tensor, part) in parts.into_iter().zip(codec.parts()) {
        let row_bytes = groups * part.bytes_per_group;
        if tensor.len_bytes != (rows * row_bytes) as u64 || tensor.dtype != part.dtype {
            let message = format!(
                "tensor {}: found {:?} of {} ({} bytes), expected {} bytes of {} beside scales {:?} ({name})",
                tensor.name,
                tensor.shape,
                tensor.dtype,
                tensor.len_bytes,
                rows * row_bytes,
                part.dtype,
                scales.shape
            );
            return Err(Error::checkpoint(&source.files()[tensor.file].name, message));
        }
        streams.push(Stream { file: tensor.file, offset_bytes: tensor.offset_bytes, row_bytes });
    }
    Ok(Stored { name: weight.name.clone(), shape, codec, streams, factors: Vec::new() })
}

/// The codec of the module `stem`: `quantization` of config.json, or what that says of the module.
///
/// A bit width or group that is absent or `null` is the mode's own, as for mlx-lm; the float modes'
/// scales do not show the weights' dtype, `torch_dtype` does.
///
/// # Errors
/// In words, what is not known.
fn codec_of(config: &Value, stem: &str, scales: Dtype) -> std::result::Result<&'static dyn Codec, String> {
    let section = config.get("quantization").unwrap_or(&Value::Null);
    let of_module = section.get(stem).filter(|module| module.is_object()).unwrap_or(section);
    let name = of_module.get("mode").and_then(Value::as_str).unwrap_or(MlxMode::Affine.name());
    let mode = MlxMode::find(name).ok_or_else(|| format!("quantization mode {name}"))?;
    if of_module.get("global_scale").and_then(Value::as_bool) == Some(true) {
        return Err(format!("quantization {name} with a global_scale"));
    }
    let number = |key: &str, default: usize| match of_module.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .ok_or_else(|| format!("quantization {key} {value}")),
    };
    let bits = number("bits", mode.default_bits())?;
    let group_len = number("group_size", mode.default_group_len())?;
    let element = match scales {
        Dtype::U8 => {
            config.get("torch_dtype").and_then(Value::as_str).map_or(Dtype::BF16, |name| match name {
                "float16" => Dtype::F16,
                "float32" => Dtype::F32,
                _ => Dtype::BF16,
            })
        }
        dtype => dtype,
    };
    mode.codec(bits, group_len, element).ok_or_else(|| {
        format!("quantization {name} of {bits} bits in groups of {group_len} with scales of {scales}")
    })
}

/// What can be read.
fn hint() -> String {
    let modes = MlxMode::ALL.map(|mode| {
        let (bits, group_len) = (mode.default_bits(), mode.default_group_len());
        match mode {
            MlxMode::Affine => "affine (2, 3, 4, 5, 6, 8 bits, groups of 32, 64, 128)".to_owned(),
            _ => format!("{} ({bits} bits, groups of {group_len})", mode.name()),
        }
    });
    format!("this version reads MLX's modes {}", modes.join(", "))
}
