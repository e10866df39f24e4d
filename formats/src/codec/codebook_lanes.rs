//! The search of `codebook_search` with vectors.
//!
//! Every lane goes through the operations of the plain search in their order:
//!
//! - Levels, codes and sums of a sub-block have a candidate in each lane.
//! - The neighbours of a group have a lane each. What a level costs a weight depends on the candidate alone, so these costs are
//!   worked out once, and each lane looks up its levels' in a table and adds them.
//!
//! On one core of an Intel Xeon (a virtual machine with other work, counted in CPU time, in turn with ggml 0.25.3, with an importance)
//! AVX2 makes IQ2_XXS 10.7 M weights/s (ggml 3.4), IQ2_XS 8.5 (1.7), IQ2_S 16.9 (5.7), IQ3_XXS 7.5 (2.5) and IQ3_S 11.0 (3.6).

use super::codebook::{CHUNK, Codebook, Neighbours, Place, TABLE};
use super::codebook_search::{Again, Found, LEN, Plain, Recipe, Searched, Searcher, levels, sums};
use crate::dispatch::{self, LaneKernel, Lanes};

/// As many candidates as there are at most, in whole vectors.
const MAX_CANDIDATES: usize = 32;
/// Groups of a sub-block at most.
const MAX_GROUPS: usize = 8;
/// Vectors of a table at most.
const MAX_TABLES: usize = TABLE / 8;
/// Magnitudes and roots of error weights above this are left to the plain code, so that no sum overflows.
const LARGEST: f32 = 1e12;

/// Encodes whole rows, with the importance of columns if there is one.
pub(super) fn encode<B: Searched>(importance: Option<&[f32]>, src: &[f32], dst: &mut [u8]) {
    struct Encode<'a, B>(Option<&'a [f32]>, &'a [f32], &'a mut [u8], std::marker::PhantomData<B>);
    impl<B: Searched> LaneKernel for Encode<'_, B> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            let importance = self.0.map(|importance| importance.as_chunks::<LEN>().0);
            let blocks = self.1.as_chunks::<LEN>().0.iter().zip(self.2.chunks_exact_mut(B::BYTES));
            for (block, (x, y)) in blocks.enumerate() {
                let importance = importance.map(|blocks| &blocks[block % blocks.len()]);
                B::encode(InLanes(lanes), x, importance, y);
            }
        }
    }
    dispatch::run_lanes(Encode::<B>(importance, src, dst, std::marker::PhantomData));
}

/// Searches with vectors, where no number is too large for them.
#[derive(Clone, Copy)]
struct InLanes<L>(L);

/// Weights and roots of their error weights, once for each level that a weight can have.
struct Repeated {
    x: [f32; TABLE],
    roots: [f32; TABLE],
}

impl Repeated {
    #[inline(always)]
    fn new<const N: usize>(x: &[f32; N], roots: &[f32; N]) -> Self {
        let per_weight = TABLE / N;
        Self {
            x: std::array::from_fn(|at| x[at / per_weight]),
            roots: std::array::from_fn(|at| roots[at / per_weight]),
        }
    }

    /// The number of the first neighbour with the least error.
    #[inline(always)]
    fn nearest<L: Lanes, const N: usize>(&self, lanes: L, scale: f32, neighbours: &Neighbours<'_, N>) -> u16 {
        let odd: [f32; TABLE] = std::array::from_fn(|at| (2 * (at % (TABLE / N)) + 1) as f32);
        let mut costs = [lanes.splat(0.0); MAX_TABLES];
        let scale = lanes.splat(scale);
        for at in (0..TABLE).step_by(L::LEN) {
            let difference = scale * lanes.load(&odd[at..]) - lanes.load(&self.x[at..]);
            costs[at / L::LEN] = lanes.load(&self.roots[at..]) * difference * difference;
        }
        let (mut least, mut best) = (f32::MAX, neighbours.0[0].numbers[0]);
        for chunk in neighbours.0 {
            for at in (0..CHUNK).step_by(L::LEN) {
                let mut error = lanes.lookup(costs[0], &chunk.picks[0][at..]);
                for i in 1..N {
                    let costs = costs[i * (TABLE / N) / L::LEN];
                    error = error + lanes.lookup(costs, &chunk.picks[i][at..]);
                }
                let smallest = -lanes.reduce_max(lanes.splat(0.0) - error);
                if smallest < least {
                    let lane = lanes.bits(lanes.eq(error, lanes.splat(smallest))).trailing_zeros() as usize;
                    (least, best) = (smallest, chunk.numbers[(at + lane) % CHUNK]);
                }
            }
        }
        best
    }
}

impl<L: Lanes> Searcher for InLanes<L> {
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
        let roots = weights.map(f32::sqrt);
        // No rounded number is beyond what vectors round, and none is no number.
        let reach = (recipe.top() + f32::from(recipe.steps) * recipe.step) / m;
        let fits = |v: &f32| v.abs() <= LARGEST && v.abs() * reach < (1 << 21) as f32;
        let is_small = x.iter().all(fits) && roots.iter().all(|root| *root <= LARGEST);
        if !(is_small && reach > 0.0 && reach <= f32::MAX) {
            return Plain.search(book, recipe, x, weights, m, first);
        }
        search(self.0, book, recipe, x, weights, &roots, m, first)
    }
}

#[expect(clippy::too_many_arguments, reason = "what a sub-block is searched with")]
#[inline(always)]
fn search<L: Lanes, const SUB: usize, const N: usize>(
    lanes: L,
    book: &Codebook<N>,
    recipe: &Recipe,
    x: &[f32; SUB],
    weights: &[f32; SUB],
    roots: &[f32; SUB],
    m: f32,
    first: f32,
) -> Found<SUB> {
    let groups = SUB / N;
    let candidates = recipe.candidates();
    let used = candidates.next_multiple_of(L::LEN);
    let (zero, one, half) = (lanes.splat(0.0), lanes.splat(1.0), lanes.splat(0.5));
    let last = lanes.splat(f32::from(recipe.levels - 1));

    let mut numerators = [recipe.top(); MAX_CANDIDATES];
    for (numerator, k) in numerators.iter_mut().zip(-recipe.steps..=recipe.steps) {
        *numerator = recipe.top() + f32::from(k) * recipe.step;
    }
    let mut inverses = [0.0f32; MAX_CANDIDATES];
    let mut scales = [0.0f32; MAX_CANDIDATES];
    // Levels of each weight, and codes of each group, by candidate.
    let mut tried = [[0.0f32; MAX_CANDIDATES]; SUB];
    let mut codes = [[0.0f32; MAX_CANDIDATES]; MAX_GROUPS];
    for at in (0..used).step_by(L::LEN) {
        let inverse = lanes.load(&numerators[at..]) / lanes.splat(m);
        lanes.store(inverse, &mut inverses[at..]);
        lanes.store(one / inverse, &mut scales[at..]);
        for group in 0..groups {
            let mut code = zero;
            for i in 0..N {
                let v = lanes.splat(x[group * N + i]);
                let level = lanes.round(half * (inverse * v - one));
                let level = lanes.min(lanes.max(level, zero), last);
                lanes.store(level, &mut tried[group * N + i][at..]);
                code = code + level * lanes.splat(book.unit(i));
            }
            lanes.store(code, &mut codes[group][at..]);
        }
    }

    // Bit `g` of a candidate whose group `g` needed a neighbour.
    let mut others = [0u32; MAX_CANDIDATES];
    for group in 0..groups {
        let of_group = Repeated::new(&x.as_chunks::<N>().0[group], &roots.as_chunks::<N>().0[group]);
        for candidate in 0..candidates {
            let code = codes[group][candidate] as usize;
            if let Place::Neighbours(neighbours) = book.find_code(code) {
                others[candidate] |= 1 << group;
                let number = of_group.nearest(lanes, scales[candidate], &neighbours);
                for (i, &level) in book.point(number).iter().enumerate() {
                    tried[group * N + i][candidate] = f32::from(level);
                }
            }
        }
    }

    let (mut sums_xl, mut sums_l2) = ([0.0f32; MAX_CANDIDATES], [0.0f32; MAX_CANDIDATES]);
    for at in (0..used).step_by(L::LEN) {
        let (mut sum_xl, mut sum_l2) = (zero, zero);
        for i in 0..SUB {
            let level = lanes.load(&tried[i][at..]);
            let (w, l) = (lanes.splat(weights[i]), level + level + one);
            sum_xl = sum_xl + lanes.splat(weights[i] * x[i]) * l;
            sum_l2 = sum_l2 + w * l * l;
        }
        lanes.store(sum_xl, &mut sums_xl[at..]);
        lanes.store(sum_l2, &mut sums_l2[at..]);
    }
    let (mut scale, mut best, mut taken) = (first, 0.0f32, None);
    for candidate in 0..candidates {
        let (sum_xl, sum_l2) = (sums_xl[candidate], sums_l2[candidate]);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
            taken = Some(candidate);
        }
    }
    let untouched = if recipe.again == Again::AllForOne { u32::MAX } else { 0 };
    let others = taken.map_or(untouched, |candidate| others[candidate]);
    let mut found = Found { scale, levels: [0; SUB] };
    if let Some(candidate) = taken {
        for (level, tried) in found.levels.iter_mut().zip(&tried) {
            *level = tried[candidate] as u8;
        }
    }

    let again = match recipe.again {
        Again::Others => others,
        Again::AllForOne if others == 0 => 0,
        _ => u32::MAX,
    };
    if again != 0 && scale > 0.0 {
        let inverse = 1.0 / scale;
        for group in (0..groups).filter(|group| again >> group & 1 != 0) {
            let (x, roots) = (&x.as_chunks::<N>().0[group], &roots.as_chunks::<N>().0[group]);
            let rounded = levels(recipe, x, inverse);
            found.levels.as_chunks_mut::<N>().0[group] = match book.find(&rounded) {
                Place::Point(_) => rounded,
                Place::Neighbours(neighbours) => {
                    *book.point(Repeated::new(x, roots).nearest(lanes, scale, &neighbours))
                }
            };
        }
        let (sum_xl, sum_l2) = sums(x, weights, &found.levels);
        if sum_l2 > 0.0 {
            found.scale = sum_xl / sum_l2;
        }
    }
    found
}
