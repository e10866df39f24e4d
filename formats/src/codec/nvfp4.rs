//! NVFP4: 64 weights as 4-bit floats (e2m1) with an 8-bit float for each 16, in GGUF's layout.
//!
//! ```text
//! scale_j = ue4m3(max |x| / 6)        q_i = the first code whose value is nearest to x_i
//! x_i ~ scale_j * fp4[q_i]            fp4 = 0, 0.5, 1, 1.5, 2, 3, 4, 6, then the same negated
//! ```
//!
//! The scale is an E4M3 number without its sign, as the reference rounds it: halves go up, what is below
//! 2^-10 is zero, and all from 248 on is 448, so that 256 to 447 are never used (248 already
//! rounds to the exponent of 256). A file may have one more factor in a tensor `NAME.scale`, made by
//! other tools; llama-quantize takes it to be 1, and so does this codec.
//! 36 bytes: 4 of scales, then 8 of codes for each 16: byte `i` holds weight `i` in its low and weight `i + 8`
//! in its high nibble. The fast encoder compares with half-way points: 0.6 G weights/s on one core of an AMD
//! EPYC (AVX-512 or AVX2, CPU time), where the plain code makes 0.24.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_nvfp4_ref`; `ggml-impl.h`, `ggml_fp32_to_ue4m3`,
//! `ggml_ue4m3_to_fp32`.

use super::Ladder;
use super::block::{self, Block};
use super::e2m1;
use super::mxfp4::{DOUBLED, nearest};
use crate::dispatch::{self, Kernel};

/// Weights in a block.
const LEN: usize = 64;
/// Weights under a scale.
const SUB_LEN: usize = 16;
/// Scales of a block.
const SUBS: usize = LEN / SUB_LEN;
const BYTES: usize = SUBS + LEN / 2;

/// The codec; see the module.
pub(super) struct Nvfp4;

/// The code of a scale.
#[inline(always)]
fn ue4m3(value: f32) -> u8 {
    if value <= 0.0 || value.is_nan() {
        return 0;
    }
    let bits = value.min(448.0).to_bits();
    // Below 2^-6 a code counts units of 2^-9.
    if value < 0.015_625 {
        return ((value * 512.0 + 0.5) as u8).min(7);
    }
    // Rebiased, three bits of mantissa and the next one for rounding; a carry raises the exponent.
    let code = ((bits >> 19) - ((127 - 7) << 4)).div_ceil(2);
    if code >= 0x78 { 0x7e } else { code as u8 }
}

/// Half of what a code of a scale stands for, which doubled values are multiplied with. The top bit
/// does not count, and the code of NaN is zero.
#[inline(always)]
fn half_scale(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    // The code of NaN, like zero; with a top bit it is an exponent of its own.
    if code == 0x7f {
        return 0.0;
    }
    let subnormal = magnitude as f32 * (1.0 / 512.0);
    let normal = f32::from_bits((magnitude << 20) + ((127 - 7) << 23));
    (if magnitude < 8 { subnormal } else { normal }) * 0.5
}

/// Encodes the weights under one scale, which is returned.
#[inline(always)]
fn encode_sub_scalar(x: &[f32], codes: &mut [u8]) -> u8 {
    let largest = x.iter().fold(0.0f32, |largest, v| if largest < v.abs() { v.abs() } else { largest });
    let scale = ue4m3(largest / e2m1::MAX);
    let values = DOUBLED.map(|value| value * half_scale(scale));
    for (i, code) in codes.iter_mut().enumerate() {
        *code = nearest(&values, x[i]) | nearest(&values, x[SUB_LEN / 2 + i]) << 4;
    }
    scale
}

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl Kernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (x, y) in self.0.as_chunks::<LEN>().0.iter().zip(self.1.as_chunks_mut::<BYTES>().0) {
            let (scales, codes) = y.split_at_mut(SUBS);
            let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.chunks_exact_mut(SUB_LEN / 2));
            for (scale, (x, codes)) in scales.iter_mut().zip(subs) {
                // Magnitudes are ordered like their bits.
                let bits = x.iter().fold(0, |largest, v| largest.max(v.to_bits() & 0x7fff_ffff));
                *scale = ue4m3(f32::from_bits(bits) / e2m1::MAX);
                match e2m1::first_nearest_under(x, 2.0 * half_scale(*scale)) {
                    Some(nearest) => e2m1::pack_halves(&nearest, codes),
                    None => *scale = encode_sub_scalar(x, codes),
                }
            }
        }
    }
}

impl Block for Nvfp4 {
    const NAME: &'static str = "NVFP4";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    #[inline(always)]
    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let (scales, codes) = y.split_at_mut(SUBS);
        let subs = x.chunks_exact(SUB_LEN).zip(codes.chunks_exact_mut(SUB_LEN / 2));
        for (scale, (x, codes)) in scales.iter_mut().zip(subs) {
            *scale = encode_sub_scalar(x, codes);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 16, even: false });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        for (codes, y) in codes.chunks_exact(SUB_LEN).zip(y[SUBS..].chunks_exact_mut(SUB_LEN / 2)) {
            e2m1::pack_halves(codes, y);
        }
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let (scales, codes) = y.split_at(SUBS);
        let subs = x.chunks_exact_mut(SUB_LEN).zip(codes.chunks_exact(SUB_LEN / 2));
        for (scale, (x, codes)) in scales.iter().zip(subs) {
            let values = DOUBLED.map(|value| value * half_scale(*scale));
            for (i, code) in codes.iter().enumerate() {
                x[i] = values[usize::from(code & 15)];
                x[SUB_LEN / 2 + i] = values[usize::from(code >> 4)];
            }
        }
    }
}
