//! AWQ checkpoints, rounded to nearest (no activation-aware scaling): what vLLM and transformers load as `awq`.
//!
//! What they are to equal: AutoAWQ's `pseudo_quantize_tensor` on F16 weights and the packing of its
//! `WQLinear_GEMM`. AutoAWQ 0.2.9, `awq/quantize/quantizer.py`, `awq/modules/linear/gemm.py`,
//! `awq/models/_config.py` for the keys of the configuration.
//!
//! A format is one row of [`FORMATS`].

use requant_formats::codec;
use serde_json::{Value, json};

use super::hf::{self, Modules, Packing, Row, Stored};
use super::{Blueprint, Format, Options, Rounding, Target, checkpoint_of};
use crate::checkpoint::SourceTensor;
use crate::error::{Error, Result};
use crate::opened::Opened;

/// AWQ.
pub(super) struct AwqTarget;

/// A format, and the weights in a group of its type.
const fn row(name: &'static str, about: &'static str, group_len: usize) -> Row<usize> {
    Row::new(name, about, group_len)
}

/// Every format. Bits per weight count scale and zero point.
const FORMATS: &[Row<usize>] = &[
    row(
        "awq-4bit-128g",
        "AWQ (gemm), 4-bit integers with zero points, groups of 128: 4.16 bits per weight",
        128,
    ),
    row(
        "awq-4bit-64g",
        "AWQ (gemm), 4-bit integers with zero points, groups of 64: 4.31 bits per weight",
        64,
    ),
    row(
        "awq-4bit-32g",
        "AWQ (gemm), 4-bit integers with zero points, groups of 32: 4.63 bits per weight",
        32,
    ),
];

/// The `format` column of [`FORMATS`].
const NAMES: [Format; FORMATS.len()] = hf::formats(FORMATS);

/// What every format begins with; the rest is the name of its type.
const PREFIX: &str = "awq-";

impl Target for AwqTarget {
    fn family(&self) -> &'static str {
        "AWQ"
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
        &["awq-4bit-128g", "awq-4bit-64g", "awq-4bit-32g"]
    }

    fn bits_per_weight(&self, format: &Format) -> f64 {
        let row = FORMATS.iter().find(|row| row.format == *format);
        row.map_or(4.0, |row| 4.0 + 20.0 / row.kind as f64)
    }

    fn readers(&self, _: &Format) -> &'static [&'static str] {
        &["vLLM", "AutoAWQ", "GPTQModel"]
    }

    fn blueprint(&self, format: &Format, source: &Opened, options: &Options) -> Result<Blueprint> {
        let source = checkpoint_of(source, format)?;
        let default = format.name.strip_prefix(PREFIX).unwrap_or(format.name);
        hf::blueprint(source, &Awq, default, &options.rules)
    }
}

/// Weights in a group of a type.
fn group_len(type_name: &str) -> Result<usize> {
    hf::kind_of(FORMATS, PREFIX, type_name)
}

/// How AWQ checkpoints are put together.
struct Awq;

impl Packing for Awq {
    fn target(&self) -> &'static dyn Target {
        &AwqTarget
    }

    fn with_groups(&self, name: &str, group_len: usize) -> String {
        let bits = name.split_once('-').map_or(name, |(bits, _)| bits);
        format!("{bits}-{group_len}g")
    }

    fn stored(&self, type_name: &'static str, tensor: &SourceTensor) -> Result<Option<Stored>> {
        let codec = codec::find(&format!("awq_int4_g{}", group_len(type_name)?));
        // AutoAWQ loads a 16-bit copy as F16.
        let rounding = match hf::rounding_of(tensor) {
            Rounding::Bf16 => Rounding::Bf16ThenF16,
            other => other,
        };
        hf::encoded_if_it_fits(tensor, codec, "awq", rounding)
    }

    fn quantization_config(&self, default: &'static str, modules: &Modules) -> Result<Value> {
        if let Some((other, _)) = modules.types(default).into_iter().find(|(name, _)| *name != default) {
            return Err(Error::Request(format!(
                "a rule gives {other}, but all modules of an AWQ checkpoint have one group length, here that of \
                 {default}; rules can only leave modules out"
            )));
        }
        Ok(json!({
            "quant_method": "awq",
            "bits": 4,
            "group_size": group_len(default)?,
            "zero_point": true,
            "version": "gemm",
            // AutoAWQ and vLLM read the first of these, GPTQModel only the second.
            "modules_to_not_convert": modules.with_fused_experts().kept_substrings(),
            "dynamic": hf::left_out(modules)
        }))
    }
}
