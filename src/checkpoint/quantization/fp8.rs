//! `fp8`: FP8 numbers with a scale per block, per row or per tensor.
//!
//! DeepSeek's checkpoints have `weight_block_size` and `weight_scale_inv`; others have one `weight_scale` per
//! tensor. Source: DeepSeek-V3's `inference/fp8_cast_bf16.py`; transformers `quantizer_finegrained_fp8.py`; vLLM
//! `quantization/fp8.py`.

use serde_json::Value;

use super::{Method, Quantization};
use crate::error::Result;
use crate::family::Config;

pub(super) struct Fp8;

impl Method for Fp8 {
    fn name(&self) -> &'static str {
        "fp8"
    }

    fn read(&self, section: &Config<'_>) -> Result<Quantization> {
        let scales_are_e8m0 = match section.text("scale_fmt") {
            None | Some("float" | "fp32" | "float32") => false,
            Some("ue8m0") => true,
            Some(other) => return Err(section.invalid("scale_fmt", &format!("{other:?}"), "\"ue8m0\"")),
        };
        let block =
            section.get("weight_block_size").map(|block| block_size(section, "weight_block_size", block));
        Ok(Quantization { block: block.transpose()?, scales_are_e8m0, ..Quantization::default() })
    }
}

/// `[rows, cols]` under `key`.
pub(super) fn block_size(section: &Config<'_>, key: &str, block: &Value) -> Result<[usize; 2]> {
    let sizes: Option<Vec<u64>> =
        block.as_array().map(|list| list.iter().filter_map(Value::as_u64).collect());
    match sizes.as_deref() {
        Some(&[rows @ 1..=65536, cols @ 1..=65536]) => Ok([rows as usize, cols as usize]),
        _ => Err(section.invalid(key, &block.to_string(), "[rows, cols], both 1 to 65536")),
    }
}
