//! Q5_K: super-blocks of 256 weights as 5-bit codes, with a 6-bit scale and minimum for each
//! 32.
//!
//! ```text
//! x_i ~ d * sc_j * q_i - dmin * m_j      q in 0..=31, sc and m in 0..=63
//! ```
//!
//! How scales, minima and codes are found: `scale_min` (16 candidates, from 30.5 to 32 levels
//! over the range). 176 bytes: `d` (f16), `dmin` (f16), 12 bytes of 6-bit numbers; 32 bytes
//! of top bits, where bit `j` of byte `i` belongs to weight `i` of sub-block `j`; then per pair
//! of sub-blocks 32 bytes, the first one's lower bits in the low nibbles.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q5_K_ref`.

use super::block::Block;
use super::scale_min::{
    HEAD_BYTES, Head, LEN, SUB_LEN, SUBS, encode_scalar, encode_weighted_scalar, weighted_search,
};
use super::scale_min_encode::{Encode, EncodeWeighted, Layout, quantize};
use super::scale_min_search::Search;
use super::{Ladder, Scales, TwoLevels};
use crate::dispatch::{self, Kernel, Lanes};

const BYTES: usize = 176;

const SEARCH: Search = Search { top: 31, first: -0.5, step: 0.1, steps: 15 };

const WEIGHTED_SEARCH: Search = weighted_search(SEARCH.top);

/// The codec; see the module.
pub(super) struct Q5K;

/// Writes opening bytes and codes.
fn write_block((head, codes): &([u8; HEAD_BYTES], [u8; LEN]), y: &mut [u8]) {
    y[..HEAD_BYTES].copy_from_slice(head);
    pack_codes(codes, &mut y[HEAD_BYTES..]);
}

/// Stores the codes of a super-block.
fn pack_codes(codes: &[u8], y: &mut [u8]) {
    let (top_bits, low_bits) = y.split_at_mut(SUB_LEN);
    top_bits.fill(0);
    low_bits.fill(0);
    for (i, code) in codes.iter().enumerate() {
        let (j, i) = (i / SUB_LEN, i % SUB_LEN);
        top_bits[i] |= code >> 4 << j;
        low_bits[j / 2 * SUB_LEN + i] |= (code & 15) << (j % 2 * 4);
    }
}

impl Layout for Q5K {
    const SEARCH: &'static Search = &SEARCH;
    const WEIGHTED_SEARCH: &'static Search = &WEIGHTED_SEARCH;
    const CLAMPS: bool = true;

    #[inline(always)]
    fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], head: &Head, y: &mut [u8]) {
        let sixteen = lanes.splat(16.0);
        let (top_bits, low_bits) = y.split_at_mut(SUB_LEN);
        for at in (0..SUB_LEN).step_by(L::LEN) {
            // Bytes are summed as floats, where all of 0..256 is exact.
            let mut top = lanes.splat(255.0);
            for pair in 0..SUBS / 2 {
                let mut nibbles = lanes.splat(0.0);
                for half in 0..2 {
                    let j = 2 * pair + half;
                    let code = quantize(lanes, x, head, 31.0, j, at);
                    let small = lanes.lt(code, sixteen);
                    let bit = lanes.splat((1u32 << j) as f32);
                    top = top - lanes.select(small, bit, lanes.splat(0.0));
                    let nibble = lanes.select(small, code, code - sixteen);
                    nibbles = nibbles + if half == 0 { nibble } else { nibble * sixteen };
                }
                lanes.store_bytes(nibbles, &mut low_bits[pair * SUB_LEN + at..]);
            }
            lanes.store_bytes(top, &mut top_bits[at..]);
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
            let Some((bytes, codes)) = y.split_first_chunk() else { return };
            let Some((top, codes)) = codes.split_first_chunk::<SUB_LEN>() else { return };
            let head = Head::decode(*bytes);
            let pairs = x.as_chunks_mut::<{ 2 * SUB_LEN }>().0.iter_mut();
            for (pair, (x, codes)) in pairs.zip(codes.as_chunks::<SUB_LEN>().0).enumerate() {
                let (low, high) = x.split_at_mut(SUB_LEN);
                for i in 0..SUB_LEN {
                    let (codes, top) = (i32::from(codes[i]), i32::from(top[i]) >> (2 * pair));
                    let (code_low, code_high) = (codes & 15 | (top & 1) << 4, codes >> 4 | (top & 2) << 3);
                    low[i] = head.scales[2 * pair] * code_low as f32 - head.mins[2 * pair];
                    high[i] = head.scales[2 * pair + 1] * code_high as f32 - head.mins[2 * pair + 1];
                }
            }
        }
    }
}

impl Block for Q5K {
    const NAME: &'static str = "Q5_K";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode::<Self>::new(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        dispatch::run(Decode(src, dst));
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        write_block(&encode_scalar(x, &SEARCH), y);
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted::<Self>::new(importance, src, dst));
    }

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            write_block(&encode_weighted_scalar(x, importance, &WEIGHTED_SEARCH, Self::CLAMPS), y);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 32, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        pack_codes(codes, &mut y[HEAD_BYTES..]);
    }

    const TWO_LEVELS: Option<TwoLevels> = Some(Head::TWO_LEVELS);

    fn block_scales(y: &[u8]) -> Scales {
        Head::scales_of(y)
    }

    fn put_block_scales(scales: &Scales, y: &mut [u8]) {
        Head::put_scales(scales, y);
    }

    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let Some((bytes, codes)) = y.split_first_chunk() else { return };
        let (top_bits, low_bits) = codes.split_at(SUB_LEN);
        let head = Head::decode(*bytes);
        for (i, v) in x.iter_mut().enumerate() {
            let (j, i) = (i / SUB_LEN, i % SUB_LEN);
            let low = low_bits[j / 2 * SUB_LEN + i] >> (j % 2 * 4) & 15;
            let code = low | (top_bits[i] >> j & 1) << 4;
            *v = head.scales[j] * f32::from(code) - head.mins[j];
        }
    }
}
