//! Chooses a type for each tensor so that the result fits a given size with the least error.
//!
//! Each type that a tensor could have is tried on some of its rows (`sample`, `measure`). The choice minimizes the sum
//! over tensors of `parameters * |decode(encode(x)) - x|^2 / |x|^2`, within the budget (`knapsack`). The
//! result is a list of rules, one for each kind of tensor and type, that gives the same plan when it is used
//! as a recipe (`fit`).
//!
//! The output head keeps the type that the format gives it (or a rule): its error reaches the logits directly,
//! while errors of other tensors are damped by later layers. (With [`Sensitivity`], which knows this, it is chosen like any
//! other.) On the repository's model (`fixtures/tiny-deepseek-v3`) at the size of Q4_K_M,
//! the mean divergence from the source is 0.0014 with the head chosen like any tensor, and 0.0006 with the format's
//! Q6_K; Q4_K_M itself has 0.0013.
//!
//! Gate and up projection of a feed-forward block get one type: runtimes multiply them in one step when they
//! have. Experts of a block are one tensor, or one set whose members get one type and are measured as one matrix.
//!
//! Tensors that a GGUF source stores quantized may keep their type: it costs their present size and adds no error. They get
//! another type only with [`Options::allow_requantize`].

use std::sync::atomic::AtomicBool;

use requant_formats::Codec;

use super::{Blueprint, Choice, Options, Rounding, Rules, find_format};
use crate::error::{Error, Result};
use crate::opened::Opened;
use crate::source::Source;

mod fit;
mod knapsack;
mod measure;
mod sample;

use fit::Fit;
pub use measure::Watch;

/// Most reads of a source far away: some minutes at a few milliseconds each.
const MAX_REMOTE_READS: usize = 200_000;

/// What a result may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Bytes of all its files, headers included.
    Bytes(u64),
    /// `8 *` tensor bytes `/` parameters, as a plan states it.
    BitsPerWeight(f64),
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "--target-size {bytes}"),
            Self::BitsPerWeight(bits) => write!(f, "--target-bpw {bits}"),
        }
    }
}

impl Budget {
    /// Bytes that count against it.
    fn spent(self, blueprint: &Blueprint) -> u64 {
        match self {
            Self::Bytes(_) => blueprint.len_bytes(),
            Self::BitsPerWeight(_) => blueprint.tensor_bytes(),
        }
    }

    fn limit(self, blueprint: &Blueprint) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::BitsPerWeight(bits) => (bits * blueprint.parameters() as f64 / 8.0) as u64,
        }
    }
}

/// A type that a tensor could have.
#[derive(Clone)]
pub struct Candidate {
    /// As a rule gives it.
    pub choice: Choice,
    /// What encodes it.
    pub codec: &'static dyn Codec,
    /// Precision before encoding.
    pub rounding: Rounding,
    /// What each tensor takes in its files.
    pub len_bytes: u64,
    /// Whether the source's own bytes are taken, which loses nothing.
    pub is_copied: bool,
}

impl Candidate {
    /// The type `name` of tensors with so many weights, which are stored as the parts of its codec.
    pub fn encoded(name: &str, codec: &'static dyn Codec, rounding: Rounding, len_elems: u64) -> Self {
        let choice = Choice::Type { name: name.to_owned(), group_size: None };
        Self { choice, codec, rounding, len_bytes: encoded_bytes(codec, len_elems), is_copied: false }
    }

    /// What is stored of `x`, whole rows, decoded. `keep` may change the parts before.
    pub(crate) fn stored(&self, x: &[f32], keep: impl FnOnce(&mut [&mut [u8]])) -> Vec<f32> {
        let codec = self.codec;
        let mut rounded = x.to_vec();
        self.rounding.apply(&mut rounded);
        let largest = rounded.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let factor = codec.tensor_scale(largest).unwrap_or(1.0);
        let mut bytes = vec![0; encoded_bytes(codec, x.len() as u64) as usize];
        let mut parts = Vec::with_capacity(codec.parts().len());
        let mut rest = bytes.as_mut_slice();
        for part in 0..codec.parts().len() {
            let len = requant_formats::codec::part_len_bytes(codec, part, x.len() as u64) as usize;
            let (part, behind) = rest.split_at_mut(len);
            parts.push(part);
            rest = behind;
        }
        codec.encode_under(factor, &rounded, &mut parts);
        keep(&mut parts);
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        codec.decode_under(factor, &parts, &mut rounded);
        rounded
    }
}

/// Tensors of a blueprint whose type may be chosen: one, or some of a set that have one shape and are measured as
/// one matrix.
#[derive(Clone)]
pub struct Choices {
    /// Positions in [`Blueprint::tensors`]; at least one.
    pub tensors: Vec<usize>,
    /// What gets one type with them, where that is more than their names say.
    pub set: Option<Set>,
    /// What they could have.
    pub candidates: Vec<Candidate>,
}

impl Choices {
    /// Weights of all its tensors in `base`.
    pub fn len_elems(&self, base: &Blueprint) -> u64 {
        self.tensors.iter().map(|&tensor| base.tensors[tensor].len_elems()).sum()
    }
}

/// Tensors of a layer that get one type: regular expressions for what stands before and after the number of
/// the layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    /// Before it.
    pub before: String,
    /// The layer.
    pub layer: usize,
    /// After it.
    pub after: String,
}

/// What a budget came to.
pub struct Fitted {
    /// The rules asked for, and behind them those that were chosen.
    pub rules: Rules,
    /// The result.
    pub blueprint: Blueprint,
    /// Mean over the parameters that were chosen for of the relative squared error, as measured.
    pub mean_error: f64,
    /// What the choice made small: the sum over tensors of parameters times relative squared error, or of what
    /// [`Sensitivity`] says.
    pub loss: f64,
}

/// Says what types cost the model, where that is more than how far weights move.
pub trait Sensitivity {
    /// The loss of each candidate, for each of `choices`, of the tensors of `base`, which is made of `source`. `errors` has
    /// their relative squared errors; what has none loses nothing.
    ///
    /// # Errors
    /// Of its own.
    fn losses(
        &self,
        source: &Opened,
        base: &Blueprint,
        choices: &[Choices],
        errors: &[Vec<f64>],
    ) -> Result<Vec<Vec<f64>>>;
}

/// How types are measured.
pub struct Measuring<'a> {
    /// Threads.
    pub threads: usize,
    /// Told how far it is.
    pub watch: &'a Watch<'a>,
    /// Ends it.
    pub stop: &'a AtomicBool,
    /// What counts instead of the errors of weights. With it the output head is chosen for as well.
    pub sensitivity: Option<&'a dyn Sensitivity>,
}

/// Chooses types for the tensors that no rule of `options` is for.
///
/// # Errors
/// As [`super::blueprint`]; a source whose weights are not at hand; a family in which nothing can be chosen; a budget
/// that is too small, with the least size there is; [`Error::Interrupted`] once `stop` is set. All but the last before
/// any weight is read.
pub fn fit(
    source: &Opened,
    format: &str,
    options: &Options,
    budget: Budget,
    threads: usize,
    watch: &Watch<'_>,
    stop: &AtomicBool,
) -> Result<Fitted> {
    fit_with(source, format, options, budget, &Measuring { threads, watch, stop, sensitivity: None })
}

/// The same, perhaps by what types cost the model.
///
/// # Errors
/// As [`fit`]; those of [`Measuring::sensitivity`].
pub fn fit_with(
    source: &Opened,
    format: &str,
    options: &Options,
    budget: Budget,
    measuring: &Measuring<'_>,
) -> Result<Fitted> {
    let Measuring { threads, watch, stop, sensitivity } = *measuring;
    let (target, format) = find_format(format)?;
    let options = &Options { choose_head: sensitivity.is_some(), ..options.clone() };
    // Types that the format would give to tensors that are chosen for do not matter, so leave is not asked for them.
    let base = super::blueprint(source, format.name, &Options { allow_requantize: true, ..options.clone() })?;
    let mut choices = target.choices(format, source, options, &base)?;
    fit::leave_to_rules(&mut choices, &base);
    if choices.iter().all(|choices| choices.candidates.len() < 2) {
        let why = match source.gguf() {
            Some(_) if !choices.is_empty() => {
                "its tensors are quantized already and may get another type with --allow-requantize only"
                    .to_owned()
            }
            _ => format!(
                "it needs a quantized format of a family with several types, and tensors that no rule is for; {} with \
                 --to {} has none",
                target.family(),
                format.name
            ),
        };
        let location = source.source().location();
        return Err(Error::Request(format!("{budget}: there is nothing to choose in {location}: {why}")));
    }
    let fit = Fit { source, format: format.name, options, budget, base: &base, choices: &choices };
    let plan = fit.least()?;
    let place = source.source();
    check_reads(sample::reads(source, &base, &choices), place, budget)?;
    let _sampling = Sampling::of(place, budget)?;
    let errors = measure::errors(source, &base, &choices, threads, watch, stop)?;
    let losses = match sensitivity {
        Some(sensitivity) => sensitivity.losses(source, &base, &choices, &errors)?,
        None => {
            let with_errors = choices.iter().zip(&errors);
            let weighed = with_errors.map(|(choices, errors)| {
                let len = choices.len_elems(&base) as f64;
                errors.iter().map(|error| len * error).collect()
            });
            weighed.collect()
        }
    };
    fit.best(plan, &errors, &losses)
}

/// A source far away is not asked too often.
fn check_reads(reads: usize, source: &dyn Source, budget: Budget) -> Result<()> {
    if source.is_at_hand() || reads <= MAX_REMOTE_READS {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{budget}: types are chosen by measuring weights, which would take about {reads} requests to {}, above the \
         {MAX_REMOTE_READS} that are made: its weights lie there in many small pieces; fetch it first (requant fetch), or \
         make a recipe from a copy and use it with --recipe",
        source.location()
    )))
}

/// While it is there, samples of a source that is not at hand can be read.
struct Sampling<'a>(&'a dyn Source);

impl<'a> Sampling<'a> {
    fn of(source: &'a dyn Source, budget: Budget) -> Result<Self> {
        if source.sample(true) {
            return Ok(Self(source));
        }
        Err(Error::Request(format!(
            "{budget}: types are chosen by measuring weights, and those of {} cannot be read; fetch it first (requant fetch)",
            source.location()
        )))
    }
}

impl Drop for Sampling<'_> {
    fn drop(&mut self) {
        self.0.sample(false);
    }
}

/// Bytes that `codec` makes of so many weights.
fn encoded_bytes(codec: &dyn Codec, len_elems: u64) -> u64 {
    (0..codec.parts().len()).map(|part| requant_formats::codec::part_len_bytes(codec, part, len_elems)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceFile;

    struct Place {
        is_at_hand: bool,
    }

    impl Source for Place {
        fn location(&self) -> String {
            "org/name".into()
        }

        fn files(&self) -> &[SourceFile] {
            &[]
        }

        fn read_at(&self, _: usize, _: u64, _: &mut [u8]) -> Result<()> {
            Err(Error::Interrupted)
        }

        fn is_at_hand(&self) -> bool {
            self.is_at_hand
        }
    }

    #[test]
    fn a_source_far_away_is_not_read_too_often_or_against_its_will() {
        let budget = Budget::BitsPerWeight(4.5);
        let (far, near) = (Place { is_at_hand: false }, Place { is_at_hand: true });
        check_reads(MAX_REMOTE_READS, &far, budget).unwrap();
        check_reads(usize::MAX, &near, budget).unwrap();
        let error = check_reads(300_001, &far, budget).unwrap_err().to_string();
        for part in ["--target-bpw 4.5", "300001", "org/name", "200000", "requant fetch", "--recipe"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = Sampling::of(&far, budget).err().unwrap().to_string();
        assert!(error.contains("org/name cannot be read") && error.contains("requant fetch"), "{error}");
        assert!(Sampling::of(&near, budget).is_ok());
    }
}
