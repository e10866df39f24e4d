//! `compressed-tensors`: packed integers, FP4, and FP8, as the package of that name stores them.
//!
//! What a module is stored as follows from its tensors; the section is checked for formats and number widths that
//! are not decoded. Source: compressed-tensors 0.20.0, `config/base.py`, `compressors/`.

use requant_formats::codec::{self, ChannelScale};
use requant_formats::layout;
use requant_formats::{Codec, Dtype};
use serde_json::Value;

use super::fp8::block_size;
use super::{Found, Method, Module, Packing, Quantization};
use crate::error::{Error, Result};
use crate::family::Config;

pub(super) struct CompressedTensors;

/// Formats and the number widths in them.
const FORMATS: &[(&str, &[u64])] = &[
    ("pack-quantized", &[4]),
    ("nvfp4-pack-quantized", &[4]),
    ("mxfp4-pack-quantized", &[4]),
    ("float-quantized", &[8]),
    ("naive-quantized", &[8]),
    ("dense", &[]),
];

const PACKINGS: &[Packing] = &[Packing { codes: "weight_packed", find }];

impl Method for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn read(&self, section: &Config<'_>) -> Result<Quantization> {
        let common = section.text("format");
        let mut quantization = Quantization { rounds: true, packings: PACKINGS, ..Quantization::default() };
        let groups = section
            .get("config_groups")
            .and_then(Value::as_object)
            .ok_or_else(|| section.missing("config_groups"))?;
        for (name, group) in groups {
            let format = group.get("format").and_then(Value::as_str).or(common).unwrap_or("(none)");
            let weights = group.get("weights").filter(|weights| !weights.is_null());
            let Some(weights) = weights else { continue };
            let bits = weights.get("num_bits").and_then(Value::as_u64).unwrap_or(0);
            let kind = weights.get("type").and_then(Value::as_str).unwrap_or("(none)");
            let known = match FORMATS.iter().find(|(known, _)| *known == format) {
                Some((_, widths)) => widths.contains(&bits),
                None => false,
            };
            // Eight bits in a format without packing may be integers too.
            if !known || (bits == 8 && kind != "float") {
                let formats: Vec<String> = FORMATS
                    .iter()
                    .flat_map(|(format, widths)| {
                        widths.iter().map(move |bits| format!("{format} of {bits} bits"))
                    })
                    .collect();
                return Err(Error::Unsupported {
                    what: format!(
                        "config.json: quantization_config.config_groups.{name}: format {format:?}, {bits} bits, type {kind:?}"
                    ),
                    hint: format!("this version reads {}, 8 bits as floats", formats.join(", ")),
                });
            }
            if weights.get("actorder").is_some_and(|order| !matches!(order, Value::Null | Value::Bool(false)))
                && weights.get("actorder").and_then(Value::as_str) != Some("static")
                && weights.get("actorder").and_then(Value::as_str) != Some("weight")
            {
                return Err(Error::Unsupported {
                    what: format!(
                        "config.json: quantization_config.config_groups.{name}.weights.actorder {}",
                        weights["actorder"]
                    ),
                    hint:
                        "its groups are not runs of a row; only null, \"static\" and \"weight\" are decoded"
                            .into(),
                });
            }
            if let Some(block) = weights.get("block_structure").filter(|block| !block.is_null()) {
                quantization.block = Some(block_size(section, "config_groups", block)?);
            }
        }
        Ok(quantization)
    }
}

/// Tells the packed formats apart by their scales.
fn find(module: &Module<'_>) -> Result<Found> {
    let (scale, shape) = module.expect("weight_scale")?;
    let groups = shape.get(1).copied().unwrap_or(1);
    let group_len = module.group_len("weight_scale", groups)?;
    let (codec, layout) = match scale {
        Dtype::F8_E4M3 => (
            codec::find("ct_nvfp4").filter(|codec| codec.group_len_elems() == group_len),
            "nvfp4-pack-quantized",
        ),
        Dtype::U8 | Dtype::F8_E8M0 => (
            codec::find("ct_mxfp4").filter(|codec| codec.group_len_elems() == group_len),
            "mxfp4-pack-quantized",
        ),
        _ => (int4(module, groups, group_len, scale), "pack-quantized"),
    };
    match (codec, layout::find(layout)) {
        (Some(codec), Some(layout)) => Ok((codec, layout)),
        _ => {
            let what = format!("{layout} with groups of {group_len} and {scale} scales");
            Err(module.unsupported(
                &what,
                "groups of 32, 64, 128 or a whole row, of 16 with FP8 scales, of 32 with U8 scales",
            ))
        }
    }
}

/// The codec of packed integers. One group in a row is one of the usual length only if the row is.
fn int4(module: &Module<'_>, groups: usize, group_len: usize, scale: Dtype) -> Option<&'static dyn Codec> {
    let symmetric = (module.tensor)("weight_zero_point").is_none();
    let (number, suffix) = match scale {
        Dtype::BF16 => (ChannelScale::Bf16, ""),
        Dtype::F16 => (ChannelScale::F16, "_f16"),
        Dtype::F32 => (ChannelScale::F32, "_f32"),
        _ => return None,
    };
    let kind = if symmetric { "ct_int4" } else { "ct_int4_asym" };
    let usual = codec::find(&format!("{kind}_g{group_len}{suffix}"));
    usual.or_else(|| (groups == 1).then(|| codec::int4_channel(group_len, symmetric, number)))
}
