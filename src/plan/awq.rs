//! AWQ checkpoints, rounded to nearest (no activation-aware scaling): what vLLM and transformers load as `awq`.
//!
//! What they are to equal: AutoAWQ's `pseudo_quantize_tensor` on F16 weights and the packing of its
//! `WQLinear_GEMM`. AutoAWQ 0.2.9, `awq/quantize/quantizer.py`, `awq/modules/linear/gemm.py`,
//! `awq/models/_config.py` for the keys of the configuration.
//!
//! A format is one row of [`FORMATS`].

use requant_formats::codec;
use serde_json::{Value, json};

use super::hf::{self, Modules, Packing, Stored};
use super::{Blueprint, Format, Options, Rounding, Target};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};

/// What the family is called.
const FAMILY: &str = "AWQ";

/// AWQ.
pub(super) struct AwqTarget;

/// One `--to` format.
struct AwqFormat {
    format: Format,
    group_len: usize,
}

const fn row(name: &'static str, about: &'static str, group_len: usize) -> AwqFormat {
    AwqFormat { format: Format { name, about }, group_len }
}

/// Every format. Bits per weight count scale and zero point.
const FORMATS: &[AwqFormat] = &[
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
const NAMES: [Format; FORMATS.len()] = {
    let mut names = [FORMATS[0].format; FORMATS.len()];
    let mut at = 0;
    while at < FORMATS.len() {
        names[at] = FORMATS[at].format;
        at += 1;
    }
    names
};

impl Target for AwqTarget {
    fn family(&self) -> &'static str {
        FAMILY
    }

    fn types(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn formats(&self) -> &'static [Format] {
        &NAMES
    }

    fn blueprint(&self, format: &Format, source: &Checkpoint, options: &Options) -> Result<Blueprint> {
        match FORMATS.iter().find(|row| row.format == *format) {
            Some(row) => hf::blueprint(source, row, FAMILY, &options.rules),
            None => Err(Error::Unsupported { what: format.name.into(), hint: "not an AWQ format".into() }),
        }
    }
}

impl Packing for AwqFormat {
    fn scheme(&self, tensor: &SourceTensor) -> Result<Option<Stored>> {
        let codec = codec::find(&format!("awq_int4_g{}", self.group_len));
        // AutoAWQ loads a 16-bit copy as F16.
        let rounding = match hf::rounding_of(tensor) {
            Rounding::Bf16 => Rounding::Bf16ThenF16,
            other => other,
        };
        hf::encoded_if_it_fits(tensor, codec, "awq", rounding)
    }

    fn quantization_config(&self, modules: &Modules) -> Value {
        json!({
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_len,
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": modules.kept_substrings()
        })
    }
}
