//! GPTQ checkpoints' scales and zero points, found by rounding to nearest as GPTQModel does without calibration.
//!
//! ```text
//! lo, hi = min(x, 0), max(x, 0) over the group; -1 and 1 where all weights are zero
//! symmetric    hi = max |x|, lo = -hi (0 when no weight is negative)
//!              scale = (hi - lo) / 15             zero = 8
//! asymmetric   scale = (hi - lo) / 15             zero = rint(-lo / scale)
//! code    = clamp(rint(x / scale) + zero, 0, 15)
//! decoded = f16(f16(scale) * (code - zero))
//! ```
//!
//! All in f32; codes follow from the f32 scale, which is then stored as F16. The zero point here is the code of
//! zero; the layout stores it in the convention of the checkpoint. GPTQModel finds the codes a second time
//! while packing, from the dequantized weights: for scales that F16 can hold these are the same codes.
//! Where the scale underflows f32 the codes are `zero` (there the reference divides by 0).
//!
//! Source: GPTQModel 7.7.0, `quantization/quantizer.py` (`Quantizer.find_params`, `quantize`),
//! `quantization/rtn.py`, `nn_modules/qlinear/__init__.py` (`pack_block`, `dequantize_weight`).

use super::number::F16;
use super::scalar::Kind;
use super::{Parameters, Q, Scheme};

/// Symmetric or not.
pub(super) struct Gptq<const SYMMETRIC: bool>;

impl<const SYMMETRIC: bool> Scheme for Gptq<SYMMETRIC> {
    type Scale = F16;
    const PARTS: [&'static str; 3] = Q;
    const HAS_ZERO: bool = true;
    const ADDS_ZERO_FIRST: bool = false;
    const ROUNDS_QUOTIENT: bool = false;
    const KIND: Kind = if SYMMETRIC { Kind::GptqSymmetric } else { Kind::GptqAsymmetric };

    #[inline(always)]
    fn parameters(low: f32, high: f32) -> Parameters {
        let (mut low, mut high) = (if low < 0.0 { low } else { 0.0 }, if high > 0.0 { high } else { 0.0 });
        if SYMMETRIC {
            high = if -low > high { -low } else { high };
            low = if low < 0.0 { -high } else { 0.0 };
        }
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        let scale = (high - low) / 15.0;
        let zero = if SYMMETRIC {
            8
        } else {
            // At most 15 but for scales that underflow; NaN, for infinite weights, becomes 0.
            ((-low / scale).round_ties_even() as u8).min(15)
        };
        Parameters { divisor: if scale == 0.0 { f32::INFINITY } else { scale }, scale, zero }
    }
}
