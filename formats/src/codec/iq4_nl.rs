//! IQ4_NL: 32 weights as codes of sixteen unevenly spaced levels with one scale.
//!
//! ```text
//! d = the searched scale (`iq4`)      q_i = the level nearest to x_i * (1 / d)
//! x_i ~ d * levels[q_i]
//! ```
//!
//! Codes use the `f32` scale; the scale is then stored as a half. 18 bytes: `d` (f16), 16 bytes
//! of codes: byte `i` holds weight `i` in its low and weight `i + 16` in its high nibble.
//! The vector encoder (`iq4_lanes`) works on as many blocks as there are lanes.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_iq4_nl` (which searches, unlike
//! `quantize_row_iq4_nl_ref`; files are made with the former).

use super::Ladder;
use super::block::{self, Block};
use super::block32::{LEN, pack_4_bits};
use super::importance::{batch_weights, error_weights, of_block, sum_squares};
use super::iq4::{inverse, load_values, search, search_weighted, store_codes};
use super::iq4_lanes;
use crate::dispatch::{self, LaneKernel, Lanes};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 18;

/// The codec; see the module.
pub(super) struct Iq4Nl;

/// Writes a block with scale `d`.
fn write_block(x: &[f32], d: f32, y: &mut [u8]) {
    y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
    store_codes(x, inverse(d), &mut y[2..]);
}

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl LaneKernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mut padded = [0.0f32; iq4_lanes::MAX_LANES * LEN];
        for (x, y) in self.0.chunks(L::LEN * LEN).zip(self.1.chunks_mut(L::LEN * BYTES)) {
            let full = block::pad(x, L::LEN * LEN, &mut padded);
            let found = iq4_lanes::search(lanes, full, None);
            let mut scales = [0.0f32; iq4_lanes::MAX_LANES];
            lanes.store(found.scale, &mut scales);
            let valid = lanes.bits(found.valid);
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            for (index, ((x, y), d)) in blocks.zip(scales).enumerate() {
                if valid >> index & 1 == 0 {
                    Iq4Nl::encode_block_scalar(x, y);
                    continue;
                }
                y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
                iq4_lanes::store_codes(lanes, x, inverse(d), &mut y[2..]);
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
        let mut padded = [0.0f32; iq4_lanes::MAX_LANES * LEN];
        let mut weights = padded;
        let batches = src.chunks(L::LEN * LEN).zip(dst.chunks_mut(L::LEN * BYTES));
        for (batch, (x, y)) in batches.enumerate() {
            let first = batch * L::LEN;
            let full = block::pad(x, L::LEN * LEN, &mut padded);
            batch_weights::<L, LEN>(lanes, x, first, importance, 2.0 / LEN as f32, &mut weights);
            let found = iq4_lanes::search(lanes, full, Some(&weights));
            let mut scales = [0.0f32; iq4_lanes::MAX_LANES];
            lanes.store(found.scale, &mut scales);
            let valid = lanes.bits(found.valid);
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            for (index, ((x, y), d)) in blocks.zip(scales).enumerate() {
                if valid >> index & 1 == 0 {
                    Iq4Nl::encode_row_weighted_scalar(of_block::<LEN>(importance, first + index), x, y);
                    continue;
                }
                y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
                iq4_lanes::store_codes(lanes, x, inverse(d), &mut y[2..]);
            }
        }
    }
}

impl Block for Iq4Nl {
    const NAME: &'static str = "IQ4_NL";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        write_block(x, search(x), y);
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted(importance, src, dst));
    }

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            let m = sum_squares(x) * (2.0 / LEN as f32);
            write_block(x, search_weighted(x, &error_weights(x, importance, m)), y);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 16, even: false });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        let Some(codes) = codes.first_chunk() else { return };
        pack_4_bits(codes, &mut y[2..]);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        load_values(&y[2..], f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]])), x);
    }
}
