//! MLX's `mxfp8`: groups of 32 weights as FP8 (e4m3) with one power of two.
//!
//! ```text
//! e by the rule of `mlx_fp` with largest = 448;   q_i = e4m3(r(w_i / 2^e))
//! decoded value r(e4m3[q_i] * 2^(byte - 127))
//! ```
//!
//! E4M3 rounds to nearest, ties to even, and saturates: the largest weights of a group can be beyond 448.
//! 32 bytes of codes, one byte of scale. Source, dtypes and rounding: see `mlx_fp`.

use super::mlx_fp::{Element, MlxFp, Mode, from_fp8, max_abs, parts, power_of_byte, power_scale, to_fp8};
use super::{Codec, Part, mlx_fp};

const GROUP: usize = 32;
/// The largest E4M3 number.
const MAX: f32 = 448.0;

/// See the module.
struct Mxfp8;

/// One codec per dtype.
pub(super) const CODECS: &[&dyn Codec] = &[
    &MlxFp::<Mxfp8, mlx_fp::Bf16>::CODEC,
    &MlxFp::<Mxfp8, mlx_fp::F16>::CODEC,
    &MlxFp::<Mxfp8, mlx_fp::F32>::CODEC,
];

impl Mode for Mxfp8 {
    const NAMES: [&'static str; 3] = ["mlx_mxfp8", "mlx_mxfp8_f16", "mlx_mxfp8_f32"];
    const GROUP: usize = GROUP;
    const PARTS: &'static [Part] = &parts(GROUP);

    #[inline(always)]
    fn encode<E: Element>(src: &[f32], codes: &mut [u8]) -> u8 {
        let (scale, divisor) = power_scale::<E>(max_abs(src), MAX);
        for (code, value) in codes.iter_mut().zip(src) {
            *code = to_fp8(E::round(value / divisor));
        }
        scale
    }

    #[inline(always)]
    fn decode<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]) {
        let scale = power_of_byte::<E>(scale);
        for (value, code) in dst.iter_mut().zip(codes) {
            *value = E::round(from_fp8(*code) * scale);
        }
    }

    fn encode_scalar<E: Element>(src: &[f32], codes: &mut [u8]) -> u8 {
        Self::encode::<E>(src, codes)
    }

    fn decode_scalar<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]) {
        Self::decode::<E>(codes, scale, dst);
    }
}
