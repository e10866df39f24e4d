//! `mxfp4`: experts in 4-bit floats under powers of two, stacked as openai/gpt-oss-20b has them.
//!
//! The section says nothing but what is not quantized, which the tensors show. Source: transformers `utils/quantization_config.py`
//! (`Mxfp4Config`), `integrations/mxfp4.py`.

use requant_formats::codec;

use super::{Found, Method, Module, Packing, Quantization};
use crate::checkpoint::stacks::{BLOCKS, BLOCKS_IN_TURNS, CODES};
use crate::error::Result;
use crate::family::Config;

pub(super) struct Mxfp4;

const PACKINGS: &[Packing] = &[
    Packing { codes: CODES[0], find: |module| found(module, false) },
    Packing { codes: CODES[1], find: |module| found(module, true) },
];

impl Method for Mxfp4 {
    fn name(&self) -> &'static str {
        "mxfp4"
    }

    fn read(&self, _: &Config<'_>) -> Result<Quantization> {
        Ok(Quantization { packings: PACKINGS, ..Quantization::default() })
    }
}

fn found(module: &Module<'_>, in_turns: bool) -> Result<Found> {
    let codec = codec::find("ct_mxfp4").filter(|codec| module.cols.is_multiple_of(codec.group_len_elems()));
    let layout = if in_turns { BLOCKS_IN_TURNS } else { BLOCKS };
    match codec {
        Some(codec) => Ok((codec, layout)),
        None => Err(module.unsupported(&format!("rows of {}", module.cols), "rows of whole groups of 32")),
    }
}
