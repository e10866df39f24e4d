//! Which module is quantized how: mlx-lm's modes, and its recipes that mix two widths.
//!
//! Source: `mlx_lm/utils.py` (`quantize_model`) and `mlx_lm/convert.py` (`mixed_quant_predicate_builder`).

use requant_formats::codec::{Codec, MlxMode};
use serde_json::{Map, Value};

use super::element::Element;
use super::parameters::Parameter;

/// How weights are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quantization {
    pub(super) mode: MlxMode,
    pub(super) bits: usize,
    pub(super) group_len: usize,
}

impl Quantization {
    /// The codec for BF16 weights, which is how rules and `plan` call the type.
    pub(super) fn codec_name(self) -> Option<&'static str> {
        Some(self.codec(Element::Bf16)?.name())
    }

    /// The codec for weights of type `element`, if MLX has it.
    pub(super) fn codec(self, element: Element) -> Option<&'static dyn Codec> {
        self.mode.codec(self.bits, self.group_len, element.dtype())
    }

    /// Bits of a weight with its part of the scale, and of the bias that affine groups have: 16 each, or a scale of 8.
    pub(super) fn bits_per_weight(self) -> f64 {
        let beside = if self.mode == MlxMode::Affine { 32.0 } else { 8.0 };
        self.bits as f64 + beside / self.group_len as f64
    }

    /// As config.json has it.
    fn section(self, group_len: Value) -> Map<String, Value> {
        Map::from_iter([
            ("group_size".to_owned(), group_len),
            ("bits".to_owned(), Value::from(self.bits)),
            ("mode".to_owned(), Value::from(self.mode.name())),
        ])
    }
}

/// What a format does with the modules that can be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipe {
    /// Nothing: every tensor stays a float.
    Floats,
    /// All of them the same.
    Uniform(Quantization),
    /// Affine in the default groups, more bits for what [`has_high_bits`] picks.
    Mixed { low_bits: usize, high_bits: usize },
}

/// What mlx-lm takes without `--q-group-size` and `--q-bits`.
const DEFAULT: Quantization = Quantization { mode: MlxMode::Affine, bits: 4, group_len: 64 };

impl Recipe {
    /// How the module `path` of a model with `layers` layers is quantized.
    fn of_module(self, path: &str, layers: usize) -> Option<Quantization> {
        match self {
            Self::Floats => None,
            Self::Uniform(quantization) => Some(quantization),
            Self::Mixed { low_bits, high_bits } => {
                let bits = if has_high_bits(path, layers) { high_bits } else { low_bits };
                Some(Quantization { bits, ..DEFAULT })
            }
        }
    }

    /// As [`Self::of_module`], for a module that can be quantized and whose rows are whole groups; else mlx-lm
    /// skips it. What the model's own predicate says counts unless the recipe is one.
    pub(super) fn of_parameter(self, parameter: &Parameter, layers: usize) -> Option<Quantization> {
        let quantization = self.of_module(parameter.module(), layers)?;
        let is_whole = parameter.row_len().is_multiple_of(quantization.group_len);
        let quantization = match self {
            Self::Uniform(_) => parameter.own.unwrap_or(quantization),
            Self::Floats | Self::Mixed { .. } => quantization,
        };
        (parameter.is_quantizable && is_whole).then_some(quantization)
    }

    /// The quantization of a format that has one for all.
    pub(super) fn uniform(self) -> Option<Quantization> {
        match self {
            Self::Uniform(quantization) => Some(quantization),
            Self::Floats | Self::Mixed { .. } => None,
        }
    }

    /// The quantization of most modules.
    pub(super) fn most(self) -> Option<Quantization> {
        match self {
            Self::Floats => None,
            Self::Uniform(quantization) => Some(quantization),
            Self::Mixed { low_bits, .. } => Some(Quantization { bits: low_bits, ..DEFAULT }),
        }
    }

    /// `quantization` of config.json, with what rules decided module by module. A recipe that mixes says
    /// of every module what it is; the group is `null` there, which mlx-lm takes for the mode's own.
    pub(super) fn section(self, modules: &[Module]) -> Option<Map<String, Value>> {
        // What was there before leads, and all else is said module by module.
        let kept =
            modules.iter().find(|module| module.reason == Reason::Kept).map(|module| module.quantization);
        let is_mixed = matches!(self, Self::Mixed { .. });
        let default = match (self, kept) {
            (_, Some(kept)) => kept,
            (Self::Floats, None) => return None,
            (Self::Uniform(quantization), None) => quantization,
            (Self::Mixed { .. }, None) => DEFAULT,
        };
        let mut section = default.section(default.group_len.into());
        for Module { path, quantization, reason } in modules {
            let group = Value::from(quantization.group_len);
            let entry = match reason {
                Reason::Rule => quantization.section(group),
                Reason::Format if is_mixed => quantization.section(Value::Null),
                Reason::Format if kept.is_some() => quantization.section(group),
                Reason::Format | Reason::Kept => continue,
                Reason::Model => {
                    let mut entry = quantization.section(group);
                    entry.remove("mode");
                    entry
                }
            };
            section.insert(path.clone(), Value::from(entry));
        }
        Some(section)
    }
}

/// A quantized module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// `model.layers.0.mlp.up_proj`.
    pub(super) path: String,
    pub(super) quantization: Quantization,
    pub(super) reason: Reason,
}

/// What decided how a module is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A rule of the user's.
    Rule,
    /// The format.
    Format,
    /// The model's own predicate, whose entries name no mode.
    Model,
    /// It is so in the checkpoint.
    Kept,
}

/// Value and down projections of the first and last eighth of the layers and of every third layer
/// between, and the output head. In this family a name with `v_a_proj` is that of `kv_a_proj_with_mqa`.
fn has_high_bits(path: &str, layers: usize) -> bool {
    // What is in no layer counts as of layer 0.
    let layer: usize = path.split('.').find_map(|word| word.parse().ok()).unwrap_or(0);
    let eighth = layers / 8;
    let is_sensitive_layer = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
    let is_sensitive = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|name| path.contains(name));
    path.contains("lm_head") || is_sensitive && is_sensitive_layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_more_bits_are_those_of_mlx_lm() {
        // 61 layers: 0 to 6, 53 to 60, and from 9 on every third.
        let high: Vec<usize> = (0..61)
            .filter(|layer| has_high_bits(&format!("model.layers.{layer}.mlp.switch_mlp.down_proj"), 61))
            .collect();
        assert_eq!(
            high,
            [
                0, 1, 2, 3, 4, 5, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 53, 54, 55,
                56, 57, 58, 59, 60
            ]
        );
        for (path, expected) in [
            ("lm_head", true),
            ("model.embed_tokens", false),
            ("model.layers.0.self_attn.kv_a_proj_with_mqa", true),
            ("model.layers.0.self_attn.o_proj", false),
            ("model.layers.0.self_attn.unembed_out", false),
            ("language_model.model.layers.7.mlp.down_proj", false),
            ("language_model.model.layers.9.mlp.down_proj", true),
        ] {
            assert_eq!(has_high_bits(path, 61), expected, "{path}");
        }
    }
}
