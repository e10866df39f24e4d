//! Codecs for groups of any length, made when they are asked for: a group per row, or a length that only
//! other people's checkpoints have.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::awq::Awq;
use super::compressed::{Asymmetric, Symmetric};
use super::gptq::Gptq;
use super::number::{Bf16, F16, F32, Number};
use super::{CT, Int4, Scheme, three_parts, two_parts};
use crate::codec::Codec;
use crate::dtype::Dtype;

/// Number format of the scales: the weights' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChannelScale {
    /// Of BF16 weights.
    Bf16,
    /// Of F16 weights.
    F16,
    /// Of F32 weights.
    F32,
}

/// Rows of 100, which do not fill the last word, stand for all lengths in the registry.
pub(super) const SYMMETRIC_100: Int4<Symmetric<Bf16>> =
    Int4::new("ct_int4_channel_100", 100, const { &two_parts(CT, 100, Dtype::BF16) });
/// As above, with zero points.
pub(super) const ASYMMETRIC_100: Int4<Asymmetric<Bf16>> =
    Int4::new("ct_int4_asym_channel_100", 100, const { &three_parts(CT, 100, Dtype::BF16) });

/// Makes a codec of a name and a group length.
type Maker = fn(&'static str, usize) -> &'static dyn Codec;

/// What stands before and after the group length in a name, and what makes the codec.
const MAKERS: &[(&str, &str, Maker)] = &[
    ("ct_int4_channel_", "", make::<Symmetric<Bf16>>),
    ("ct_int4_channel_", "_f16", make::<Symmetric<F16>>),
    ("ct_int4_channel_", "_f32", make::<Symmetric<F32>>),
    ("ct_int4_asym_channel_", "", make::<Asymmetric<Bf16>>),
    ("ct_int4_asym_channel_", "_f16", make::<Asymmetric<F16>>),
    ("ct_int4_asym_channel_", "_f32", make::<Asymmetric<F32>>),
    ("ct_int4_g", "", make::<Symmetric<Bf16>>),
    ("ct_int4_g", "_f16", make::<Symmetric<F16>>),
    ("ct_int4_g", "_f32", make::<Symmetric<F32>>),
    ("ct_int4_asym_g", "", make::<Asymmetric<Bf16>>),
    ("ct_int4_asym_g", "_f16", make::<Asymmetric<F16>>),
    ("ct_int4_asym_g", "_f32", make::<Asymmetric<F32>>),
    ("gptq_int4_g", "", make::<Gptq<true>>),
    ("gptq_int4_asym_g", "", make::<Gptq<false>>),
    ("awq_int4_g", "", make::<Awq>),
];

/// Codecs that were asked for, by name: they live as long as the program.
static MADE: Mutex<BTreeMap<String, &'static dyn Codec>> = Mutex::new(BTreeMap::new());

/// The compressed-tensors format with strategy `channel` for rows of `cols` weights: one scale (and zero point, when
/// not `symmetric`) per row. Its name has the length in it: `ct_int4_channel_7168`.
///
/// # Panics
/// When `cols` is 0 or 2^32 and more.
pub fn int4_channel(cols: usize, symmetric: bool, scale: ChannelScale) -> &'static dyn Codec {
    let kind = if symmetric { "ct_int4_channel" } else { "ct_int4_asym_channel" };
    let suffix = match scale {
        ChannelScale::Bf16 => "",
        ChannelScale::F16 => "_f16",
        ChannelScale::F32 => "_f32",
    };
    find(&format!("{kind}_{cols}{suffix}")).unwrap_or_else(|| panic!("rows of {cols} weights"))
}

/// Finds the codec that a name like `ct_int4_channel_7168` or `gptq_int4_g256` stands for.
pub(in crate::codec) fn find(name: &str) -> Option<&'static dyn Codec> {
    let name = name.to_ascii_lowercase();
    MAKERS.iter().find_map(|&(prefix, suffix, make)| {
        let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        let group_len: usize = digits.parse().ok().filter(|&len| len > 0 && len < 1 << 32)?;
        if group_len.to_string() != digits {
            return None;
        }
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let codec = made
            .entry(name.clone())
            .or_insert_with(|| make(Box::leak(name.clone().into_boxed_str()), group_len));
        Some(*codec)
    })
}

fn make<S: Scheme>(name: &'static str, group_len: usize) -> &'static dyn Codec {
    let parts = three_parts(S::PARTS, group_len, S::Scale::FORMAT.dtype());
    let parts = &*Box::leak(Box::new(parts));
    let parts = if S::HAS_ZERO { &parts[..] } else { &parts[..2] };
    Box::leak(Box::new(Int4::<S>::new(name, group_len, parts)))
}
