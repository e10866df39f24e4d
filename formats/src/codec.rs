//! Block codecs: f32 rows to stored bytes and back.
//!
//! A codec quantizes a row of f32 weights group by group. What it writes for one group
//! goes to one or more *parts*: a GGUF block keeps scale and codes together (one part),
//! MLX keeps codes, scales and biases in three tensors (three parts). Rows are
//! independent, so rows can be encoded in any order and on any thread.
//!
//! A new format is one file in `codec/` and one line in [`CODECS`].

mod affine;
mod block;
mod block32;
mod codebook;
mod codebook_lanes;
mod codebook_search;
mod ct_mxfp4;
mod ct_nvfp4;
mod e2m1;
pub mod fp8;
mod grid;
mod importance;
mod int4;
mod iq1;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4;
mod iq4_lanes;
mod iq4_nl;
mod iq4_xs;
mod mlx_fp;
mod mlx_mode;
mod mlx_mxfp4;
mod mlx_mxfp8;
mod mlx_nvfp4;
mod mxfp4;
mod nvfp4;
mod plain;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q3_k_lanes;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod scale_min;
mod scale_min_encode;
mod scale_min_search;
mod scale_search;
mod ternary;
mod tq1_0;
mod tq2_0;
mod two_bits;
mod two_levels;

pub use grid::Grid;
pub use int4::{ChannelScale, int4_channel};
pub use mlx_mode::MlxMode;
pub use plain::{round_to_bf16, round_to_f16};
pub use two_levels::{MAX_SUBS, Scales, TwoLevels, Units};

use crate::dtype::Dtype;

/// One of the byte streams a codec writes: a tensor of its own in the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Suffix in the artifact: `"weight"`, `"scales"`, `"biases"`.
    pub name: &'static str,
    /// Element type of this part where the container needs one (`U8` for opaque blocks).
    pub dtype: Dtype,
    /// Bytes written for one group of [`Codec::group_len_elems`] weights.
    pub bytes_per_group: usize,
}

/// The codes that a weight can have under the scales of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// How many there are.
    pub codes: usize,
    /// Whether what they stand for rises or falls by one step from each to the next.
    pub even: bool,
}

/// Encoder and decoder of one block format.
///
/// `encode` and `decode` are the fast versions; `encode_scalar` and `decode_scalar` are
/// the plain ones they are tested against, and must give the same bytes.
///
/// # Panics
/// All four panic when a length is not a whole number of groups or when the lengths of
/// the slices do not agree: sizes are checked when a plan is made, so this is a bug of
/// the caller, never a property of a file.
pub trait Codec: Sync {
    /// The field's name for the format: `"Q4_K"`, `"BF16"`, `"affine4_g64"`.
    fn name(&self) -> &'static str;
    /// Weights in a group: a row's length must be a multiple of this.
    fn group_len_elems(&self) -> usize;
    /// The byte streams, in the order in which `encode` and `decode` take them.
    fn parts(&self) -> &'static [Part];
    /// Encodes whole groups of `src` into one slice per part.
    fn encode(&self, src: &[f32], dst: &mut [&mut [u8]]);
    /// Decodes one slice per part into whole groups of `dst`.
    fn decode(&self, src: &[&[u8]], dst: &mut [f32]);
    /// The factor on all scales of a tensor, for formats that have one (NVFP4), from the tensor's
    /// largest magnitude. `encode` and `decode` take it to be 1.
    fn tensor_scale(&self, max_abs: f32) -> Option<f32> {
        let _ = max_abs;
        None
    }
    /// As `encode`, under a factor from [`Codec::tensor_scale`].
    fn encode_under(&self, tensor_scale: f32, src: &[f32], dst: &mut [&mut [u8]]) {
        let _ = tensor_scale;
        self.encode(src, dst);
    }
    /// As `decode`, under the factor with which the tensor was encoded.
    fn decode_under(&self, tensor_scale: f32, src: &[&[u8]], dst: &mut [f32]) {
        let _ = tensor_scale;
        self.decode(src, dst);
    }
    /// As `decode_under`, where that rounds the products of codes and scales to the scales' number format, without that rounding.
    fn decode_unrounded(&self, tensor_scale: f32, src: &[&[u8]], dst: &mut [f32]) {
        self.decode_under(tensor_scale, src, dst);
    }
    /// Whether the format can weigh errors by the importance of their column: [`Codec::encode_weighted`] then gives
    /// other bytes than [`Codec::encode`].
    fn weighs(&self) -> bool {
        false
    }
    /// Encodes rows of as many weights as `importance` has: an error in column `i` counts `importance[i]` times.
    /// Every importance is a number, not negative.
    fn encode_weighted(&self, importance: &[f32], src: &[f32], dst: &mut [&mut [u8]]) {
        let _ = importance;
        self.encode(src, dst);
    }
    /// The naive version of [`Codec::encode_weighted`]: same bytes, written to be read.
    fn encode_weighted_scalar(&self, importance: &[f32], src: &[f32], dst: &mut [&mut [u8]]) {
        let _ = importance;
        self.encode_scalar(src, dst);
    }
    /// Group number `group` of encoded `src` as multiples of a step, for formats whose groups are; its codes go
    /// to `codes`, which has the length of a group.
    fn grid<'a>(&self, src: &[&[u8]], group: usize, codes: &'a mut [u8]) -> Option<Grid<'a>> {
        let _ = (src, group, codes);
        None
    }
    /// Encodes one group exactly; says no, and leaves `dst` alone, when the format cannot hold it.
    fn encode_grid(&self, grid: Grid<'_>, dst: &mut [&mut [u8]]) -> bool {
        let _ = (grid, dst);
        false
    }
    /// Group number `group` of encoded `src` as 4-bit floats (e2m1) under a power of two, for formats whose groups are: the codes go
    /// to `codes`, which has the length of a group. Returns the power's byte, 127 for 1.
    fn powers(&self, src: &[&[u8]], group: usize, codes: &mut [u8]) -> Option<u8> {
        let _ = (src, group, codes);
        None
    }
    /// Encodes one such group as it is; says no, and leaves `dst` alone, when the format cannot hold it.
    fn encode_powers(&self, power: u8, codes: &[u8], dst: &mut [&mut [u8]]) -> bool {
        let _ = (power, codes, dst);
        false
    }
    /// The codes of a weight, for formats in which they can be set one by one while the scales of their group stay.
    fn ladder(&self) -> Option<Ladder> {
        None
    }
    /// Replaces all codes of one encoded group, each below [`Ladder::codes`]; `dst` is the group's.
    fn put_codes(&self, codes: &[u8], dst: &mut [&mut [u8]]) {
        let _ = (codes, dst);
    }
    /// How scales of sub-blocks hang together, for formats with scales of two levels and a [`Codec::ladder`].
    fn two_levels(&self) -> Option<TwoLevels> {
        None
    }
    /// The scales of one encoded group, where there are [`Codec::two_levels`].
    fn scales(&self, src: &[&[u8]]) -> Scales {
        let _ = src;
        Scales::default()
    }
    /// Replaces the scales of one encoded group; `d` and `dmin` are halves, and multiples within their range.
    fn put_scales(&self, scales: &Scales, dst: &mut [&mut [u8]]) {
        let _ = (scales, dst);
    }
    /// The naive encoder: same bytes as `encode`, written to be read.
    fn encode_scalar(&self, src: &[f32], dst: &mut [&mut [u8]]);
    /// The naive decoder: same values as `decode`, written to be read.
    fn decode_scalar(&self, src: &[&[u8]], dst: &mut [f32]);
}

/// Every codec. Help texts, benches and the conformance suite iterate this slice.
pub const CODECS: &[&dyn Codec] = &concat::<{ len(FAMILIES) }>(FAMILIES);

/// The tables that make up [`CODECS`].
const FAMILIES: &[&[&dyn Codec]] =
    &[SINGLE, affine::AFFINE, mlx_mxfp4::CODECS, mlx_nvfp4::CODECS, mlx_mxfp8::CODECS, int4::INT4];

/// Codecs that are one entry each.
const SINGLE: &[&dyn Codec] = &[
    // Single numbers.
    &plain::F32,
    &plain::F16,
    &plain::BF16,
    &fp8::F8E4M3,
    &fp8::F8E5M2,
    // GGUF blocks of 32, of 64, and of 128.
    &q8_0::Q8_0,
    &q5_1::Q5_1,
    &q5_0::Q5_0,
    &q4_1::Q4_1,
    &q4_0::Q4_0,
    &iq4_nl::Iq4Nl,
    &mxfp4::Mxfp4,
    &nvfp4::Nvfp4,
    &q2_0::Q2,
    &q1_0::Q1,
    // GGUF super-blocks of 256.
    &q6_k::Q6K,
    &q5_k::Q5K,
    &q4_k::Q4K,
    &iq4_xs::Iq4Xs,
    &q3_k::Q3K,
    &q2_k::Q2K,
    &iq3_s::Iq3S,
    &iq3_xxs::Iq3Xxs,
    &iq2_s::Iq2S,
    &iq2_xs::Iq2Xs,
    &iq2_xxs::Iq2Xxs,
    &tq2_0::Tq2,
    &iq1_m::Iq1M,
    &tq1_0::Tq1,
    &iq1_s::Iq1S,
    // Groups of compressed-tensors with 4-bit floats.
    &ct_nvfp4::CtNvfp4,
    &ct_mxfp4::CtMxfp4,
];

/// Entries of all tables together.
const fn len(tables: &[&[&'static dyn Codec]]) -> usize {
    let (mut len, mut table) = (0, 0);
    while table < tables.len() {
        len += tables[table].len();
        table += 1;
    }
    len
}

/// Joins tables.
const fn concat<const LEN: usize>(tables: &[&[&'static dyn Codec]]) -> [&'static dyn Codec; LEN] {
    let mut joined = [tables[0][0]; LEN];
    let (mut at, mut table) = (0, 0);
    while table < tables.len() {
        let mut row = 0;
        while row < tables[table].len() {
            joined[at] = tables[table][row];
            (at, row) = (at + 1, row + 1);
        }
        table += 1;
    }
    joined
}

/// Finds a codec by name, ignoring case. Beside the registry it knows the int4 formats with groups of any length,
/// `gptq_int4_g256`, and with one group per row, `ct_int4_channel_7168`.
pub fn find(name: &str) -> Option<&'static dyn Codec> {
    let registered = CODECS.iter().copied().find(|codec| codec.name().eq_ignore_ascii_case(name));
    registered.or_else(|| int4::find_made(name))
}

/// Bytes that `len_elems` weights take in part `part` of `codec`.
pub fn part_len_bytes(codec: &dyn Codec, part: usize, len_elems: u64) -> u64 {
    len_elems / codec.group_len_elems() as u64 * codec.parts()[part].bytes_per_group as u64
}
