//! `awq`: 4-bit integers with zero points, eight columns to a word in the order 0 2 4 6 1 3 5 7.
//!
//! Source: AutoAWQ 0.2.9, `awq/modules/linear/gemm.py`, `awq/utils/packing_utils.py`.

use requant_formats::codec;
use requant_formats::layout;

use super::{Found, Method, Module, Packing, Quantization};
use crate::error::{Error, Result};
use crate::family::Config;

pub(super) struct Awq;

const PACKINGS: &[Packing] = &[Packing { codes: "qweight", find }];

impl Method for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn read(&self, section: &Config<'_>) -> Result<Quantization> {
        let bits = section.count_or("bits", section.count_or("w_bit", 4)?)?;
        let version = section.text("version").unwrap_or("gemm");
        if bits != 4 || !version.eq_ignore_ascii_case("gemm") {
            return Err(Error::Unsupported {
                what: format!("config.json: quantization_config: AWQ of {bits} bits, version {version:?}"),
                hint: "this version reads 4 bits in version \"gemm\"".into(),
            });
        }
        Ok(Quantization { packings: PACKINGS, ..Quantization::default() })
    }
}

fn find(module: &Module<'_>) -> Result<Found> {
    let (_, shape) = module.expect("scales")?;
    let group_len = module.group_len("scales", shape.first().copied().unwrap_or(0))?;
    match (codec::find(&format!("awq_int4_g{group_len}")), layout::find("awq")) {
        (Some(codec), Some(layout)) => Ok((codec, layout)),
        _ => Err(module.unsupported(&format!("AWQ in groups of {group_len}"), "groups of 32, 64, 128")),
    }
}
