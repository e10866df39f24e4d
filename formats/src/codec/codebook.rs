//! Codebooks: the points that groups of weights of the IQ1, IQ2 and IQ3 formats are rounded to.
//!
//! A point has a level for each of 8 weights (three levels) or of 4 (eight levels). Points are numbered in the order of their
//! codes, in which the level of weight `i` stands `i` places up. Levels that are no point have *neighbours*: the points at the
//! least, second least, ... squared distance, nearest first, and by number among equals. Formats differ in how many
//! distances count (`rings`).
//!
//! Neighbours are worked out when a codebook is first used, in some tens of milliseconds.
//! Source: llama.cpp, `ggml-quants.c`, `iq2xs_init_impl`, `iq3xs_init_impl`; `ggml-common.h` (values of the levels).

use std::array::from_fn;
use std::sync::OnceLock;

mod points;

/// Values of the levels.
const IQ1: [f32; 3] = [-1.0, 0.0, 1.0];
const IQ2: [f32; 3] = [8.0, 25.0, 43.0];
const IQ3_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

/// Squared distances are below this.
const DISTANCES: usize = 256;

/// The codebook of a format, for groups of `N` weights.
pub(super) struct Codebook<const N: usize> {
    /// Bits of a level in a code.
    bits: usize,
    /// Levels of each point.
    points: Vec<[u8; N]>,
    /// What they stand for.
    values: Vec<[f32; N]>,
    /// For each code the number of its point, or the complement of where its neighbours are.
    places: Vec<i32>,
    /// For levels that are no point: their neighbours, as many chunks as it takes.
    chunks: Vec<Chunk<N>>,
}

/// Neighbours in a chunk.
pub(super) const CHUNK: usize = 16;
/// Entries of a table that vectors look up levels in: `TABLE / N` for each weight.
pub(super) const TABLE: usize = 32;

/// Lanes of the widest vectors.
const WIDEST: usize = 16;

/// Neighbours side by side. Where there are fewer, the first stands once more: it changes nothing in a search for the first that
/// is best.
#[derive(Clone, Copy)]
pub(super) struct Chunk<const N: usize> {
    /// Neighbours in this chunk and those after it.
    len: u16,
    /// Their numbers.
    pub(super) numbers: [u16; CHUNK],
    /// For each weight where their levels stand in the table, modulo [`WIDEST`].
    pub(super) picks: [[u8; CHUNK]; N],
}

/// What a codebook says about some levels.
pub(super) enum Place<'a, const N: usize> {
    /// They are the point of this number.
    Point(u16),
    /// They are none; these are near.
    Neighbours(Neighbours<'a, N>),
}

/// Neighbours of some levels.
#[derive(Clone, Copy)]
pub(super) struct Neighbours<'a, const N: usize>(pub(super) &'a [Chunk<N>]);

impl<const N: usize> Neighbours<'_, N> {
    /// Their numbers, the nearest first.
    #[inline(always)]
    pub(super) fn numbers(&self) -> impl Iterator<Item = u16> {
        let len = usize::from(self.0[0].len);
        self.0.iter().flat_map(|chunk| chunk.numbers).take(len)
    }
}

/// Codebooks of one format each; IQ1_S and IQ1_M share theirs.
macro_rules! codebook {
    ($name:ident, $len:literal, $set:ident, $values:ident, $rings:literal) => {
        pub(super) fn $name() -> &'static Codebook<$len> {
            static BOOK: OnceLock<Codebook<$len>> = OnceLock::new();
            BOOK.get_or_init(|| Codebook::new(&points::$set, &$values, $rings))
        }
    };
}

codebook!(iq1, 8, IQ1, IQ1, 3);
codebook!(iq2_xxs, 8, IQ2_XXS, IQ2, 2);
codebook!(iq2_xs, 8, IQ2_XS, IQ2, 2);
codebook!(iq2_s, 8, IQ2_S, IQ2, 1);
codebook!(iq3_xxs, 4, IQ3_XXS, IQ3_XXS, 2);
codebook!(iq3_s, 4, IQ3_S, IQ3_S, 3);

impl<const N: usize> Codebook<N> {
    fn new(set: &[u64], values: &[f32], rings: usize) -> Self {
        let levels = values.len();
        let digits = |index: usize| -> [u8; N] {
            let mut rest = index;
            from_fn(|_| {
                let digit = rest % levels;
                rest /= levels;
                digit as u8
            })
        };
        let is_point = |index: &usize| set[index / 64] >> (index % 64) & 1 != 0;
        let all = 0..levels.pow(N as u32);
        let points: Vec<[u8; N]> = all.clone().filter(is_point).map(digits).collect();
        let values = points.iter().map(|point| point.map(|level| values[usize::from(level)])).collect();
        let bits = levels.next_power_of_two().ilog2() as usize;
        let mut book = Self { bits, points, values, places: Vec::new(), chunks: Vec::new() };
        book.places = vec![0; book.code(&[levels as u8 - 1; N]) + 1];
        for number in 0..book.points.len() {
            let code = book.code(&book.points[number]);
            book.places[code] = number as i32;
        }
        let mut distances = vec![0u8; book.points.len()];
        for own in all.filter(|index| !is_point(index)).map(digits) {
            let code = book.code(&own);
            book.places[code] = !(book.chunks.len() as i32);
            book.add_neighbours(&own, rings, &mut distances);
        }
        book
    }

    fn add_neighbours(&mut self, own: &[u8; N], rings: usize, distances: &mut [u8]) {
        let mut is_there = [false; DISTANCES];
        for (distance, point) in distances.iter_mut().zip(&self.points) {
            *distance = own.iter().zip(point).map(|(a, b)| a.abs_diff(*b) * a.abs_diff(*b)).sum();
            is_there[usize::from(*distance)] = true;
        }
        let mut found: Vec<u16> = Vec::new();
        for ring in (0..=u8::MAX).filter(|&distance| is_there[usize::from(distance)]).take(rings) {
            let in_ring = distances.iter().enumerate().filter(|(_, distance)| **distance == ring);
            found.extend(in_ring.map(|(number, _)| number as u16));
        }
        for start in (0..found.len()).step_by(CHUNK) {
            let numbers = from_fn(|lane| *found.get(start + lane).unwrap_or(&found[0]));
            let pick = |i: usize, number: u16| {
                self.points[usize::from(number)][i] + (i * (TABLE / N) % WIDEST) as u8
            };
            let picks = from_fn(|i| numbers.map(|number| pick(i, number)));
            self.chunks.push(Chunk { len: (found.len() - start) as u16, numbers, picks });
        }
    }

    /// The code of some levels.
    #[inline(always)]
    fn code(&self, levels: &[u8; N]) -> usize {
        levels.iter().enumerate().fold(0, |code, (i, &level)| code | usize::from(level) << (self.bits * i))
    }

    /// What is there for some levels.
    #[inline(always)]
    pub(super) fn find(&self, levels: &[u8; N]) -> Place<'_, N> {
        self.find_code(self.code(levels))
    }

    /// What is there for the levels of this code.
    #[inline(always)]
    pub(super) fn find_code(&self, code: usize) -> Place<'_, N> {
        let place = self.places[code];
        if place >= 0 {
            return Place::Point(place as u16);
        }
        let chunks = &self.chunks[!place as usize..];
        Place::Neighbours(Neighbours(&chunks[..usize::from(chunks[0].len).div_ceil(CHUNK)]))
    }

    /// What the level of weight `i` counts in a code.
    #[inline(always)]
    pub(super) fn unit(&self, i: usize) -> f32 {
        (1usize << (self.bits * i)) as f32
    }

    /// The number of the point with these levels. Zero if there is none, which happens to weights that are no numbers.
    #[inline(always)]
    pub(super) fn number(&self, levels: &[u8; N]) -> u16 {
        match self.find(levels) {
            Place::Point(number) => number,
            Place::Neighbours(_) => 0,
        }
    }

    /// Levels of a point.
    #[inline(always)]
    pub(super) fn point(&self, number: u16) -> &[u8; N] {
        &self.points[usize::from(number)]
    }

    /// Values of the levels of a point.
    #[inline(always)]
    pub(super) fn values(&self, number: u16) -> &[f32; N] {
        &self.values[usize::from(number)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition: all points sorted by distance and number.
    fn check<const N: usize>(book: &Codebook<N>, points: usize, levels: u8, rings: usize) {
        assert_eq!(book.points.len(), points);
        assert!(book.points.is_sorted_by_key(|point| book.code(point)));
        let mut random = 1u64;
        let mut others = 0;
        for _ in 0..400 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let own: [u8; N] = from_fn(|i| (random >> (20 + 5 * i)) as u8 % levels);
            let square = |point: &[u8; N]| -> u32 {
                own.iter().zip(point).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
            };
            let mut sorted: Vec<(u32, u16)> =
                (0..points as u16).map(|n| (square(book.point(n)), n)).collect();
            sorted.sort();
            match book.find(&own) {
                Place::Point(number) => assert_eq!(sorted[0], (0, number)),
                Place::Neighbours(found) => {
                    let mut nearest: Vec<u32> = sorted.iter().map(|pair| pair.0).collect();
                    nearest.dedup();
                    let last = nearest[rings - 1];
                    let expected: Vec<u16> =
                        sorted.iter().take_while(|pair| pair.0 <= last).map(|pair| pair.1).collect();
                    let found: Vec<u16> = found.numbers().collect();
                    assert!(nearest[0] > 0 && found == expected, "{own:?}");
                    others += 1;
                }
            }
        }
        assert!(others > 50, "{others}");
    }

    #[test]
    fn levels_have_their_point_or_its_neighbours() {
        check(iq1(), 2048, 3, 3);
        check(iq2_xxs(), 256, 3, 2);
        check(iq2_xs(), 512, 3, 2);
        check(iq2_s(), 1024, 3, 1);
        check(iq3_xxs(), 256, 8, 2);
        check(iq3_s(), 512, 8, 3);
    }
}
