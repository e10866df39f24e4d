//! SHA-256's compression function with the SHA extensions of x86-64, over one or two messages at once.
//!
//! `sha256rnds2` takes several cycles until its result is there, and each needs that of the one before: one
//! message leaves the unit idle most of the time. A second message fills the gaps.
#![expect(unsafe_code, reason = "vector intrinsics; the caller has found that the CPU has them")]

use std::arch::x86_64::*;

/// Round constants, four in a row.
const K: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// One message: its state in the order of the instructions, and sixteen words of the schedule.
#[derive(Clone, Copy)]
struct Lane {
    abef: __m128i,
    cdgh: __m128i,
    words: [__m128i; 4],
}

/// Whether this CPU has the instructions.
#[inline]
pub(super) fn is_here() -> bool {
    std::is_x86_feature_detected!("sha")
        && std::is_x86_feature_detected!("ssse3")
        && std::is_x86_feature_detected!("sse4.1")
}

/// Compresses as many blocks of each message as the shortest has.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[[u8; 64]]; N]) {
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    let mut lanes =
        [Lane { abef: _mm_setzero_si128(), cdgh: _mm_setzero_si128(), words: [_mm_setzero_si128(); 4] }; N];
    for (lane, state) in lanes.iter_mut().zip(&states) {
        unpack(lane, state);
    }
    for block in 0..count {
        let before = lanes;
        for (lane, blocks) in lanes.iter_mut().zip(&blocks) {
            load(lane, &blocks[block]);
        }
        // Written out, so that every index is a constant and all words stay in registers.
        rounds::<0, N>(&mut lanes);
        rounds::<1, N>(&mut lanes);
        rounds::<2, N>(&mut lanes);
        rounds::<3, N>(&mut lanes);
        rounds::<4, N>(&mut lanes);
        rounds::<5, N>(&mut lanes);
        rounds::<6, N>(&mut lanes);
        rounds::<7, N>(&mut lanes);
        rounds::<8, N>(&mut lanes);
        rounds::<9, N>(&mut lanes);
        rounds::<10, N>(&mut lanes);
        rounds::<11, N>(&mut lanes);
        rounds::<12, N>(&mut lanes);
        rounds::<13, N>(&mut lanes);
        rounds::<14, N>(&mut lanes);
        rounds::<15, N>(&mut lanes);
        for (lane, before) in lanes.iter_mut().zip(before) {
            lane.abef = _mm_add_epi32(lane.abef, before.abef);
            lane.cdgh = _mm_add_epi32(lane.cdgh, before.cdgh);
        }
    }
    for (lane, state) in lanes.iter().zip(states) {
        pack(lane, state);
    }
}

/// Rounds `4 R` to `4 R + 3` of every message, in turn.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn rounds<const R: usize, const N: usize>(lanes: &mut [Lane; N]) {
    let constants = K[R];
    let [k0, k1, k2, k3] = constants.map(u32::cast_signed);
    let k = _mm_set_epi32(k3, k2, k1, k0);
    for lane in lanes {
        if R >= 4 {
            let [old, older, recent, last] = [0, 1, 2, 3].map(|at| lane.words[(R + at) % 4]);
            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(old, older), _mm_alignr_epi8::<4>(last, recent));
            lane.words[R % 4] = _mm_sha256msg2_epu32(sum, last);
        }
        let sum = _mm_add_epi32(lane.words[R % 4], k);
        lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, sum);
        lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32::<0x0e>(sum));
    }
}

/// The words of a block, which are big-endian.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn load(lane: &mut Lane, block: &[u8; 64]) {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    for (words, bytes) in lane.words.iter_mut().zip(block.as_chunks::<16>().0) {
        // SAFETY: `bytes` has sixteen bytes.
        *words = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }, swap);
    }
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn unpack(lane: &mut Lane, state: &[u32; 8]) {
    let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
    lane.abef = _mm_set_epi32(a, b, e, f);
    lane.cdgh = _mm_set_epi32(c, d, g, h);
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn pack(lane: &Lane, state: &mut [u32; 8]) {
    let words = |vector: __m128i| {
        [
            _mm_extract_epi32::<3>(vector),
            _mm_extract_epi32::<2>(vector),
            _mm_extract_epi32::<1>(vector),
            _mm_extract_epi32::<0>(vector),
        ]
        .map(i32::cast_unsigned)
    };
    let ([a, b, e, f], [c, d, g, h]) = (words(lane.abef), words(lane.cdgh));
    *state = [a, b, c, d, e, f, g, h];
}
