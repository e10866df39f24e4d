//! MLX's `mxfp4`: groups of 32 weights as 4-bit floats (e2m1) with one power of two.
//!
//! ```text
//! e by the rule of `mlx_fp` with largest = 6;   q_i = the first code nearest to r(w_i / 2^e)
//! decoded value r(fp4[q_i] * 2^(byte - 127))
//! ```
//!
//! 16 bytes of codes, weight `2 i` in the low nibble of byte `i`; one byte of scale. It is the same
//! format as GGUF's MXFP4 and compressed-tensors', with another rule for the scale.
//! Source, dtypes and rounding: see `mlx_fp`.

use super::mlx_fp::{
    Element, MlxFp, Mode, decode_fp4, encode_fp4, encode_fp4_scalar, max_abs, parts, power_of_byte,
    power_scale,
};
use super::{Codec, Part, e2m1, mlx_fp};

const GROUP: usize = 32;

/// See the module.
struct Mxfp4;

/// One codec per dtype.
pub(super) const CODECS: &[&dyn Codec] = &[
    &MlxFp::<Mxfp4, mlx_fp::Bf16>::CODEC,
    &MlxFp::<Mxfp4, mlx_fp::F16>::CODEC,
    &MlxFp::<Mxfp4, mlx_fp::F32>::CODEC,
];

impl Mode for Mxfp4 {
    const NAMES: [&'static str; 3] = ["mlx_mxfp4", "mlx_mxfp4_f16", "mlx_mxfp4_f32"];
    const GROUP: usize = GROUP;
    const PARTS: &'static [Part] = &parts(GROUP / 2);
    const HAS_POWERS: bool = true;

    #[inline(always)]
    fn encode<E: Element>(src: &[f32], codes: &mut [u8]) -> u8 {
        let (scale, divisor) = power_scale::<E>(max_abs(src), e2m1::MAX);
        if let Some(group) = src.first_chunk::<GROUP>() {
            encode_fp4::<E, E, GROUP>(group, divisor, codes);
        }
        scale
    }

    #[inline(always)]
    fn decode<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]) {
        decode_fp4::<E>(codes, power_of_byte::<E>(scale), dst);
    }

    fn encode_scalar<E: Element>(src: &[f32], codes: &mut [u8]) -> u8 {
        let (scale, divisor) = power_scale::<E>(max_abs(src), e2m1::MAX);
        encode_fp4_scalar::<E, E>(src, divisor, codes);
        scale
    }

    fn decode_scalar<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]) {
        for (at, value) in dst.iter_mut().enumerate() {
            let code = codes[at / 2] >> (4 * (at % 2)) & 15;
            *value = E::round(e2m1::VALUES[usize::from(code)] * power_of_byte::<E>(scale));
        }
    }
}
