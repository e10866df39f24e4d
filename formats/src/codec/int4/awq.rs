//! AWQ checkpoints' scales and zero points, as AutoAWQ finds them without searching for activation scales.
//!
//! ```text
//! lo, hi  = smallest and largest weight of the group (zero need not lie between them)
//! scale   = f16(max(f16(hi - lo), f16(1e-5)) / 15)
//! zero    = clamp(-rint(f16(lo / scale)), 0, 15)
//! code    = clamp(rint(f16(x / scale)) + zero, 0, 15)
//! decoded = f16((code - zero) * scale)
//! ```
//!
//! The input must already be rounded to F16, which is what AutoAWQ loads weights as. AutoAWQ finds the
//! codes a second time while packing, from the dequantized weights; for every finite scale, zero and code this
//! gives the same code, which a test goes through.
//!
//! Source: AutoAWQ 0.2.9, `quantize/quantizer.py` (`pseudo_quantize_tensor` with `zero_point`),
//! `modules/linear/gemm.py` (`WQLinear_GEMM.from_linear`), `utils/packing_utils.py` (`dequantize_gemm`).

use super::number::{F16, Number};
use super::scalar::Kind;
use super::{Parameters, Q, Scheme};

/// The only variant: groups with zero points.
pub(super) struct Awq;

/// 1e-5 as an F16 number, 168 * 2^-24: the least range of a group.
const LEAST_RANGE: f32 = 168.0 / 16_777_216.0;

impl Scheme for Awq {
    type Scale = F16;
    const PARTS: [&'static str; 3] = Q;
    const HAS_ZERO: bool = true;
    const ADDS_ZERO_FIRST: bool = false;
    const ROUNDS_QUOTIENT: bool = true;
    const KIND: Kind = Kind::Awq;

    #[inline(always)]
    fn parameters(low: f32, high: f32) -> Parameters {
        let range = F16::round(high - low);
        let range = if range > LEAST_RANGE { range } else { LEAST_RANGE };
        let scale = F16::round(range / 15.0);
        let zero = -F16::round(low / scale).round_ties_even();
        // NaN becomes 0 here.
        Parameters { divisor: scale, scale, zero: zero.clamp(0.0, 15.0) as u8 }
    }
}
