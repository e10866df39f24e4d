//! How a checkpoint is quantized: `quantization_config` of config.json.
//!
//! A method of quantization is one file and one line in [`METHODS`]. It checks its section and says what
//! tensors hold the weight of a module; the catalogue looks for them. Which modules are
//! quantized follows from the tensors that are there: lists of exceptions say the same thing twice.

use requant_formats::layout::Layout;
use requant_formats::{Codec, Dtype};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::family::Config;
use crate::small::shown;

mod awq;
mod compressed_tensors;
mod fp8;
mod gptq;
mod mxfp4;

/// Every value of `quant_method` that is read.
const METHODS: &[&dyn Method] =
    &[&fp8::Fp8, &compressed_tensors::CompressedTensors, &gptq::Gptq, &awq::Awq, &mxfp4::Mxfp4];

/// The values of `quant_method` that are read.
pub fn quantization_methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|method| method.name())
}

/// A value of `quant_method`.
trait Method: Sync {
    /// The value.
    fn name(&self) -> &'static str;
    /// Checks the section.
    ///
    /// # Errors
    /// For a variant that is not decoded.
    fn read(&self, section: &Config<'_>) -> Result<Quantization>;
}

/// What `quantization_config` says.
#[derive(Clone, Default)]
pub(super) struct Quantization {
    /// Rows and columns of an FP8 block, where scales are per block.
    pub(super) block: Option<[usize; 2]>,
    /// `scale_fmt` is `ue8m0`: one-byte scales are exponents.
    pub(super) scales_are_e8m0: bool,
    /// Products of FP8 numbers and scales are rounded to the scales' number format.
    pub(super) rounds: bool,
    /// What the weight of a packed module can be stored as.
    pub(super) packings: &'static [Packing],
}

/// A way to store the weight of a linear layer in several tensors.
pub(super) struct Packing {
    /// The tensor with the codes: its presence is the mark of a packed module.
    pub(super) codes: &'static str,
    /// Finds codec and layout from the tensors of the module.
    pub(super) find: fn(&Module<'_>) -> Result<Found>,
}

/// What decodes the weight of a module, and how its parts are arranged.
pub(super) type Found = (&'static dyn Codec, &'static dyn Layout);

/// Dtype and shape of a stored tensor, by suffix.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<(Dtype, Vec<usize>)>;

/// The tensors of a module, as the header has them.
pub(super) struct Module<'a> {
    /// Name without `.weight`.
    pub(super) name: &'a str,
    /// Logical columns of its weight.
    pub(super) cols: usize,
    /// Dtype and shape of `name.suffix`.
    pub(super) tensor: Lookup<'a>,
}

impl Module<'_> {
    /// Dtype and shape of `name.suffix`, which must be there.
    fn expect(&self, suffix: &str) -> Result<(Dtype, Vec<usize>)> {
        (self.tensor)(suffix).ok_or_else(|| {
            let message = "is missing; the module's weight cannot be decoded without it";
            Error::checkpoint(format!("{}.{suffix}", self.name), message)
        })
    }

    /// Length of a group, from how many there are in a row.
    fn group_len(&self, suffix: &str, groups: usize) -> Result<usize> {
        if groups > 0 && self.cols.is_multiple_of(groups) {
            return Ok(self.cols / groups);
        }
        let message = format!(
            "found {groups} groups in a row of {} weights; expected a number that divides it",
            self.cols
        );
        Err(Error::checkpoint(format!("{}.{suffix}", self.name), message))
    }

    /// The error for a combination that no codec is there for.
    fn unsupported(&self, what: &str, supported: &str) -> Error {
        Error::Unsupported {
            what: format!("{}: {what}", self.name),
            hint: format!("this version reads {supported}"),
        }
    }
}

/// Reads `quantization_config`; `None` when the checkpoint is not quantized.
///
/// # Errors
/// For a method or a variant this version does not decode.
pub(super) fn parse(config: &Value) -> Result<Option<Quantization>> {
    let Some(section) = Config::new(config).section("quantization_config") else { return Ok(None) };
    let name = section.text("quant_method").unwrap_or("(none)");
    let Some(method) = METHODS.iter().find(|method| method.name() == name) else {
        let known: Vec<String> = METHODS.iter().map(|method| format!("{:?}", method.name())).collect();
        return Err(Error::Unsupported {
            what: format!("config.json: quantization_config.quant_method {}", shown(name)),
            hint: format!("sources may be {}, or unquantized BF16, F16, F32", known.join(", ")),
        });
    };
    method.read(&section).map(Some)
}
