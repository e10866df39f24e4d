//! Checkpoints in the formats of the compressed-tensors package, as vLLM, SGLang and transformers load them.
//!
//! What they are to equal: the package's min-max scales, rounding and packing (compressed-tensors 0.20.0,
//! `quantization/utils/helpers.py`, `compressors/`), on weights rounded to BF16, which is what a
//! checkpoint dequantized for it holds (F16 ones stay F16). `quantization_config` is what its `ModelCompressor` writes.
//!
//! A format is one row of [`FORMATS`].

use std::collections::BTreeSet;

use requant_formats::Dtype;
use requant_formats::codec::{self, ChannelScale};
use serde_json::{Map, Value, json};

use super::hf::{self, Modules, Packing, Row, Stored};
use super::{Blueprint, Choices, Format, Options, Rounding, Target, checkpoint_of};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};
use crate::family::LayerRole;
use crate::opened::Opened;

/// compressed-tensors.
pub(super) struct CompressedTensorsTarget;

/// Version of the package that the configuration is written after.
const PACKAGE_VERSION: &str = "0.20.0";

/// What a type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `pack-quantized`: 4-bit integers in groups of this length (0: one per row), with zero points or not.
    Int4 { group_len: usize, symmetric: bool },
    /// `nvfp4-pack-quantized`: FP4 with FP8 scales and a factor per tensor.
    Nvfp4,
    /// `mxfp4-pack-quantized`: FP4 with powers of two.
    Mxfp4,
    /// `float-quantized`: the source's FP8 numbers and block scales.
    Fp8Block,
}

const fn int4(name: &'static str, about: &'static str, group_len: usize, symmetric: bool) -> Row<Kind> {
    Row::new(name, about, Kind::Int4 { group_len, symmetric })
}

/// What every format begins with; the rest is the name of its type.
const PREFIX: &str = "compressed-tensors-";

/// Every format. Bits per weight count a 16-bit scale per group, and 4 bits of zero point.
const FORMATS: &[Row<Kind>] = &[
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
    Row::new(
        "compressed-tensors-nvfp4",
        "compressed-tensors, FP4 with an FP8 scale per 16: 4.5 bits per weight",
        Kind::Nvfp4,
    ),
    Row::new(
        "compressed-tensors-mxfp4",
        "compressed-tensors, FP4 with a power of two per 32: 4.25 bits per weight",
        Kind::Mxfp4,
    ),
    Row::new(
        "compressed-tensors-fp8-block",
        "compressed-tensors, the source's own FP8 blocks: 8 bits per weight",
        Kind::Fp8Block,
    ),
];

/// The `format` column of [`FORMATS`].
const NAMES: [Format; FORMATS.len()] = hf::formats(FORMATS);

impl Target for CompressedTensorsTarget {
    fn family(&self) -> &'static str {
        "compressed-tensors"
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
        &["compressed-tensors-w4a16", "compressed-tensors-nvfp4", "compressed-tensors-fp8-block"]
    }

    fn bits_per_weight(&self, format: &Format) -> f64 {
        let row = FORMATS.iter().find(|row| row.format == *format);
        match row.map(|row| row.kind) {
            // One scale per row is next to nothing.
            Some(Kind::Int4 { group_len: 0, .. }) => 4.0,
            Some(Kind::Int4 { group_len, symmetric }) => {
                let beside = if symmetric { 16.0 } else { 20.0 };
                4.0 + beside / group_len as f64
            }
            Some(Kind::Nvfp4) => 4.5,
            Some(Kind::Mxfp4) => 4.25,
            Some(Kind::Fp8Block) | None => 8.0,
        }
    }

    fn readers(&self, _: &Format) -> &'static [&'static str] {
        &["vLLM", "transformers"]
    }

    fn blueprint(&self, format: &Format, source: &Opened, options: &Options) -> Result<Blueprint> {
        let source = checkpoint_of(source, format)?;
        let default = format.name.strip_prefix(PREFIX).unwrap_or(format.name);
        hf::blueprint(source, &CompressedTensors::of(source, default)?, default, &options.rules)
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
        hf::alternatives(source, &CompressedTensors::of(source, default)?, default, blueprint)
    }
}

/// What a type is.
fn kind(type_name: &str) -> Result<Kind> {
    hf::kind_of(FORMATS, PREFIX, type_name)
}

/// What the formats have to know of the source.
struct CompressedTensors {
    /// Rows and columns of the source's FP8 blocks.
    block: Option<[usize; 2]>,
    /// Whether FP8 is carried over wherever it is, prediction layers included.
    carries: bool,
    location: String,
}

impl CompressedTensors {
    fn of(source: &Checkpoint, default: &str) -> Result<Self> {
        // A scale per row or for a whole matrix is none for a block.
        let mut blocks = source
            .tensors()
            .iter()
            .filter_map(SourceTensor::scale)
            .map(|scale| [scale.block_rows, scale.block_cols]);
        let first = blocks.next().filter(|[rows, cols]| *rows > 1 && *cols > 1);
        let block = first.filter(|first| blocks.all(|other| other == *first));
        Ok(Self { block, carries: kind(default)? == Kind::Fp8Block, location: source.source().location() })
    }

    fn fp8(&self, tensor: &SourceTensor) -> Result<Option<Stored>> {
        if self.block.is_none() {
            return Err(Error::Unsupported {
                what: format!("fp8-block of {}", self.location),
                hint:
                    "it carries FP8 blocks over, and this checkpoint has none; choose a type that quantizes"
                        .into(),
            });
        }
        match tensor.dtype {
            Dtype::F8_E4M3 => Ok(Some(Stored::Carried { scale_suffix: "weight_scale" })),
            Dtype::F8_E5M2 => Err(Error::Unsupported {
                what: format!("tensor {}: dtype {} as fp8-block", tensor.name, tensor.dtype),
                hint: "the format means F8_E4M3".into(),
            }),
            _ => Ok(None),
        }
    }

    /// Format, weights and activations of a type, as `config_groups` states them.
    fn arguments(&self, kind: Kind) -> (&'static str, Value, Value) {
        let fp4 = |group_len: usize, strategy: &str, scale_dtype: &str| {
            json!({
                "num_bits": 4, "type": "float", "symmetric": true, "group_size": group_len,
                "strategy": strategy, "dynamic": false, "scale_dtype": scale_dtype
            })
        };
        match kind {
            Kind::Int4 { group_len, symmetric } => {
                let (group_size, strategy) = match group_len {
                    0 => (Value::Null, "channel"),
                    len => (len.into(), "group"),
                };
                let weights = json!({
                    "num_bits": 4, "type": "int", "symmetric": symmetric, "group_size": group_size,
                    "strategy": strategy, "dynamic": false
                });
                ("pack-quantized", weights, Value::Null)
            }
            Kind::Nvfp4 => {
                ("nvfp4-pack-quantized", fp4(16, "tensor_group", "torch.float8_e4m3fn"), Value::Null)
            }
            Kind::Mxfp4 => ("mxfp4-pack-quantized", fp4(32, "group", "torch.uint8"), Value::Null),
            Kind::Fp8Block => {
                let block = self.block.unwrap_or_default();
                let weights = json!({
                    "num_bits": 8, "type": "float", "symmetric": true, "group_size": null,
                    "strategy": "block", "block_structure": block, "dynamic": false
                });
                let activations = json!({
                    "num_bits": 8, "type": "float", "symmetric": true, "group_size": block[1],
                    "strategy": "group", "dynamic": true
                });
                ("float-quantized", weights, activations)
            }
        }
    }
}

impl Packing for CompressedTensors {
    fn target(&self) -> &'static dyn Target {
        &CompressedTensorsTarget
    }

    fn stored(&self, type_name: &'static str, tensor: &SourceTensor) -> Result<Option<Stored>> {
        let cols = tensor.matrix().1;
        // Scales have the weights' number format.
        let (number, suffix) = match tensor.dtype {
            Dtype::F16 => (ChannelScale::F16, "_f16"),
            _ => (ChannelScale::Bf16, ""),
        };
        let (codec, layout) = match kind(type_name)? {
            Kind::Int4 { group_len: 0, symmetric } => {
                (Some(codec::int4_channel(cols, symmetric, number)), "pack-quantized")
            }
            Kind::Int4 { group_len, symmetric } => {
                let kind = if symmetric { "ct_int4" } else { "ct_int4_asym" };
                (codec::find(&format!("{kind}_g{group_len}{suffix}")), "pack-quantized")
            }
            // FP4 is worked out in BF16, whatever the source has.
            Kind::Nvfp4 => {
                let codec = codec::find("ct_nvfp4");
                return hf::encoded_if_it_fits(tensor, codec, "nvfp4-pack-quantized", Rounding::Bf16);
            }
            Kind::Mxfp4 => {
                let codec = codec::find("ct_mxfp4");
                return hf::encoded_if_it_fits(tensor, codec, "mxfp4-pack-quantized", Rounding::Bf16);
            }
            Kind::Fp8Block => return self.fp8(tensor),
        };
        hf::encoded_if_it_fits(tensor, codec, layout, hf::rounding_of(tensor))
    }

    fn with_groups(&self, name: &str, group_len: usize) -> String {
        // 128 is what a name without a group length means.
        if group_len == 128 { name.to_owned() } else { format!("{name}-g{group_len}") }
    }

    /// Every type: each group of `config_groups` has a format and numbers of its own, which the package
    /// (`quantization/lifecycle/apply.py`, `compressors/base.py`) and vLLM (`compressed_tensors_moe.py`) take module by
    /// module. transformers 5.24 takes one group for all routed experts and one for all else
    /// (`integrations/compressed_tensors.py`, `get_experts_scheme`, `get_dense_scheme`) and stops at any mix, also at
    /// one of group lengths alone.
    ///
    /// Zero points of routed experts are what vLLM does not read (`compressed_tensors_moe_wna16_marlin.py`), so they
    /// have some only where the format asked for has. FP8 blocks are those of the source.
    fn alternatives(&self, default: &str, role: LayerRole) -> Vec<&'static str> {
        let asymmetric = |name: &str| matches!(kind(name), Ok(Kind::Int4 { symmetric: false, .. }));
        let is_routed = matches!(role, LayerRole::Expert(..));
        let is_possible = |name: &&'static str| {
            let reads_zeros = !is_routed || asymmetric(default) || !asymmetric(name);
            reads_zeros && (self.block.is_some() || !matches!(kind(name), Ok(Kind::Fp8Block)))
        };
        CompressedTensorsTarget.types().into_iter().filter(is_possible).collect()
    }

    fn takes_prediction_layers(&self) -> bool {
        self.carries
    }

    fn quantization_config(&self, default: &'static str, modules: &Modules) -> Result<Value> {
        let types = modules.types(default);
        let mut groups = Map::new();
        let mut formats = BTreeSet::new();
        // Names count before the class of a module: the default comes last.
        for (number, (type_name, patterns)) in types.iter().rev().enumerate() {
            let (format, weights, activations) = self.arguments(kind(type_name)?);
            let targets = if *type_name == default { vec!["Linear".into()] } else { matched(patterns) };
            let group = json!({
                "targets": targets, "weights": weights, "input_activations": activations,
                "output_activations": null, "format": format
            });
            groups.insert(format!("group_{number}"), group);
            formats.insert(format);
        }
        let format = match formats.first() {
            Some(format) if formats.len() == 1 => *format,
            _ => "mixed-precision",
        };
        Ok(json!({
            "config_groups": groups,
            "quant_method": "compressed-tensors",
            "kv_cache_scheme": null,
            "format": format,
            "quantization_status": "compressed",
            "global_compression_ratio": null,
            "ignore": matched(&modules.kept_patterns()),
            "sparsity_config": {},
            "transform_config": {},
            "version": PACKAGE_VERSION
        }))
    }
}

/// Regular expressions as the package marks them; a name without anything special in it is matched as it is.
fn matched(patterns: &[String]) -> Vec<String> {
    let mark =
        |pattern: &String| if pattern.contains('\\') { format!("re:{pattern}$") } else { pattern.clone() };
    patterns.iter().map(mark).collect()
}
