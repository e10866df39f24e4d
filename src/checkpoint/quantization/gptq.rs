//! `gptq`: 4-bit integers packed along columns, zero points stored minus one.
//!
//! Source: GPTQModel 7.7.0, `nn_modules/qlinear`, `quantization/config.py`.

use requant_formats::codec;
use requant_formats::layout;

use super::{Found, Method, Module, Packing, Quantization};
use crate::error::{Error, Result};
use crate::family::Config;

pub(super) struct Gptq;

const PACKINGS: &[Packing] = &[Packing { codes: "qweight", find }];

impl Method for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn read(&self, section: &Config<'_>) -> Result<Quantization> {
        let refuse = |key: &str, found: String, hint: &str| Error::Unsupported {
            what: format!("config.json: quantization_config.{key} {found}"),
            hint: hint.into(),
        };
        match section.count_or("bits", 4)? {
            4 => {}
            bits => return Err(refuse("bits", bits.to_string(), "this version reads GPTQ of 4 bits")),
        }
        if section.flag_or("desc_act", false)? {
            return Err(refuse(
                "desc_act",
                "true".into(),
                "groups in the order of activations are not decoded; ask for a checkpoint without act-order",
            ));
        }
        match section.text("checkpoint_format").or(section.text("format")) {
            None | Some("gptq") => Ok(Quantization { packings: PACKINGS, ..Quantization::default() }),
            Some(other) => {
                Err(refuse("checkpoint_format", format!("{other:?}"), "this version reads \"gptq\""))
            }
        }
    }
}

fn find(module: &Module<'_>) -> Result<Found> {
    let (_, shape) = module.expect("scales")?;
    let group_len = module.group_len("scales", shape.first().copied().unwrap_or(0))?;
    match (codec::find(&format!("gptq_int4_g{group_len}")), layout::find("gptq")) {
        (Some(codec), Some(layout)) => Ok((codec, layout)),
        _ => Err(module.unsupported(&format!("GPTQ in groups of {group_len}"), "groups of 32, 64, 128")),
    }
}
