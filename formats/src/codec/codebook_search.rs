//! The search of the IQ2 and IQ3 formats: a scale and points of the codebook for a sub-block of weights without signs.
//!
//! ```text
//! x_i ~ s * (2 l_i + 1)       w_i error weights, top = 2 * levels - 1
//!
//! 1. candidates a = (top + k * step) / m for k in -steps..=steps, m the largest x (or what the format says):
//!    l_i = clamp(round((a * x_i - 1) / 2), 0, levels - 1) for all of a group; where that is no point, the neighbour with
//!    the least sum sqrt(w_i) ((2 l_i + 1) / a - x_i)^2;   A = sum w x (2 l + 1), B = sum w (2 l + 1)^2
//!    taken when A^2 / B exceeds the best so far: s = A / B
//! 2. the same once more with a = 1 / s, for the groups that `Again` says; s = A / B
//! ```
//!
//! Rounding is to nearest, ties to even; sums run from the first weight to the last, in `f32`.
//! Source: llama.cpp, `ggml-quants.c`, the functions `quantize_row_iq2_*_impl`, `quantize_row_iq3_*_impl`,
//! `iq2_find_best_neighbour`.

use super::codebook::{Codebook, Neighbours, Place};
use crate::rounding::nearest_int;

/// Weights in a super-block.
pub(super) const LEN: usize = 256;
/// Weights whose signs share a byte.
pub(super) const SIGNED_LEN: usize = 8;

/// Groups that step 2 rounds again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Those that were no point when they were rounded.
    Others,
    /// All, when there is one of [`Again::Others`].
    AllForOne,
    /// All.
    All,
}

/// What differs between formats.
pub(super) struct Recipe {
    /// Levels of a weight.
    pub(super) levels: i8,
    /// Candidates on either side.
    pub(super) steps: i8,
    /// How far they are apart.
    pub(super) step: f32,
    /// See [`Again`].
    pub(super) again: Again,
}

impl Recipe {
    /// Candidates.
    #[inline(always)]
    pub(super) fn candidates(&self) -> usize {
        2 * self.steps as usize + 1
    }

    /// The largest odd number that stands for a level.
    #[inline(always)]
    pub(super) fn top(&self) -> f32 {
        f32::from(2 * self.levels - 1)
    }
}

/// A scale, and the levels of each weight.
pub(super) struct Found<const SUB: usize> {
    pub(super) scale: f32,
    pub(super) levels: [u8; SUB],
}

/// How sub-blocks are searched: in plain code, or with vectors.
pub(super) trait Searcher: Copy {
    /// Searches a sub-block of `SUB` weights `x`, given `m` and the scale to begin with.
    fn search<const SUB: usize, const N: usize>(
        self,
        book: &Codebook<N>,
        recipe: &Recipe,
        x: &[f32; SUB],
        weights: &[f32; SUB],
        m: f32,
        first: f32,
    ) -> Found<SUB>;
}

/// Plain code.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Searcher for Plain {
    #[inline(always)]
    fn search<const SUB: usize, const N: usize>(
        self,
        book: &Codebook<N>,
        recipe: &Recipe,
        x: &[f32; SUB],
        weights: &[f32; SUB],
        m: f32,
        first: f32,
    ) -> Found<SUB> {
        search(book, recipe, x, weights, m, first)
    }
}

/// A format of super-blocks that are searched in this way.
pub(super) trait Searched {
    /// Bytes of a super-block.
    const BYTES: usize;
    /// Encodes one, with the importance of its columns if there is one.
    fn encode<S: Searcher>(searcher: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]);
}

/// Searches a sub-block of `SUB` weights `x`, given `m` and the scale to begin with.
pub(super) fn search<const SUB: usize, const N: usize>(
    book: &Codebook<N>,
    recipe: &Recipe,
    x: &[f32; SUB],
    weights: &[f32; SUB],
    m: f32,
    first: f32,
) -> Found<SUB> {
    let roots = weights.map(f32::sqrt);
    let groups = SUB / N;
    let mut found = Found { scale: first, levels: [0; SUB] };
    let mut best = 0.0f32;
    // Bit `g` of group `g`.
    let mut others = if recipe.again == Again::AllForOne { u32::MAX } else { 0 };
    for k in -recipe.steps..=recipe.steps {
        let inverse = (recipe.top() + f32::from(k) * recipe.step) / m;
        let mut tried = [0; SUB];
        let mut tried_others = 0;
        for group in 0..groups {
            let is_point = round(book, recipe, group, x, &roots, inverse, 1.0 / inverse, &mut tried);
            tried_others |= u32::from(!is_point) << group;
        }
        let (sum_xl, sum_l2) = sums(x, weights, &tried);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            let scale = sum_xl / sum_l2;
            best = scale * sum_xl;
            found = Found { scale, levels: tried };
            others = tried_others;
        }
    }
    let again = match recipe.again {
        Again::Others => others,
        Again::AllForOne if others == 0 => 0,
        _ => u32::MAX,
    };
    if again != 0 && found.scale > 0.0 {
        let inverse = 1.0 / found.scale;
        for group in (0..groups).filter(|group| again >> group & 1 != 0) {
            round(book, recipe, group, x, &roots, inverse, found.scale, &mut found.levels);
        }
        let (sum_xl, sum_l2) = sums(x, weights, &found.levels);
        if sum_l2 > 0.0 {
            found.scale = sum_xl / sum_l2;
        }
    }
    found
}

/// The levels nearest to the weights of a group.
#[inline(always)]
pub(super) fn levels<const N: usize>(recipe: &Recipe, x: &[f32; N], inverse: f32) -> [u8; N] {
    let last = i32::from(recipe.levels) - 1;
    x.map(|v| nearest_int(0.5 * (inverse * v - 1.0)).clamp(0, last) as u8)
}

/// Rounds a group to a point, and says whether no neighbour was needed.
#[expect(clippy::too_many_arguments, reason = "a step of the search, with its state")]
#[inline(always)]
fn round<const SUB: usize, const N: usize>(
    book: &Codebook<N>,
    recipe: &Recipe,
    group: usize,
    x: &[f32; SUB],
    roots: &[f32; SUB],
    inverse: f32,
    scale: f32,
    levels_of: &mut [u8; SUB],
) -> bool {
    let (x, roots) = (&x.as_chunks::<N>().0[group], &roots.as_chunks::<N>().0[group]);
    let rounded = &mut levels_of.as_chunks_mut::<N>().0[group];
    *rounded = levels(recipe, x, inverse);
    let Place::Neighbours(neighbours) = book.find(rounded) else { return true };
    let error = |point: &[u8; N]| {
        x.iter().zip(roots).zip(point).fold(0.0f32, |sum, ((v, root), level)| {
            let difference = scale * f32::from(2 * level + 1) - v;
            sum + root * difference * difference
        })
    };
    *rounded = *book.point(nearest(&neighbours, |number| error(book.point(number))));
    false
}

/// The first neighbour with the least error. Errors that are no numbers are none; if all are, the first neighbour.
#[inline(always)]
pub(super) fn nearest<const N: usize>(neighbours: &Neighbours<'_, N>, error: impl Fn(u16) -> f32) -> u16 {
    let (mut least, mut best) = (f32::MAX, neighbours.0[0].numbers[0]);
    for number in neighbours.numbers() {
        let error = error(number);
        if error < least {
            (least, best) = (error, number);
        }
    }
    best
}

#[inline(always)]
pub(super) fn sums<const SUB: usize>(x: &[f32; SUB], weights: &[f32; SUB], levels: &[u8; SUB]) -> (f32, f32) {
    x.iter().zip(weights).zip(levels).fold((0.0, 0.0), |(sum_xl, sum_l2), ((&v, &w), level)| {
        let l = f32::from(2 * level + 1);
        (sum_xl + w * v * l, sum_l2 + w * l * l)
    })
}

/// Takes the signs of weights away: bit `i` of byte `j` says that weight `8 j + i` is negative.
#[inline(always)]
pub(super) fn take_signs<const SUB: usize>(x: &[f32; SUB], signs: &mut [u8]) -> [f32; SUB] {
    let mut magnitudes = *x;
    for (magnitudes, signs) in magnitudes.as_chunks_mut::<SIGNED_LEN>().0.iter_mut().zip(signs) {
        *signs = 0;
        for (i, v) in magnitudes.iter_mut().enumerate() {
            // Not a number is negative, too.
            if *v < 0.0 || v.is_nan() {
                *v = -*v;
                *signs |= 1 << i;
            }
        }
    }
    magnitudes
}

/// The same, with an even number of negative weights among eight: where there is an odd one, the sign of the first weight
/// with the least `w x^2` is the wrong one. The sign of the last weight follows from the others and is not stored.
#[inline(always)]
pub(super) fn take_even_signs<const SUB: usize>(
    x: &[f32; SUB],
    weights: &[f32; SUB],
    signs: &mut [u8],
) -> [f32; SUB] {
    let mut magnitudes = take_signs(x, signs);
    let groups = magnitudes.as_chunks_mut::<SIGNED_LEN>().0.iter_mut().zip(x.as_chunks::<SIGNED_LEN>().0);
    let groups = groups.zip(weights.as_chunks::<SIGNED_LEN>().0).zip(signs);
    for (((magnitudes, x), weights), signs) in groups {
        if signs.count_ones() % 2 != 0 {
            let size = |i: usize| weights[i] * x[i] * x[i];
            let (mut least, mut at) = (size(0), 0);
            for i in 1..SIGNED_LEN {
                if size(i) < least {
                    (least, at) = (size(i), i);
                }
            }
            magnitudes[at] = -magnitudes[at];
            *signs ^= 1 << at;
        }
        *signs &= 127;
    }
    magnitudes
}

/// All eight signs of seven stored ones.
#[inline(always)]
pub(super) fn even_signs(stored: u8) -> u8 {
    stored & 127 | ((stored & 127).count_ones() as u8 & 1) << 7
}

/// `x` with a sign.
#[inline(always)]
pub(super) fn signed(x: f32, signs: u8, i: usize) -> f32 {
    x * if signs >> i & 1 != 0 { -1.0 } else { 1.0 }
}

/// The largest of some numbers.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    x[1..].iter().fold(x[0], |largest, &v| if largest > v { largest } else { v })
}

/// The scale of a super-block, of which its sub-blocks' are `2 l + 1` times a half, a quarter, ... as the format has it: `d`,
/// and the `l` of each, at most `last`. None if all are zero.
#[inline(always)]
pub(super) fn scales<const SUBS: usize>(searched: &[f32; SUBS], last: i32) -> Option<(f32, [u8; SUBS])> {
    let largest = searched.iter().fold(0.0, |largest, &scale| if largest > scale { largest } else { scale });
    if largest == 0.0 {
        return None;
    }
    let d = largest / (2 * last + 1) as f32;
    let inverse = 1.0 / d;
    Some((d, searched.map(|scale| nearest_int(0.5 * (inverse * scale - 1.0)).clamp(0, last) as u8)))
}

/// Error weights of a super-block: by the importance of columns, with `m` times the sum of squares over 256, or else what
/// `plain` makes of that and of a weight.
#[inline(always)]
pub(super) fn error_weights(
    x: &[f32; LEN],
    importance: Option<&[f32; LEN]>,
    m: f32,
    plain: impl Fn(f32, f32) -> f32,
) -> [f32; LEN] {
    let m = m * super::importance::sum_squares(x) / LEN as f32;
    match importance {
        Some(importance) => super::importance::error_weights(x, importance, m),
        None => x.map(|v| plain(m, v)),
    }
}
