//! Checkpoints in the formats of the compressed-tensors package, as vLLM, SGLang and transformers load them.
//!
//! What they are to equal: the package's min-max scales, rounding and packing (compressed-tensors 0.20.0,
//! `quantization/utils/helpers.py`, `compressors/`), on weights rounded to BF16, which is what a
//! checkpoint dequantized for it holds. `quantization_config` is what its `ModelCompressor` writes.
//!
//! A format is one row of [`FORMATS`].

use requant_formats::Dtype;
use serde_json::{Value, json};

use super::hf::{self, Modules, Packing, Stored};
use super::{Blueprint, Format, Options, Target};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};

/// compressed-tensors.
pub(super) struct CompressedTensorsTarget;

/// Version of the package that the configuration is written after.
const PACKAGE_VERSION: &str = "0.20.0";

/// What a format writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The source's FP8 numbers and block scales.
    Fp8Block,
}

/// Every format.
const FORMATS: &[(Format, Kind)] = &[(
    Format {
        name: "compressed-tensors-fp8-block",
        about: "compressed-tensors, the source's own FP8 blocks: 8 bits per weight",
    },
    Kind::Fp8Block,
)];

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
    fn formats(&self) -> &'static [Format] {
        &NAMES
    }

    fn blueprint(&self, format: &Format, source: &Checkpoint, _: &Options) -> Result<Blueprint> {
        let Some((_, kind)) = FORMATS.iter().find(|(known, _)| known == format) else {
            return Err(Error::Unsupported { what: format.name.into(), hint: "see --help".into() });
        };
        match kind {
            Kind::Fp8Block => hf::blueprint(source, &Fp8Block::of(source)?),
        }
    }
}

/// `float-quantized` with the block scales of the source.
struct Fp8Block {
    block: [usize; 2],
}

impl Fp8Block {
    fn of(source: &Checkpoint) -> Result<Self> {
        match source.tensors().iter().find_map(|tensor| tensor.scale) {
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
