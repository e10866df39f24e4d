//! Rounding with error feedback, inside any block format whose codes can be set one by one.
//!
//! Columns are rounded one after the other. What a column loses is added, in part, to those that come later, so that the
//! product with typical inputs loses least: GPTQ (arXiv 2210.17323), in the form without an inverse (QuIP, arXiv 2307.13304,
//! theorem 6). With `H` the mean outer product of inputs, columns in the order of work, and `H = N diag(c) N^T` where `N` is upper
//! triangular with ones on its diagonal, the loss of a row is
//!
//! ```text
//! (w - q) H (w - q)^T  =  sum over k of  c_k * (w_k + sum over j < k of (w_j - q_j) * N_jk - q_k)^2
//! ```
//!
//! so `q_k` is the number nearest to the bracket's first two terms. Scales have to be there before the codes of their group: a few
//! are tried that the format's own search finds for what the group's columns want by then, and those that lose least stay.
//!
//! Legend: n columns of a panel, L columns of a group.

use crate::codec::{Codec, Ladder, Scales, TwoLevels};
use crate::dispatch::{self, Kernel};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

mod two_levels;

/// What a group is multiplied with before its scales are searched, for formats that weigh errors: their search is good.
const SEARCHED: &[f32] = &[1.0, 0.985, 1.015, 0.97, 1.03];
/// The same for formats whose scale follows from the group's extremes.
const SPANNED: &[f32] = &[1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6];

/// What the numbers that scales of sub-blocks are multiples of are multiplied with.
const FACTORS: &[f32] = &[1.0, 0.985, 1.015, 0.97, 1.03];

/// Columns that follow each other in the order of work, whole groups.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// `N_jk` for `j < k`, `[n, n]`; other elements do not count.
    pub shares: &'a [f32],
    /// `c_k`.
    pub costs: &'a [f32],
    /// For each column its place in its group.
    pub places: &'a [u16],
    /// For each group its number in the row.
    pub groups: &'a [usize],
}

/// Rounds rows of one tensor.
pub struct Rounder<'a> {
    codec: &'a dyn Codec,
    ladder: Ladder,
    tensor_scale: f32,
    /// Gives weights the precision that the encoder is to see.
    prepare: &'a dyn Fn(&mut Vec<f32>),
    /// The group as it lies in the row: weights, what an error in each costs, codes.
    plain: Vec<f32>,
    scaled: Vec<f32>,
    importance: Vec<f32>,
    codes: Vec<u8>,
    /// Bytes of a group, by part: of the scales that are tried, and of those that lose least.
    tried: Vec<Vec<u8>>,
    best: Vec<Vec<u8>>,
    levels: Levels,
    attempt: Attempt,
    kept: Attempt,
}

/// What the codes of a group stand for, column by column in the order of work.
#[derive(Default)]
struct Levels {
    /// For an even ladder: what code 0 stands for, and the step.
    lowest: Vec<f32>,
    step: Vec<f32>,
    /// Else all values of a column, one column after the other.
    values: Vec<f32>,
    decoded: Vec<f32>,
}

/// The outcome of rounding a group, in the order of work.
#[derive(Default, Clone)]
struct Attempt {
    codes: Vec<u8>,
    errors: Vec<f32>,
    cost: f32,
}

impl<'a> Rounder<'a> {
    /// `None` when the format's codes cannot be set one by one. `tensor_scale` is that of [`Codec::encode_under`].
    pub fn new(codec: &'a dyn Codec, tensor_scale: f32, prepare: &'a dyn Fn(&mut Vec<f32>)) -> Option<Self> {
        let ladder = codec.ladder()?;
        let len = codec.group_len_elems();
        let bytes = || codec.parts().iter().map(|part| vec![0; part.bytes_per_group]).collect();
        Some(Self {
            codec,
            ladder,
            tensor_scale,
            prepare,
            plain: vec![0.0; len],
            scaled: Vec::with_capacity(len),
            importance: vec![0.0; len],
            codes: vec![0; len],
            tried: bytes(),
            best: bytes(),
            levels: Levels::default(),
            attempt: Attempt::default(),
            kept: Attempt::default(),
        })
    }

    /// Rounds the columns of `panel` in one row. `wanted` are their weights, `row` these with what earlier panels have lost
    /// added; `dst` has all groups of the row, one slice per part. What each column loses goes to `errors`.
    pub fn panel(
        &mut self,
        panel: Panel<'_>,
        wanted: &[f32],
        row: &mut [f32],
        dst: &mut [&mut [u8]],
        errors: &mut [f32],
    ) {
        let (n, len) = (wanted.len(), self.plain.len());
        for (number, &group) in panel.groups.iter().enumerate() {
            let first = number * len;
            self.group(panel, first, &wanted[first..first + len], &row[first..first + len]);
            errors[first..first + len].copy_from_slice(&self.kept.errors);
            let later = first + len..n;
            dispatch::run(Spread {
                shares: &panel.shares[first * n..],
                n,
                later,
                errors: &self.kept.errors,
                row,
            });
            for (&code, &place) in self.kept.codes.iter().zip(&panel.places[first..]) {
                self.codes[usize::from(place)] = code;
            }
            let mut parts: Vec<&mut [u8]> = self.best.iter_mut().map(Vec::as_mut_slice).collect();
            self.codec.put_codes(&self.codes, &mut parts);
            for (dst, part) in dst.iter_mut().zip(&self.best) {
                dst[group * part.len()..][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// Finds scales and codes of one group; they are in `best` and `kept` then.
    fn group(&mut self, panel: Panel<'_>, first: usize, wanted: &[f32], row: &[f32]) {
        let len = wanted.len();
        let places = &panel.places[first..first + len];
        let costs = &panel.costs[first..first + len];
        for (at, &place) in places.iter().enumerate() {
            self.plain[usize::from(place)] = row[at];
            self.importance[usize::from(place)] = costs[at];
        }
        self.kept.cost = f32::INFINITY;
        if let Some(levels) = self.codec.two_levels() {
            return self.sub_blocks(&levels, (panel, first), wanted, row);
        }
        let factors = if self.codec.weighs() { SEARCHED } else { SPANNED };
        for (number, factor) in factors.iter().enumerate() {
            self.encode(*factor);
            if number > 0 && self.tried == self.best {
                continue;
            }
            self.levels.read(self.codec, self.ladder, self.tensor_scale, places, &mut self.tried);
            let bound = self.kept.cost;
            let n = panel.costs.len();
            let shares = &panel.shares[first * n + first..];
            dispatch::run(Round {
                ladder: self.ladder,
                levels: &self.levels,
                shares,
                n,
                costs,
                wanted,
                row,
                bound,
                into: &mut self.attempt,
            });
            // The first one stays when nothing can be compared.
            if number == 0 || self.attempt.cost < bound {
                std::mem::swap(&mut self.attempt, &mut self.kept);
                std::mem::swap(&mut self.tried, &mut self.best);
            }
        }
    }

    /// The same where sub-blocks have scales of their own: multiples are chosen anew, for a few numbers that they are
    /// multiples of.
    fn sub_blocks(
        &mut self,
        levels: &TwoLevels,
        (panel, first): (Panel<'_>, usize),
        wanted: &[f32],
        row: &[f32],
    ) {
        self.encode(1.0);
        let parts: Vec<&[u8]> = self.tried.iter().map(Vec::as_slice).collect();
        let searched = self.codec.scales(&parts);
        let group = two_levels::Group { levels, codes: self.ladder.codes, panel, first, wanted };
        let mut best = searched;
        for (number, factor) in FACTORS.iter().enumerate() {
            let times = |value: f32| f16_bits_to_f32(f32_to_f16_bits(value * factor));
            let mut scales = Scales { d: times(searched.d), dmin: times(searched.dmin), ..searched };
            let bound = self.kept.cost;
            group.round(&mut scales, row.to_vec(), bound, &mut self.attempt);
            if number == 0 || self.attempt.cost < bound {
                std::mem::swap(&mut self.attempt, &mut self.kept);
                best = scales;
            }
        }
        self.best.clone_from(&self.tried);
        let mut parts: Vec<&mut [u8]> = self.best.iter_mut().map(Vec::as_mut_slice).collect();
        self.codec.put_scales(&best, &mut parts);
    }

    /// Scales of the group times `factor`, into `tried`.
    fn encode(&mut self, factor: f32) {
        self.scaled.clear();
        self.scaled.extend(self.plain.iter().map(|value| value * factor));
        (self.prepare)(&mut self.scaled);
        let mut parts: Vec<&mut [u8]> = self.tried.iter_mut().map(Vec::as_mut_slice).collect();
        if self.codec.weighs() {
            self.codec.encode_weighted(&self.importance, &self.scaled, &mut parts);
        } else {
            self.codec.encode_under(self.tensor_scale, &self.scaled, &mut parts);
        }
    }
}

impl Levels {
    /// Reads what codes stand for by decoding them: each code of an uneven ladder, the ends of an even one. Codes of `bytes`
    /// are all 0 afterwards.
    fn read(
        &mut self,
        codec: &dyn Codec,
        ladder: Ladder,
        tensor_scale: f32,
        places: &[u16],
        bytes: &mut [Vec<u8>],
    ) {
        let len = places.len();
        let mut codes = vec![0u8; len];
        let mut decode = |code: usize, decoded: &mut Vec<f32>| {
            codes.fill(code as u8);
            let mut parts: Vec<&mut [u8]> = bytes.iter_mut().map(Vec::as_mut_slice).collect();
            codec.put_codes(&codes, &mut parts);
            let parts: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
            decoded.resize(len, 0.0);
            codec.decode_under(tensor_scale, &parts, decoded);
        };
        let top = ladder.codes - 1;
        if ladder.even {
            decode(top, &mut self.decoded);
            self.step.clear();
            self.step.extend(places.iter().map(|&place| self.decoded[usize::from(place)]));
            decode(0, &mut self.decoded);
            self.lowest.clear();
            self.lowest.extend(places.iter().map(|&place| self.decoded[usize::from(place)]));
            let steps = self.step.iter_mut().zip(&self.lowest);
            steps.for_each(|(step, lowest)| *step = (*step - lowest) / top as f32);
            return;
        }
        self.values.resize(len * ladder.codes, 0.0);
        for code in (0..ladder.codes).rev() {
            decode(code, &mut self.decoded);
            for (column, &place) in places.iter().enumerate() {
                self.values[column * ladder.codes + code] = self.decoded[usize::from(place)];
            }
        }
    }
}

/// Rounds one group under given scales; stops where the loss reaches `bound`.
struct Round<'a> {
    ladder: Ladder,
    levels: &'a Levels,
    /// From the group's first column on, rows `n` apart.
    shares: &'a [f32],
    n: usize,
    costs: &'a [f32],
    wanted: &'a [f32],
    row: &'a [f32],
    bound: f32,
    into: &'a mut Attempt,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { ladder, levels, shares, n, costs, wanted, row, bound, into } = self;
        let len = wanted.len();
        into.codes.resize(len, 0);
        into.errors.resize(len, 0.0);
        into.cost = 0.0;
        let mut row = row.to_vec();
        for column in 0..len {
            let value = row[column];
            let (code, level) = if ladder.even {
                let (lowest, step) = (levels.lowest[column], levels.step[column]);
                let code = if step == 0.0 { 0.0 } else { ((value - lowest) / step + 0.5).floor() };
                let code = code.clamp(0.0, (ladder.codes - 1) as f32);
                (code as u8, lowest + step * code)
            } else {
                nearest(&levels.values[column * ladder.codes..][..ladder.codes], value)
            };
            let lost = value - level;
            into.cost += costs[column] * lost * lost;
            if into.cost >= bound {
                return;
            }
            let error = wanted[column] - level;
            into.codes[column] = code;
            into.errors[column] = error;
            let shares = &shares[column * n..][..len];
            for (value, share) in row[column + 1..].iter_mut().zip(&shares[column + 1..]) {
                *value += error * share;
            }
        }
    }
}

/// The first code whose value is nearest, and the value.
#[inline(always)]
fn nearest(values: &[f32], wanted: f32) -> (u8, f32) {
    let (mut code, mut least) = (0, f32::INFINITY);
    for (candidate, value) in values.iter().enumerate() {
        let distance = (value - wanted).abs();
        if distance < least {
            (code, least) = (candidate, distance);
        }
    }
    (code as u8, values[code])
}

/// Adds what a group has lost to the columns behind it.
struct Spread<'a> {
    /// From the row of the group's first column on.
    shares: &'a [f32],
    n: usize,
    later: std::ops::Range<usize>,
    errors: &'a [f32],
    row: &'a mut [f32],
}

impl Kernel for Spread<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { shares, n, later, errors, row } = self;
        let row = &mut row[later.clone()];
        for (error, shares) in errors.iter().zip(shares.chunks(n)) {
            for (value, share) in row.iter_mut().zip(&shares[later.clone()]) {
                *value += error * share;
            }
        }
    }
}
