//! The error of candidate types on a sample of a tensor's rows.

use std::sync::atomic::{AtomicBool, Ordering};

use super::sample::{Read, Sample};
use super::{Candidate, Choices};
use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};
use crate::plan::Blueprint;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

/// Reads under way at once of a source far away.
const REMOTE_READS: usize = 16;
/// Error of what does not decode to numbers at all: worse than any other.
const HOPELESS: f64 = 1e18;

/// Receives what was measured so far. Called from several threads.
pub struct Watch<'a> {
    /// It begins: so many bytes will be read, about.
    pub begin: &'a (dyn Fn(u64) + Sync),
    /// So many more were.
    pub advance: &'a (dyn Fn(u64) + Sync),
}

/// Relative squared error of each candidate, for each of `choices`.
pub(super) fn errors(
    source: &Catalogue,
    blueprint: &Blueprint,
    choices: &[Choices],
    threads: usize,
    watch: &Watch<'_>,
    stop: &AtomicBool,
) -> Result<Vec<Vec<f64>>> {
    // A source far away answers late: more of its answers are waited for than there are cores.
    let threads = if source.source().is_at_hand() { threads } else { threads.max(REMOTE_READS) };
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::Request(format!("cannot start {threads} threads: {error}")))?;
    let samples: Vec<Option<Sample<'_>>> = choices
        .iter()
        .map(|choices| {
            let is_known = |candidate: &Candidate| candidate.is_copied;
            (!choices.candidates.iter().all(is_known))
                .then(|| Sample::of(source, blueprint, &choices.tensors))
        })
        .collect();
    (watch.begin)(samples.iter().flatten().map(Sample::stored_bytes).sum());
    pool.install(|| {
        let measured = choices.par_iter().zip(&samples).map(|(choices, sample)| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let Some(sample) = sample else { return Ok(vec![0.0; choices.candidates.len()]) };
            let mut trials: Vec<Trial> = choices.candidates.iter().map(Trial::new).collect();
            let mut whole = Vec::new();
            sample.read(|x, read| {
                whole.extend_from_slice(x);
                let of_runs = trials.iter_mut().filter(|trial| !trial.has_factor());
                of_runs.for_each(|trial| trial.add(x, Some(&read)));
            })?;
            let of_whole = trials.iter_mut().filter(|trial| trial.has_factor());
            of_whole.for_each(|trial| trial.add(&whole, None));
            (watch.advance)(sample.stored_bytes());
            Ok(trials.iter().map(Trial::relative_error).collect())
        });
        measured.collect()
    })
}

/// What a candidate makes of weights.
struct Trial<'a> {
    candidate: &'a Candidate,
    /// `|decode(encode(x)) - x|^2` and `|x|^2` so far.
    error: f64,
    norm: f64,
}

impl<'a> Trial<'a> {
    fn new(candidate: &'a Candidate) -> Self {
        Self { candidate, error: 0.0, norm: 0.0 }
    }

    /// Whether there is a factor on the whole tensor. It is taken from all of a sample: scales under it keep their
    /// precision over 15 octaves, so that the tensor's own factor hardly changes the error.
    fn has_factor(&self) -> bool {
        self.candidate.codec.tensor_scale(1.0).is_some()
    }

    /// Encodes and decodes `x`.
    fn add(&mut self, x: &[f32], read: Option<&Read<'_>>) {
        if self.candidate.is_copied {
            return;
        }
        let codec = self.candidate.codec;
        let decoded = self.candidate.stored(x, |parts| {
            if let Some(read) = read {
                read.keep_grids(codec, parts);
            }
        });
        for (&decoded, &x) in decoded.iter().zip(x) {
            let (decoded, x) = (f64::from(decoded), f64::from(x));
            self.error += (decoded - x) * (decoded - x);
            self.norm += x * x;
        }
    }

    /// `|decode(encode(x)) - x|^2 / |x|^2`; 0 for zeros that stay zeros, 1 for zeros that do not.
    fn relative_error(&self) -> f64 {
        match (self.error == 0.0, self.norm > 0.0) {
            (true, _) => 0.0,
            (false, true) if self.error.is_finite() => self.error / self.norm,
            (false, true) => HOPELESS,
            (false, false) => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use requant_formats::codec;

    use super::*;
    use crate::plan::Rounding;

    fn relative_error(candidate: &Candidate, x: &[f32]) -> f64 {
        let mut trial = Trial::new(candidate);
        trial.add(x, None);
        trial.relative_error()
    }

    fn candidate(name: &str, rounding: Rounding, x: &[f32]) -> Candidate {
        Candidate::encoded(name, codec::find(name).unwrap(), rounding, x.len() as u64)
    }

    #[test]
    fn errors_are_those_of_the_definition() {
        let error = |name: &str, x: &[f32]| relative_error(&candidate(name, Rounding::Exact, x), x);
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin()).collect();
        assert_eq!(error("F32", &x), 0.0);
        let (coarse, fine) = (error("Q2_K", &x), error("Q8_0", &x));
        assert!(0.0 < fine && fine < 1e-4 && 1e-3 < coarse && coarse < 0.2, "{fine} {coarse}");
        assert_eq!(error("Q4_K", &[0.0; 256]), 0.0);
        // Three parts; one half of a group lost would be an error of one half.
        let affine = error("affine4_g64", &x);
        assert!(fine < affine && affine < coarse, "{affine}");
    }

    #[test]
    fn precision_before_encoding_and_the_factor_of_a_tensor_count() {
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin() * 1e-4).collect();
        let rounded = relative_error(&candidate("F32", Rounding::Bf16, &x), &x);
        assert!(1e-7 < rounded && rounded < 1e-5, "{rounded}");
        // Without the factor, FP8 scales of weights this small would be zero.
        let nvfp4 = relative_error(&candidate("ct_nvfp4", Rounding::Bf16, &x), &x);
        assert!((1e-3..0.02).contains(&nvfp4), "{nvfp4}");
        let copied = Candidate { is_copied: true, ..candidate("Q2_K", Rounding::Exact, &x) };
        assert_eq!(relative_error(&copied, &x), 0.0);
    }
}
