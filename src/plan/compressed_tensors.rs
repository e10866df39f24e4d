//! Checkpoints in the formats of the compressed-tensors package, as vLLM, SGLang and transformers load them.
//!
//! What they are to equal: the package's min-max scales, rounding and packing (compressed-tensors 0.20.0,
//! `quantization/utils/helpers.py`, `compressors/`), on weights rounded to BF16, which is what a
//! checkpoint dequantized for it holds (F16 ones stay F16). `quantization_config` is what its `ModelCompressor` writes.
//!
//! A format is one row of [`FORMATS`].

use requant_formats::Dtype;
use requant_formats::codec::{self, ChannelScale};
use serde_json::{Value, json};

use super::hf::{self, Modules, Packing, Stored};
use super::{Blueprint, Format, Options, Target};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};

/// What the family is called.
const FAMILY: &str = "compressed-tensors";

/// compressed-tensors.
pub(super) struct CompressedTensorsTarget;

/// Version of the package that the configuration is written after.
const PACKAGE_VERSION: &str = "0.20.0";

/// What a format writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `pack-quantized`: 4-bit integers in groups of this length (0: one per row), with zero points or not.
    Int4 { group_len: usize, symmetric: bool },
    /// `nvfp4-pack-quantized`: FP4 with FP8 scales and a factor per tensor.
    Nvfp4,
    /// `mxfp4-pack-quantized`: FP4 with powers of two.
    Mxfp4,
    /// The source's FP8 numbers and block scales.
    Fp8Block,
}

const fn int4(name: &'static str, about: &'static str, group_len: usize, symmetric: bool) -> (Format, Kind) {
    (Format { name, about }, Kind::Int4 { group_len, symmetric })
}

/// Every format. Bits per weight count a 16-bit scale per group, and 4 bits of zero point.
const FORMATS: &[(Format, Kind)] = &[
    int4(
        "compressed-tensors-w4a16",
        "compressed-tensors, 4-bit integers, groups of 128: 4.13 bits per weight",
        128,
        true,
    ),
    int4(
        "compressed-tensors-w4a16-g64",
        "compressed-tensors, 4-bit integers, groups of 64: 4.25 bits per weight",
        64,
        true,
    ),
    int4(
        "compressed-tensors-w4a16-g32",
        "compressed-tensors, 4-bit integers, groups of 32: 4.5 bits per weight",
        32,
        true,
    ),
    int4(
        "compressed-tensors-w4a16-channel",
        "compressed-tensors, 4-bit integers, one group per row: 4 bits per weight",
        0,
        true,
    ),
    int4(
        "compressed-tensors-w4a16-asym",
        "compressed-tensors, 4-bit integers with zero points, groups of 128: 4.16 bits per weight",
        128,
        false,
    ),
    int4(
        "compressed-tensors-w4a16-asym-g64",
        "compressed-tensors, 4-bit integers with zero points, groups of 64: 4.31 bits per weight",
        64,
        false,
    ),
    int4(
        "compressed-tensors-w4a16-asym-g32",
        "compressed-tensors, 4-bit integers with zero points, groups of 32: 4.63 bits per weight",
        32,
        false,
    ),
    int4(
        "compressed-tensors-w4a16-asym-channel",
        "compressed-tensors, 4-bit integers with zero points, one group per row: 4 bits per weight",
        0,
        false,
    ),
    (
        Format {
            name: "compressed-tensors-nvfp4",
            about: "compressed-tensors, FP4 with an FP8 scale per 16: 4.5 bits per weight",
        },
        Kind::Nvfp4,
    ),
    (
        Format {
            name: "compressed-tensors-mxfp4",
            about: "compressed-tensors, FP4 with a power of two per 32: 4.25 bits per weight",
        },
        Kind::Mxfp4,
    ),
    (
        Format {
            name: "compressed-tensors-fp8-block",
            about: "compressed-tensors, the source's own FP8 blocks: 8 bits per weight",
        },
        Kind::Fp8Block,
    ),
];

/// The first column of [`FORMATS`].
const NAMES: [Format; FORMATS.len()] = {
    let mut names = [FORMATS[0].0; FORMATS.len()];
    let mut at = 0;
    while at < FORMATS.len() {
        names[at] = FORMATS[at].0;
        at += 1;
    }
    names
};

impl Target for CompressedTensorsTarget {
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
        let Some((_, kind)) = FORMATS.iter().find(|(known, _)| known == format) else {
            return Err(Error::Unsupported { what: format.name.into(), hint: "see --help".into() });
        };
        match kind {
            Kind::Fp8Block => hf::blueprint(source, &Fp8Block::of(source)?, FAMILY, &options.rules),
            kind => hf::blueprint(source, &Packed(*kind), FAMILY, &options.rules),
        }
    }
}

/// A format of 4-bit codes.
struct Packed(Kind);

impl Packing for Packed {
    fn scheme(&self, tensor: &SourceTensor) -> Result<Option<Stored>> {
        let cols = tensor.matrix().1;
        // Scales have the weights' number format.
        let (number, suffix) = match tensor.dtype {
            Dtype::F16 => (ChannelScale::F16, "_f16"),
            _ => (ChannelScale::Bf16, ""),
        };
        let (codec, layout) = match self.0 {
            Kind::Int4 { group_len: 0, symmetric } => {
                (Some(codec::int4_channel(cols, symmetric, number)), "pack-quantized")
            }
            Kind::Int4 { group_len, symmetric } => {
                let kind = if symmetric { "ct_int4" } else { "ct_int4_asym" };
                (codec::find(&format!("{kind}_g{group_len}{suffix}")), "pack-quantized")
            }
            Kind::Nvfp4 => (codec::find("ct_nvfp4_g16"), "nvfp4-pack-quantized"),
            Kind::Mxfp4 | Kind::Fp8Block => (codec::find("ct_mxfp4_g32"), "mxfp4-pack-quantized"),
        };
        hf::encoded_if_it_fits(tensor, codec, layout, hf::rounding_of(tensor))
    }

    fn quantization_config(&self, modules: &Modules) -> Value {
        let float = |group_len: usize, strategy: &str, scale_dtype: &str| {
            json!({
                "num_bits": 4, "type": "float", "symmetric": true, "group_size": group_len,
                "strategy": strategy, "dynamic": false, "scale_dtype": scale_dtype
            })
        };
        let (format, weights) = match self.0 {
            Kind::Int4 { group_len, symmetric } => {
                let (group_size, strategy) = match group_len {
                    0 => (Value::Null, "channel"),
                    len => (len.into(), "group"),
                };
                let weights = json!({
                    "num_bits": 4, "type": "int", "symmetric": symmetric, "group_size": group_size,
                    "strategy": strategy, "dynamic": false
                });
                ("pack-quantized", weights)
            }
            Kind::Nvfp4 => ("nvfp4-pack-quantized", float(16, "tensor_group", "torch.float8_e4m3fn")),
            Kind::Mxfp4 | Kind::Fp8Block => ("mxfp4-pack-quantized", float(32, "group", "torch.uint8")),
        };
        config(format, weights, Value::Null, modules)
    }
}

/// `float-quantized` with the block scales of the source.
struct Fp8Block {
    block: [usize; 2],
}

impl Fp8Block {
    fn of(source: &Checkpoint) -> Result<Self> {
        match source.tensors().iter().find_map(SourceTensor::scale) {
            Some(scale) => Ok(Self { block: [scale.block_rows, scale.block_cols] }),
            None => Err(Error::Unsupported {
                what: format!("compressed-tensors-fp8-block of {}", source.source().location()),
                hint:
                    "it carries FP8 blocks over, and this checkpoint has none; choose a format that quantizes"
                        .into(),
            }),
        }
    }
}

impl Packing for Fp8Block {
    fn scheme(&self, tensor: &SourceTensor) -> Result<Option<Stored>> {
        match tensor.dtype {
            Dtype::F8_E4M3 => Ok(Some(Stored::Carried { scale_suffix: "weight_scale" })),
            Dtype::F8_E5M2 => Err(Error::Unsupported {
                what: format!(
                    "tensor {}: dtype {} in compressed-tensors-fp8-block",
                    tensor.name, tensor.dtype
                ),
                hint: "the format means F8_E4M3".into(),
            }),
            _ => Ok(None),
        }
    }

    fn takes_prediction_layers(&self) -> bool {
        true
    }

    fn quantization_config(&self, modules: &Modules) -> Value {
        let weights = json!({
            "num_bits": 8, "type": "float", "symmetric": true, "group_size": null, "strategy": "block",
            "block_structure": self.block, "dynamic": false
        });
        let activations = json!({
            "num_bits": 8, "type": "float", "symmetric": true, "group_size": self.block[1],
            "strategy": "group", "dynamic": true
        });
        config("float-quantized", weights, activations, modules)
    }
}

/// `quantization_config`, with one group for all linear layers that are not ignored.
fn config(format: &str, weights: Value, activations: Value, modules: &Modules) -> Value {
    let ignore = modules.kept_patterns().into_iter().map(|pattern| {
        // A name without anything special in it is matched as it is.
        if pattern.contains('\\') { format!("re:{pattern}$") } else { pattern }
    });
    json!({
        "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": weights, "input_activations": activations,
            "output_activations": null, "format": format
        }},
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": null,
        "format": format,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "ignore": ignore.collect::<Vec<_>>(),
        "sparsity_config": {},
        "transform_config": {},
        "version": PACKAGE_VERSION
    })
}
