//! GPTQ checkpoints, rounded to nearest: what GPTQModel, vLLM and transformers load as `gptq`.
//!
//! What they are to equal: GPTQModel's round-to-nearest on 16-bit weights, its packing, and zero points stored minus
//! one (`checkpoint_format` `gptq`). GPTQModel 7.7.0, `quantization/quantizer.py`, `nn_modules/qlinear`,
//! `quantization/config.py` for the keys of the configuration.
//!
//! A format is one row of [`FORMATS`].

use std::collections::BTreeMap;

use requant_formats::codec;
use serde_json::{Value, json};

use super::hf::{self, Modules, Packing, Row, Stored};
use super::{Blueprint, Choices, Format, Options, Sidecar, Target, checkpoint_of};
use crate::checkpoint::SourceTensor;
use crate::error::{Error, Result};
use crate::family::LayerRole;
use crate::opened::Opened;

/// GPTQ.
pub(super) struct GptqTarget;

/// What a type is.
#[derive(Debug, Clone, Copy)]
struct Kind {
    group_len: usize,
    symmetric: bool,
}

const fn row(name: &'static str, about: &'static str, group_len: usize, symmetric: bool) -> Row<Kind> {
    Row::new(name, about, Kind { group_len, symmetric })
}

/// Every format; without `-sym` or `-asym` it is symmetric, as GPTQModel's default is. Bits per weight count
/// scale and zero point.
const FORMATS: &[Row<Kind>] = &[
    row("gptq-4bit-128g", "GPTQ, 4-bit integers, groups of 128: 4.16 bits per weight", 128, true),
    row("gptq-4bit-64g", "GPTQ, 4-bit integers, groups of 64: 4.31 bits per weight", 64, true),
    row("gptq-4bit-32g", "GPTQ, 4-bit integers, groups of 32: 4.63 bits per weight", 32, true),
    row("gptq-4bit-128g-sym", "the same as gptq-4bit-128g", 128, true),
    row("gptq-4bit-64g-sym", "the same as gptq-4bit-64g", 64, true),
    row("gptq-4bit-32g-sym", "the same as gptq-4bit-32g", 32, true),
    row(
        "gptq-4bit-128g-asym",
        "GPTQ, 4-bit integers with free zero points, groups of 128 (not for vLLM)",
        128,
        false,
    ),
    row(
        "gptq-4bit-64g-asym",
        "GPTQ, 4-bit integers with free zero points, groups of 64 (not for vLLM)",
        64,
        false,
    ),
    row(
        "gptq-4bit-32g-asym",
        "GPTQ, 4-bit integers with free zero points, groups of 32 (not for vLLM)",
        32,
        false,
    ),
];

/// The `format` column of [`FORMATS`].
const NAMES: [Format; FORMATS.len()] = hf::formats(FORMATS);

/// Whose rules free zero points follow, as the configuration's list of quantizers has it. GPTQModel reads zero points
/// other than the middle only where this list names itself, 0.9.0 or later: before, a zero point of 0 was
/// stored wrongly (`models/loader.py`, `is_quantized_by_gptaq`).
const ASYMMETRIC_RULES: &str = "gptqmodel:7.7.0";

/// What every format begins with; the rest is the name of its type.
const PREFIX: &str = "gptq-";

impl Target for GptqTarget {
    fn family(&self) -> &'static str {
        "GPTQ"
    }

    fn is_packing(&self) -> bool {
        true
    }

    fn types(&self) -> Vec<&'static str> {
        FORMATS.iter().filter_map(|row| row.format.name.strip_prefix(PREFIX)).collect()
    }

    fn formats(&self) -> &'static [Format] {
        &NAMES
    }

    fn usual(&self) -> &'static [&'static str] {
        &["gptq-4bit-128g", "gptq-4bit-64g", "gptq-4bit-32g"]
    }

    fn bits_per_weight(&self, format: &Format) -> f64 {
        let row = FORMATS.iter().find(|row| row.format == *format);
        row.map_or(4.0, |row| 4.0 + 20.0 / row.kind.group_len as f64)
    }

    fn readers(&self, format: &Format) -> &'static [&'static str] {
        let is_symmetric = |row: &Row<Kind>| row.format == *format && row.kind.symmetric;
        if FORMATS.iter().any(is_symmetric) { &["vLLM", "GPTQModel"] } else { &["GPTQModel"] }
    }

    fn blueprint(&self, format: &Format, source: &Opened, options: &Options) -> Result<Blueprint> {
        let source = checkpoint_of(source, format)?;
        let default = format.name.strip_prefix(PREFIX).unwrap_or(format.name);
        hf::blueprint(source, &Gptq, default, &options.rules)
    }

    fn choices(
        &self,
        format: &Format,
        source: &Opened,
        _: &Options,
        blueprint: &Blueprint,
    ) -> Result<Vec<Choices>> {
        let source = checkpoint_of(source, format)?;
        let default = format.name.strip_prefix(PREFIX).unwrap_or(format.name);
        hf::alternatives(source, &Gptq, default, blueprint)
    }
}

/// What a type is.
fn kind(type_name: &str) -> Result<Kind> {
    hf::kind_of(FORMATS, PREFIX, type_name)
}

/// How GPTQ checkpoints are put together.
struct Gptq;

impl Packing for Gptq {
    fn target(&self) -> &'static dyn Target {
        &GptqTarget
    }

    fn with_groups(&self, name: &str, group_len: usize) -> String {
        let (bits, rest) = name.split_once('-').unwrap_or((name, ""));
        // A group length in the name gives way to the one asked for.
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == 'g').trim_start_matches('-');
        if rest.is_empty() { format!("{bits}-{group_len}g") } else { format!("{bits}-{group_len}g-{rest}") }
    }

    /// Other group lengths: bits and symmetry hold for the file.
    fn alternatives(&self, default: &str, _: LayerRole) -> Vec<&'static str> {
        let Ok(own) = kind(default) else { return Vec::new() };
        let rows = FORMATS.iter().filter(|row| row.kind.symmetric == own.symmetric);
        // A type with two names counts once.
        let by_length: BTreeMap<usize, &str> = rows
            .rev()
            .filter_map(|row| Some((row.kind.group_len, row.format.name.strip_prefix(PREFIX)?)))
            .collect();
        by_length.into_values().collect()
    }

    fn stored(&self, type_name: &'static str, tensor: &SourceTensor) -> Result<Option<Stored>> {
        let Kind { group_len, symmetric } = kind(type_name)?;
        let family = if symmetric { "gptq_int4" } else { "gptq_int4_asym" };
        let codec = codec::find(&format!("{family}_g{group_len}"));
        hf::encoded_if_it_fits(tensor, codec, "gptq", hf::rounding_of(tensor))
    }

    fn quantization_config(&self, default: &'static str, modules: &Modules) -> Result<Value> {
        let mut dynamic = hf::left_out(modules);
        dynamic.extend(hf::overridden(modules, default, |type_name| {
            let row = kind(type_name)?;
            Ok::<_, Error>(json!({"bits": 4, "group_size": row.group_len, "sym": row.symmetric}))
        })?);
        let row = kind(default)?;
        let mut quantizer = vec![concat!("requant:", env!("CARGO_PKG_VERSION"))];
        if !row.symmetric {
            quantizer.push(ASYMMETRIC_RULES);
        }
        Ok(json!({
            "bits": 4,
            "group_size": row.group_len,
            "sym": row.symmetric,
            "desc_act": false,
            "lm_head": false,
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            "meta": {"quantizer": quantizer},
            "dynamic": dynamic
        }))
    }

    fn sidecars(&self, quantization_config: &Value) -> Vec<Sidecar> {
        vec![Sidecar { name: "quantize_config.json".into(), bytes: hf::json_file(quantization_config) }]
    }
}
