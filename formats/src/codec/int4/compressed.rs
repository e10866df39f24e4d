//! compressed-tensors' min-max scales for `int` weights of 4 bits, symmetric and asymmetric.
//!
//! Everything is computed in the weights' own dtype: `r` rounds to it, after every operation. The input must
//! already be rounded to that dtype.
//!
//! ```text
//! symmetric    scale = r(max |x| / 7.5)
//!              code  = clamp(rint(r(x / scale)), -8, 7) + 8                         zero = 8
//! asymmetric   lo, hi = min(x, 0), max(x, 0) over the group
//!              scale = r(r(hi - lo) / 15)
//!              zero  = clamp(rint(r(-8 - r(lo / scale))), -8, 7) + 8, 8 for NaN
//!              code  = clamp(rint(r(r(x / scale) + zero - 8)), -8, 7) + 8
//! both         a scale of 0 becomes the dtype's epsilon (2^-7 for BF16) before x is divided by it
//! decoded      r((code - zero) * scale)
//! ```
//!
//! The stored nibbles and zero points are these unsigned numbers: `pack_to_int32` adds 8.
//! Source: compressed-tensors 0.20.0, `quantization/utils/helpers.py` (`calculate_qparams`),
//! `quantization/lifecycle/forward_helpers.py` (`_quantize`, `_dequantize`) and
//! `compressors/pack_quantized`, on the CPU. On a GPU the package's Triton kernel leaves out the roundings
//! of quotient and sum, so that codes next to a tie can differ by one.

use std::marker::PhantomData;

use super::number::Number;
use super::scalar::Kind;
use super::{CT, Parameters, Scheme};

/// The code of zero in the symmetric format, and what is added to signed numbers.
const OFFSET: u8 = 8;

/// One scale per group.
pub(super) struct Symmetric<N>(PhantomData<N>);
/// One scale and one zero point per group.
pub(super) struct Asymmetric<N>(PhantomData<N>);

impl<N: Number> Scheme for Symmetric<N> {
    type Scale = N;
    const PARTS: [&'static str; 3] = CT;
    const HAS_ZERO: bool = false;
    const ADDS_ZERO_FIRST: bool = false;
    const ROUNDS_QUOTIENT: bool = true;
    const KIND: Kind = Kind::Symmetric;

    #[inline(always)]
    fn parameters(low: f32, high: f32) -> Parameters {
        // Without a number in the group the extremes are infinities of the wrong sign.
        let (low, high) = (if low < 0.0 { low } else { 0.0 }, if high > 0.0 { high } else { 0.0 });
        let largest = if -low > high { -low } else { high };
        let scale = N::round(largest / 7.5);
        let scale = if scale == 0.0 { N::EPSILON } else { scale };
        Parameters { divisor: scale, scale, zero: OFFSET }
    }
}

impl<N: Number> Scheme for Asymmetric<N> {
    type Scale = N;
    const PARTS: [&'static str; 3] = CT;
    const HAS_ZERO: bool = true;
    const ADDS_ZERO_FIRST: bool = true;
    const ROUNDS_QUOTIENT: bool = true;
    const KIND: Kind = Kind::Asymmetric;

    #[inline(always)]
    fn parameters(low: f32, high: f32) -> Parameters {
        let (low, high) = (if low < 0.0 { low } else { 0.0 }, if high > 0.0 { high } else { 0.0 });
        let scale = N::round(N::round(high - low) / 15.0);
        let zero = N::round(-8.0 - N::round(low / scale)).clamp(-8.0, 7.0).round_ties_even();
        // NaN becomes 0 here.
        let zero = (zero as i8).wrapping_add(OFFSET as i8) as u8;
        let scale = if scale == 0.0 { N::EPSILON } else { scale };
        Parameters { divisor: scale, scale, zero }
    }
}
