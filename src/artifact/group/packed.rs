//! Matrices of compressed-tensors, GPTQ and AWQ: what their parts say about the whole.
//!
//! Names of types are those of the codecs that would write them.

use std::collections::HashMap;

use requant_formats::Dtype;
use requant_formats::container::safetensors::TensorEntry;
use serde_json::Value;

use super::TensorSummary;

/// Tensors beside the codes, by the name of the codes.
const PARTS: &[(&str, &[&str])] = &[
    (
        "weight_packed",
        &["weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale", "weight_g_idx"],
    ),
    ("qweight", &["qzeros", "scales", "g_idx"]),
];

/// For the codes of a packed matrix its summary, for its other tensors `None`, by position in `stored`.
pub(super) fn find(
    stored: &[(String, TensorEntry)],
    names: &HashMap<&str, usize>,
    config: Option<&Value>,
) -> HashMap<usize, Option<TensorSummary>> {
    let mut found = HashMap::new();
    for (id, (file, codes)) in stored.iter().enumerate() {
        for (mark, parts) in PARTS {
            let Some(stem) = codes.name.strip_suffix(mark).and_then(|stem| stem.strip_suffix('.')) else {
                continue;
            };
            let part = |suffix: &str| names.get(format!("{stem}.{suffix}").as_str()).copied();
            let members: Vec<usize> = parts.iter().filter_map(|suffix| part(suffix)).collect();
            let entry = |suffix: &str| part(suffix).map(|id| &stored[id].1);
            let described = match *mark {
                "weight_packed" => compressed(codes, &entry, has_channels(config)),
                _ => columns(codes, &entry, config),
            };
            let Some((type_name, shape)) = described else { continue };
            let bytes = members.iter().map(|&id| stored[id].1.len_bytes()).sum::<u64>() + codes.len_bytes();
            found.insert(
                id,
                Some(TensorSummary {
                    name: stem.to_owned(),
                    type_name,
                    shape: shape.map(|extent| extent as u64).to_vec(),
                    bytes,
                    file: file.clone(),
                    is_weight: true,
                }),
            );
            found.extend(members.into_iter().map(|id| (id, None)));
        }
    }
    found
}

type Described = Option<(String, [usize; 2])>;

/// compressed-tensors: rows are rows; the scales tell the formats apart.
/// `has_channels`: a row that is one group is no group of a fixed length.
fn compressed<'a>(
    codes: &TensorEntry,
    part: &dyn Fn(&str) -> Option<&'a TensorEntry>,
    has_channels: bool,
) -> Described {
    let &[rows, words] = codes.shape.as_slice() else { return None };
    let cols = if codes.dtype == Dtype::U8 { 2 * words } else { 8 * words };
    let scale = part("weight_scale")?;
    let groups = scale.shape.get(1).copied().unwrap_or(1).max(1);
    let kind = match (scale.dtype, part("weight_zero_point")) {
        (Dtype::F8_E4M3, _) => "ct_nvfp4",
        (Dtype::U8 | Dtype::F8_E8M0, _) => "ct_mxfp4",
        (_, None) => "ct_int4",
        (_, Some(_)) => "ct_int4_asym",
    };
    let suffix = match scale.dtype {
        Dtype::F16 => "_f16",
        Dtype::F32 => "_f32",
        _ => "",
    };
    if kind.ends_with("fp4") {
        return Some((kind.to_owned(), [rows, cols]));
    }
    let group =
        if groups == 1 && has_channels { format!("channel_{cols}") } else { format!("g{}", cols / groups) };
    Some((format!("{kind}_{group}{suffix}"), [rows, cols]))
}

/// Whether some modules of compressed-tensors have one group per row.
fn has_channels(config: Option<&Value>) -> bool {
    let groups = config.and_then(|config| config.pointer("/quantization_config/config_groups"));
    groups.and_then(Value::as_object).is_some_and(|groups| {
        groups
            .values()
            .any(|group| group.pointer("/weights/strategy").and_then(Value::as_str) == Some("channel"))
    })
}

/// GPTQ and AWQ: columns of the weight are rows of the codes.
fn columns<'a>(
    codes: &TensorEntry,
    part: &dyn Fn(&str) -> Option<&'a TensorEntry>,
    config: Option<&Value>,
) -> Described {
    let section = config?.get("quantization_config")?;
    let bits = section.get("bits").and_then(Value::as_u64).filter(|bits| (1..=8).contains(bits))? as usize;
    let &[first, second] = codes.shape.as_slice() else { return None };
    let groups = part("scales")?.shape.first().copied().filter(|&groups| groups > 0)?;
    let (kind, rows, cols) = match section.get("quant_method").and_then(Value::as_str) {
        Some("awq") => ("awq", second * 32 / bits, first),
        _ => ("gptq", second, first * 32 / bits),
    };
    let asymmetric = kind == "gptq" && section.get("sym").and_then(Value::as_bool) == Some(false);
    let kind = if asymmetric { format!("gptq_int{bits}_asym") } else { format!("{kind}_int{bits}") };
    Some((format!("{kind}_g{}", cols / groups), [rows, cols]))
}
