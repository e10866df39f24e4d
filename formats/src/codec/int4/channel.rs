//! One group per row: a codec for every row length.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::compressed::{Asymmetric, Symmetric};
use super::number::{Bf16, F16, F32};
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

/// Names without the row's length, with what they mean.
const NAMES: &[(&str, bool, ChannelScale, &str)] = &[
    ("ct_int4_channel_", true, ChannelScale::Bf16, ""),
    ("ct_int4_channel_", true, ChannelScale::F16, "_f16"),
    ("ct_int4_channel_", true, ChannelScale::F32, "_f32"),
    ("ct_int4_asym_channel_", false, ChannelScale::Bf16, ""),
    ("ct_int4_asym_channel_", false, ChannelScale::F16, "_f16"),
    ("ct_int4_asym_channel_", false, ChannelScale::F32, "_f32"),
];

/// Codecs that were asked for: they live as long as the program.
static MADE: Mutex<BTreeMap<(usize, bool, ChannelScale), &'static dyn Codec>> = Mutex::new(BTreeMap::new());

/// The compressed-tensors format with strategy `channel` for rows of `cols` weights: one scale (and zero point, when
/// not `symmetric`) per row. Its name has the length in it: `ct_int4_channel_7168`.
///
/// # Panics
/// When `cols` is 0.
pub fn int4_channel(cols: usize, symmetric: bool, scale: ChannelScale) -> &'static dyn Codec {
    assert!(cols > 0, "rows have weights");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    *made.entry((cols, symmetric, scale)).or_insert_with(|| match (symmetric, scale) {
        (true, ChannelScale::Bf16) => make::<Symmetric<Bf16>>(cols, symmetric, scale, Dtype::BF16),
        (true, ChannelScale::F16) => make::<Symmetric<F16>>(cols, symmetric, scale, Dtype::F16),
        (true, ChannelScale::F32) => make::<Symmetric<F32>>(cols, symmetric, scale, Dtype::F32),
        (false, ChannelScale::Bf16) => make::<Asymmetric<Bf16>>(cols, symmetric, scale, Dtype::BF16),
        (false, ChannelScale::F16) => make::<Asymmetric<F16>>(cols, symmetric, scale, Dtype::F16),
        (false, ChannelScale::F32) => make::<Asymmetric<F32>>(cols, symmetric, scale, Dtype::F32),
    })
}

fn make<S: Scheme>(cols: usize, symmetric: bool, scale: ChannelScale, dtype: Dtype) -> &'static dyn Codec {
    let mut rows = NAMES.iter().filter(|row| (row.1, row.2) == (symmetric, scale));
    let name = rows.next().map(|(prefix, .., suffix)| format!("{prefix}{cols}{suffix}")).unwrap_or_default();
    let name = Box::leak(name.into_boxed_str());
    let parts = if symmetric {
        &Box::leak(Box::new(two_parts(CT, cols, dtype)))[..]
    } else {
        &Box::leak(Box::new(three_parts(CT, cols, dtype)))[..]
    };
    Box::leak(Box::new(Int4::<S>::new(name, cols, parts)))
}

/// Finds the codec that a name like `ct_int4_channel_7168` stands for.
pub(in crate::codec) fn find(name: &str) -> Option<&'static dyn Codec> {
    let name = name.to_ascii_lowercase();
    NAMES.iter().find_map(|&(prefix, symmetric, scale, suffix)| {
        let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        let cols: usize = digits.parse().ok().filter(|&cols| cols > 0 && cols < 1 << 32)?;
        (cols.to_string() == digits).then(|| int4_channel(cols, symmetric, scale))
    })
}
