//! How Q2_K and Q3_K store two bits of each weight of a super-block.
//!
//! 64 bytes, 32 for each half of the super-block: byte `i` holds the bits of weights `i`,
//! `i + 32`, `i + 64` and `i + 96` of its half from the lowest bits up.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q2_K_ref`.

/// Weights in a super-block.
pub(super) const LEN: usize = 256;
/// Weights in a sub-block.
pub(super) const SUB_LEN: usize = 16;
/// Sub-blocks in a super-block.
pub(super) const SUBS: usize = LEN / SUB_LEN;
/// Bytes of the codes.
pub(super) const BYTES: usize = LEN / 4;
/// Weights that share their bytes.
const HALF_LEN: usize = LEN / 2;
/// Distance of the weights that share a byte.
pub(super) const ROW_LEN: usize = 32;

/// Stores codes that are all below four.
#[inline(always)]
pub(super) fn pack(codes: &[u8; LEN], y: &mut [u8]) {
    for (codes, y) in codes.chunks_exact(HALF_LEN).zip(y.chunks_exact_mut(ROW_LEN)) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = codes[i]
                | codes[i + ROW_LEN] << 2
                | codes[i + 2 * ROW_LEN] << 4
                | codes[i + 3 * ROW_LEN] << 6;
        }
    }
}

/// The codes that [`pack`] stored.
#[inline(always)]
pub(super) fn unpack(y: &[u8]) -> [u8; LEN] {
    let mut codes = [0; LEN];
    for (codes, y) in codes.chunks_exact_mut(HALF_LEN).zip(y.chunks_exact(ROW_LEN)) {
        for (row, codes) in codes.chunks_exact_mut(ROW_LEN).enumerate() {
            for (code, y) in codes.iter_mut().zip(y) {
                *code = y >> (2 * row) & 3;
            }
        }
    }
    codes
}
