//! IQ4_XS: super-blocks of 256 weights as codes of sixteen unevenly spaced levels, with a 6-bit
//! scale for each 32.
//!
//! ```text
//! x_i ~ d * (sc_j - 32) * levels[q_i]      sc in 0..=63
//!
//! s_j = the searched scale of sub-block j (`iq4`);  s = the first s_j of largest magnitude
//! d = -s / 32,  sc_j = clamp(round(s_j * (1 / d)), -32, 31) + 32
//! q_i = the level nearest to x_i * (1 / (d * (sc_j - 32)))
//! ```
//!
//! Codes use the `f32` value of `d`, which is then stored as a half. Rounding is to nearest, ties
//! to even. 136 bytes: `d` (f16), u16 of the top two bits of each `sc_j` from the lowest bits up,
//! 4 bytes of their low nibbles, the even `j` in the low one, then 16 bytes of codes per
//! sub-block as in IQ4_NL. The vector encoder (`iq4_lanes`) works on as many sub-blocks as there are lanes.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_iq4_xs`.

use super::block::{self, Block};
use super::block32::{LEN as SUB_LEN, pack_4_bits};
use super::importance::{batch_weights, error_weights, of_block, sum_squares};
use super::iq4::{LEVELS, inverse, load_values, search, search_weighted, store_codes};
use super::iq4_lanes;
use super::{Ladder, Scales, TwoLevels, Units};
use crate::dispatch::{self, LaneKernel, Lanes};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

const LEN: usize = 256;
const BYTES: usize = 136;
/// Sub-blocks in a super-block.
const SUBS: usize = LEN / SUB_LEN;
/// Where the low nibbles of the scales, and then the codes, start in a block.
const LOW_AT: usize = 4;
const CODES_AT: usize = LOW_AT + SUBS / 2;

/// The codec; see the module.
pub(super) struct Iq4Xs;

/// Quantizes the searched scales of a super-block and writes it; `store` makes the codes of a sub-block,
/// which is multiplied with its second argument.
#[inline(always)]
fn write_block(
    x: &[f32],
    scales: &[f32; SUBS],
    y: &mut [u8],
    store: impl Fn(&[f32; SUB_LEN], f32, &mut [u8]),
) {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &scale in scales {
        if scale.abs() > largest {
            (largest, extreme) = (scale.abs(), scale);
        }
    }
    let d = -extreme / 32.0;
    let multiples = scales.map(|scale| nearest_int(inverse(d) * scale).clamp(-32, 31));
    store_scales(d, |j| multiples[j], y);
    let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(y[CODES_AT..].chunks_exact_mut(SUB_LEN / 2));
    for (multiple, (x, codes)) in multiples.into_iter().zip(subs) {
        store(x, inverse(d * multiple as f32), codes);
    }
}

/// Writes `d` and the multiple of it that each sub-block has, less 32.
#[inline(always)]
fn store_scales(d: f32, multiple: impl Fn(usize) -> i32, y: &mut [u8]) {
    let mut high = 0u16;
    y[LOW_AT..CODES_AT].fill(0);
    for j in 0..SUBS {
        let scale = (multiple(j) + 32) as u8;
        y[LOW_AT + j / 2] |= (scale & 15) << (j % 2 * 4);
        high |= u16::from(scale >> 4) << (2 * j);
    }
    y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
    y[2..4].copy_from_slice(&high.to_le_bytes());
}

/// The multiple of `d` that sub-block `j` of a stored block has.
#[inline(always)]
fn multiple(y: &[u8], j: usize) -> i32 {
    let high = u16::from_le_bytes([y[2], y[3]]);
    let low = i32::from(y[LOW_AT + j / 2] >> (j % 2 * 4) & 15);
    (low | i32::from(high >> (2 * j) & 3) << 4) - 32
}

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl LaneKernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let batch = L::LEN / SUBS;
        let mut padded = [0.0f32; iq4_lanes::MAX_LANES * SUB_LEN];
        for (x, y) in self.0.chunks(batch * LEN).zip(self.1.chunks_mut(batch * BYTES)) {
            let full = block::pad(x, batch * LEN, &mut padded);
            let found = iq4_lanes::search(lanes, full, None);
            let mut scales = [0.0f32; iq4_lanes::MAX_LANES];
            lanes.store(found.scale, &mut scales);
            let valid = lanes.bits(found.valid);
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            for (index, ((x, y), scales)) in blocks.zip(scales.as_chunks::<SUBS>().0).enumerate() {
                if valid >> (index * SUBS) & 0xff == 0xff {
                    write_block(x, scales, y, |x, inverse, y| iq4_lanes::store_codes(lanes, x, inverse, y));
                } else {
                    Iq4Xs::encode_block_scalar(x, y);
                }
            }
        }
    }
}

/// Encodes whole rows, with errors weighed by the importance of columns.
struct EncodeWeighted<'a>(&'a [f32], &'a [f32], &'a mut [u8]);

impl LaneKernel for EncodeWeighted<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self(importance, src, dst) = self;
        let batch_blocks = L::LEN / SUBS;
        let mut padded = [0.0f32; iq4_lanes::MAX_LANES * SUB_LEN];
        let mut weights = padded;
        let batches = src.chunks(batch_blocks * LEN).zip(dst.chunks_mut(batch_blocks * BYTES));
        for (batch, (x, y)) in batches.enumerate() {
            let first = batch * batch_blocks;
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            batch_weights::<L, LEN>(lanes, x, first, importance, 2.0 / LEN as f32, &mut weights);
            let found = iq4_lanes::search(lanes, full, Some(&weights));
            let mut scales = [0.0f32; iq4_lanes::MAX_LANES];
            lanes.store(found.scale, &mut scales);
            let valid = lanes.bits(found.valid);
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            for (index, ((x, y), scales)) in blocks.zip(scales.as_chunks::<SUBS>().0).enumerate() {
                if valid >> (index * SUBS) & 0xff == 0xff {
                    write_block(x, scales, y, |x, inverse, y| iq4_lanes::store_codes(lanes, x, inverse, y));
                } else {
                    Iq4Xs::encode_row_weighted_scalar(of_block::<LEN>(importance, first + index), x, y);
                }
            }
        }
    }
}

impl Block for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let mut scales = [0.0f32; SUBS];
        for (scale, x) in scales.iter_mut().zip(x.chunks_exact(SUB_LEN)) {
            *scale = search(x);
        }
        write_block(x, &scales, y, |x, inverse, y| store_codes(x, inverse, y));
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted(importance, src, dst));
    }

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            let m = sum_squares(x) * (2.0 / LEN as f32);
            let subs = x.chunks_exact(SUB_LEN).zip(importance.chunks_exact(SUB_LEN));
            let mut scales = [0.0f32; SUBS];
            for (scale, (x, importance)) in scales.iter_mut().zip(subs) {
                *scale = search_weighted(x, &error_weights(x, importance, m));
            }
            write_block(x, &scales, y, |x, inverse, y| store_codes(x, inverse, y));
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 16, even: false });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        for (codes, y) in
            codes.as_chunks::<SUB_LEN>().0.iter().zip(y[CODES_AT..].chunks_exact_mut(SUB_LEN / 2))
        {
            pack_4_bits(codes, y);
        }
    }

    const TWO_LEVELS: Option<TwoLevels> =
        Some(TwoLevels { sub_len: SUB_LEN, scales: (-32, 31), top_min: 0, units: Units::Table(&LEVELS) });

    fn block_scales(y: &[u8]) -> Scales {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let mut scales = Scales { d, ..Scales::default() };
        (0..SUBS).for_each(|j| scales.scales[j] = multiple(y, j) as i16);
        scales
    }

    fn put_block_scales(scales: &Scales, y: &mut [u8]) {
        store_scales(scales.d, |j| i32::from(scales.scales[j]), y);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let subs = x.chunks_exact_mut(SUB_LEN).zip(y[CODES_AT..].chunks_exact(SUB_LEN / 2));
        for (j, (x, codes)) in subs.enumerate() {
            load_values(codes, d * multiple(y, j) as f32, x);
        }
    }
}
