//! Which float type a weight has in MLX, and how it gets there.
//!
//! mlx-lm decodes FP8 to bf16 (`bf16(fp8 * scale)`, the product in f32), keeps other floats as
//! they are stored, and then casts everything but the router's correction bias to `torch_dtype`
//! of config.json when that is one of three names. Scales, biases and unquantized weights have
//! that type. Experts are stacked before the cast, which makes mixed types their common one.

use requant_formats::Dtype;
use serde_json::Value;

use crate::checkpoint::SourceTensor;
use crate::error::{Error, Result};
use crate::plan::Rounding;

/// A float type of MLX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Bf16,
    F16,
    F32,
}

impl Element {
    /// What `torch_dtype` names (of `text_config` its `dtype`); other names mean no cast.
    pub(super) fn of_config(config: &Value) -> Option<Self> {
        let name = match config.get("torch_dtype") {
            None | Some(Value::Null) => config.get("text_config")?.get("dtype")?,
            Some(name) => name,
        };
        match name.as_str()? {
            "bfloat16" => Some(Self::Bf16),
            "float16" => Some(Self::F16),
            "float32" => Some(Self::F32),
            _ => None,
        }
    }

    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// What rules call it.
    pub(super) fn rule_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// As safetensors call it, and the codec of unquantized weights.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// What a stored tensor is once loaded.
    fn of_stored(tensor: &SourceTensor) -> Self {
        match tensor.dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            _ => Self::Bf16,
        }
    }

    /// The type of an array stacked from both.
    fn common(self, other: Self) -> Self {
        if self == other { self } else { Self::F32 }
    }
}

/// The type of an output tensor and the rounding on the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) element: Element,
    pub(super) rounding: Rounding,
}

impl Plan {
    /// For a tensor made of `stored`, then cast to `cast`.
    ///
    /// # Errors
    /// When parts of one tensor would have to be rounded differently, or FP8 twice.
    pub(super) fn new<'a>(
        stored: impl Iterator<Item = &'a SourceTensor> + Clone,
        cast: Option<Element>,
    ) -> Result<Self> {
        let common = stored.clone().map(Element::of_stored).reduce(Element::common);
        let element = cast.or(common).unwrap_or(Element::F32);
        let mut roundings = stored.map(|tensor| Ok((tensor, rounding(tensor, element)?)));
        let Some((first, rounding)) = roundings.next().transpose()? else {
            return Ok(Self { element, rounding: Rounding::Exact });
        };
        for other in roundings {
            let (other, needed) = other?;
            if needed != rounding {
                return Err(Error::Unsupported {
                    what: format!("{} is {} but {} is {}", first.name, first.dtype, other.name, other.dtype),
                    hint: "store the tensors that belong together in one dtype".into(),
                });
            }
        }
        Ok(Self { element, rounding })
    }
}

/// The rounding that takes `tensor` from f32 to `element`.
fn rounding(tensor: &SourceTensor, element: Element) -> Result<Rounding> {
    let is_fp8 = matches!(tensor.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
    match element {
        Element::Bf16 => Ok(Rounding::Bf16),
        Element::F16 if is_fp8 => Err(Error::Unsupported {
            what: format!("torch_dtype float16 with the FP8 tensor {}", tensor.name),
            hint: "mlx-lm rounds to bfloat16 and then to float16; set torch_dtype to bfloat16".into(),
        }),
        Element::F16 => Ok(Rounding::F16),
        Element::F32 if is_fp8 => Ok(Rounding::Bf16),
        Element::F32 => Ok(Rounding::Exact),
    }
}
