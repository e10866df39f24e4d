//! Q5_1: 32 weights as 5-bit codes with a scale and a minimum.
//!
//! ```text
//! m = min x      d = (max x - m) / 31
//! q_i = trunc((x_i - m) * (1 / d) + 0.5)      x_i ~ d * q_i + m
//! ```
//!
//! Codes use the `f32` scale and minimum; both are then stored as halves. 24 bytes: `d`
//! (f16), `m` (f16), a u32 whose bit `i` is the top bit of code `i`, 16 bytes of lower bits:
//! byte `i` holds weight `i` in its low and weight `i + 16` in its high nibble.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q5_1_ref`.

use super::Ladder;
use super::block::Block;
use super::block32::{LEN, pack_5_bits, range, store_5_bits, unpack_5_bits};
use super::grid::{Grid, exact_f16};
use super::importance::{error_weights, sum_squares};
use super::scale_min::weighted_search;
use super::scale_min_search::{Search, search_weighted};
use crate::dispatch::{self, Kernel, LaneKernel, Lanes};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, truncate};

const BYTES: usize = 24;

const WEIGHTED_SEARCH: Search = weighted_search(31);

/// The codec; see the module.
pub(super) struct Q5_1;

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl LaneKernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let blocks = self.0.as_chunks::<LEN>().0.iter();
        for (x, y) in blocks.zip(self.1.as_chunks_mut::<BYTES>().0) {
            let Some(range) = range(lanes, x) else {
                Q5_1::encode_block_scalar(x, y);
                continue;
            };
            let d = (range.max - range.min) / 31.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            // A subnormal scale, or a range beyond f32: codes out of range.
            if inverse.is_infinite() || d.is_infinite() {
                Q5_1::encode_block_scalar(x, y);
                continue;
            }
            y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
            y[2..4].copy_from_slice(&f32_to_f16_bits(range.min).to_le_bytes());
            store_5_bits(lanes, x, lanes.splat(range.min), inverse, 0.5, &mut y[4..]);
        }
    }
}

struct Decode<'a>(&'a [u8], &'a mut [f32]);

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let blocks = self.0.as_chunks::<BYTES>().0.iter();
        for (y, x) in blocks.zip(self.1.as_chunks_mut::<LEN>().0) {
            let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
            let m = f16_bits_to_f32(u16::from_le_bytes([y[2], y[3]]));
            let codes = unpack_5_bits(&y[4..]);
            for i in 0..LEN {
                x[i] = f32::from(codes[i]) * d + m;
            }
        }
    }
}

impl Block for Q5_1 {
    const NAME: &'static str = "Q5_1";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        dispatch::run(Decode(src, dst));
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let (mut min, mut max) = (f32::MAX, f32::MIN);
        for &v in x {
            if v < min {
                min = v;
            }
            if v > max {
                max = v;
            }
        }
        let d = (max - min) / 31.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        y[2..4].copy_from_slice(&f32_to_f16_bits(min).to_le_bytes());
        let mut codes = [0u8; LEN];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = truncate((v - min) * inverse + 0.5) as u8;
        }
        pack_5_bits(&codes, &mut y[4..]);
    }

    const WEIGHS: bool = true;

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let m = sum_squares(x) / x.len() as f32;
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            let weights: [f32; LEN] = error_weights(x, importance, m);
            let mut codes = [0u8; LEN];
            let (d, negated_min) = search_weighted(
                x,
                &weights,
                &WEIGHTED_SEARCH,
                |difference| difference * difference,
                &mut codes,
            );
            y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
            y[2..4].copy_from_slice(&f32_to_f16_bits(-negated_min).to_le_bytes());
            pack_5_bits(&codes, &mut y[4..]);
        }
    }

    fn encode_block_grid(grid: Grid<'_>, y: &mut [u8]) -> bool {
        let (Some(d), Some(m)) = (exact_f16(grid.step), exact_f16(grid.lowest())) else { return false };
        y[..2].copy_from_slice(&d.to_le_bytes());
        y[2..4].copy_from_slice(&m.to_le_bytes());
        let mut codes = [0; LEN];
        codes.copy_from_slice(grid.codes);
        pack_5_bits(&codes, &mut y[4..]);
        true
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 32, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        let Some(codes) = codes.first_chunk() else { return };
        pack_5_bits(codes, &mut y[4..]);
    }

    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let m = f16_bits_to_f32(u16::from_le_bytes([y[2], y[3]]));
        let top = u32::from_le_bytes([y[4], y[5], y[6], y[7]]);
        for i in 0..LEN / 2 {
            let low = u32::from(y[8 + i] & 15) | (top >> i & 1) << 4;
            let high = u32::from(y[8 + i] >> 4) | (top >> (i + 16) & 1) << 4;
            x[i] = low as f32 * d + m;
            x[LEN / 2 + i] = high as f32 * d + m;
        }
    }
}
