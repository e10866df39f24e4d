//! How a checkpoint is quantized: `quantization_config` of config.json.

use serde_json::Value;

use crate::arch::Config;
use crate::error::{Error, Result};

/// How a scale is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// A float of the scale tensor's own dtype (F32, BF16 or F16).
    Float,
    /// A power of two, one exponent byte each: `2^(byte - 127)`.
    E8m0,
}

/// The scale of an FP8 weight: one number per block of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScale {
    /// Position of the scale tensor in the catalogue.
    pub tensor: usize,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
    /// How the numbers are stored.
    pub format: ScaleFormat,
}

/// What `quantization_config` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fp8Blocks {
    pub(super) block_rows: usize,
    pub(super) block_cols: usize,
    /// `scale_fmt` is `ue8m0`: one-byte scales are exponents.
    pub(super) scales_are_e8m0: bool,
}

/// Reads `quantization_config`; `None` when the checkpoint is not quantized.
///
/// # Errors
/// For a method or a block shape this version does not decode.
pub(super) fn parse(config: &Value) -> Result<Option<Fp8Blocks>> {
    let Some(section) = Config::new(config).section("quantization_config") else { return Ok(None) };
    let method = section.text("quant_method").unwrap_or("(none)");
    if method != "fp8" {
        return Err(Error::Unsupported {
            what: format!("config.json: quantization_config.quant_method {method:?}"),
            hint: "sources may be \"fp8\" with 2-D weight blocks, or unquantized BF16, F16, F32".into(),
        });
    }
    let scales_are_e8m0 = match section.text("scale_fmt") {
        None | Some("float" | "fp32" | "float32") => false,
        Some("ue8m0") => true,
        Some(other) => return Err(section.invalid("scale_fmt", &format!("{other:?}"), "\"ue8m0\"")),
    };
    let Some(block) = section.get("weight_block_size") else {
        return Err(section.missing("weight_block_size"));
    };
    let sizes: Option<Vec<u64>> =
        block.as_array().map(|list| list.iter().filter_map(Value::as_u64).collect());
    match sizes.as_deref() {
        Some(&[rows @ 1..=65536, cols @ 1..=65536]) => {
            Ok(Some(Fp8Blocks { block_rows: rows as usize, block_cols: cols as usize, scales_are_e8m0 }))
        }
        _ => Err(section.invalid("weight_block_size", &block.to_string(), "[rows, cols], both 1 to 65536")),
    }
}
