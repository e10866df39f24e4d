//! MLX's `nvfp4`: groups of 16 weights as 4-bit floats (e2m1) with one FP8 (e4m3) scale.
//!
//! ```text
//! scale = e4m3(r(max |w| / 6));   q_i = the first code nearest to r(w_i / scale)
//! decoded value r(fp4[q_i] * scale)
//! ```
//!
//! There is no factor for the whole tensor: a group whose largest weight is below 6 * 2^-10 has a scale of
//! zero, and zeros for codes. E4M3 rounds to nearest, ties to even, and saturates.
//! 8 bytes of codes, weight `2 i` in the low nibble of byte `i`; one byte of scale.
//! Source, dtypes and rounding: see `mlx_fp`; distances to the codes are f32 for every dtype.

use super::mlx_fp::{
    Element, MlxFp, Mode, decode_fp4, encode_fp4, encode_fp4_scalar, from_fp8, max_abs, parts, to_fp8,
};
use super::{Codec, Part, e2m1, mlx_fp};

const GROUP: usize = 16;

/// See the module.
struct Nvfp4;

/// One codec per dtype.
pub(super) const CODECS: &[&dyn Codec] = &[
    &MlxFp::<Nvfp4, mlx_fp::Bf16>::CODEC,
    &MlxFp::<Nvfp4, mlx_fp::F16>::CODEC,
    &MlxFp::<Nvfp4, mlx_fp::F32>::CODEC,
];

impl Mode for Nvfp4 {
    const NAMES: [&'static str; 3] = ["mlx_nvfp4", "mlx_nvfp4_f16", "mlx_nvfp4_f32"];
    const GROUP: usize = GROUP;
    const PARTS: &'static [Part] = &parts(GROUP / 2);

    #[inline(always)]
    fn encode<E: Element>(src: &[f32], codes: &mut [u8]) -> u8 {
        let scale = to_fp8(E::round(max_abs(src) / e2m1::MAX));
        match src.first_chunk::<GROUP>() {
            // The quotients are infinite or not numbers, and the first code is as near as any.
            _ if scale == 0 => codes.fill(0),
            Some(group) => encode_fp4::<E, mlx_fp::F32, GROUP>(group, from_fp8(scale), codes),
            None => {}
        }
        scale
    }

    #[inline(always)]
    fn decode<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]) {
        decode_fp4::<E>(codes, from_fp8(scale), dst);
    }

    fn encode_scalar<E: Element>(src: &[f32], codes: &mut [u8]) -> u8 {
        let scale = to_fp8(E::round(max_abs(src) / e2m1::MAX));
        encode_fp4_scalar::<E, mlx_fp::F32>(src, from_fp8(scale), codes);
        scale
    }

    fn decode_scalar<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]) {
        for (at, value) in dst.iter_mut().enumerate() {
            let code = codes[at / 2] >> (4 * (at % 2)) & 15;
            *value = E::round(e2m1::VALUES[usize::from(code)] * from_fp8(scale));
        }
    }
}
