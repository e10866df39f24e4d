//! Results that are better than rounded: each matrix is rounded with error feedback, for the inputs that it has in the model
//! as it is quantized so far, and towards what makes good what was lost before it.
//!
//! Two models walk side by side, layer by layer, half by half: the original, and the quantized one. When a matrix of the
//! latter is about to be multiplied with inputs, it is rounded for exactly these (`quantized`), handed to the pipeline as jobs,
//! and multiplied as it is stored. Nothing larger than a matrix, sums of outer products of its inputs, and the states of one
//! layer is kept.
//!
//! Legend: `x` inputs in the original, `y` in the quantized model; `H` sum of `y^T y`.
//!
//! ```text
//! W* = W + W (sum of (x - y)^T y) (H + damping)^-1                       answers what the right input would have given
//! W* = W + (sum of (X - Y)^T y - W H) (H + damping)^-1                  for what is added to the hidden states: X those of the
//!                                                                        original behind it, Y those before it is added
//! Q  = round W* with feedback under H                                    `requant_formats::feedback`
//! ```
//!
//! Rows of an expert are those of its own tokens times their routing weight, and a few of the layer's mean are added, so that
//! experts that saw few tokens stay sane.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

mod embedding;
pub(crate) mod gram;
pub(crate) mod inputs;
mod quantized;
mod recorder;
mod rounding;
mod targets;
mod texts;

use gram::Square;
use inputs::Kind;
use quantized::Quantized;
use recorder::{Recorder, has_query_latent};
use targets::Targets;
pub use texts::DEFAULT as DEFAULT_TEXT;

use crate::checkpoint::Watching;
use crate::error::{Error, Result};
use crate::family::Role;
use crate::model::{Observer, States, Storage, Walk, watch_output};
use crate::opened::Opened;
use crate::pipeline::{self, Desk};
use crate::plan::{self, Blueprint};

/// Which inputs matrices are rounded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Those of the model as it is quantized so far; matrices make good what was lost before them.
    #[default]
    Sequential,
    /// Those of the original.
    Parallel,
}

impl Mode {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Parallel => "parallel",
        }
    }
}

/// What is calibrated, and with what.
pub struct Calibration<'a> {
    opened: &'a Opened,
    blueprint: &'a Blueprint,
    targets: Targets,
    tokens: &'a [u32],
    context: usize,
    mode: Mode,
    storage: Storage,
    threads: usize,
    observer: Mutex<&'a mut dyn Observer>,
    lookups: Lookups<'a>,
    damped: Mutex<Vec<(Role, f64)>>,
}

/// How to calibrate.
pub struct Settings<'a> {
    /// Windows of tokens, one after the other.
    pub tokens: &'a [u32],
    /// Tokens of a window.
    pub context: usize,
    /// Which inputs count.
    pub mode: Mode,
    /// Where states are kept.
    pub storage: Storage,
    /// Threads.
    pub threads: usize,
    /// Told of every layer.
    pub observer: &'a mut dyn Observer,
    /// What an error in the embedding costs.
    pub lookups: Lookups<'a>,
}

/// Finds the sum over tokens of the outer products of gradients of rows of the embedding, `[D, D]`: its rows are looked up, not
/// multiplied, so nothing else says which errors in them count.
pub type Lookups<'a> = Box<dyn Fn(&mut dyn Observer) -> Result<Vec<f32>> + Send + Sync + 'a>;

impl<'a> Calibration<'a> {
    /// Of the conversion of `opened` that `blueprint` describes.
    ///
    /// # Errors
    /// When the model cannot be evaluated, or nothing of the result can be calibrated.
    pub fn new(opened: &'a Opened, blueprint: &'a Blueprint, settings: Settings<'a>) -> Result<Self> {
        let jobs = plan::jobs(blueprint, opened.catalogue().tensors());
        let targets = Targets::new(opened, blueprint, &jobs)?;
        if targets.by_role.is_empty() {
            let message = "--calibrate: no matrix of this result is rounded to codes that can be chosen one by one; \
                           convert without it";
            return Err(Error::Request(message.into()));
        }
        let Settings { tokens, context, mode, storage, threads, observer, lookups } = settings;
        let (observer, damped) = (Mutex::new(observer), Mutex::default());
        Ok(Self {
            opened,
            blueprint,
            targets,
            tokens,
            context,
            mode,
            storage,
            threads,
            observer,
            lookups,
            damped,
        })
    }

    /// Number of matrices that are calibrated.
    pub fn matrices(&self) -> usize {
        self.targets.by_role.len()
    }

    /// Matrices whose inputs left directions open, and the damping that they needed, of the mean of the diagonal.
    pub fn damped(&self) -> Vec<(String, f64)> {
        let damped = self.damped.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |role| Some(self.opened.store().ok()?.weight(role).ok()?.name);
        damped.iter().filter_map(|&(role, damping)| Some((name(role)?, damping))).collect()
    }

    fn wanted(&self, layer: Option<usize>) -> BTreeSet<Kind> {
        let has_latent = self.opened.store().is_ok_and(has_query_latent);
        let is_of = |role: &Role| match (layer, role) {
            (Some(layer), Role::Layer(of, _)) => *of == layer,
            (None, Role::Output) => true,
            _ => false,
        };
        self.targets
            .by_role
            .keys()
            .filter(|role| is_of(role))
            .filter_map(|&role| Kind::of(role, has_latent))
            .collect()
    }

    fn walk(&self, desk: &dyn Desk) -> Result<()> {
        let store = self.opened.store()?;
        let layers = store.spec().layers;
        let original = Recorder::new(store, self.storage.clone());
        let is_parallel = self.mode == Mode::Parallel;
        let mut quantized =
            Quantized::new(store, self.blueprint, &self.targets, desk, &original, is_parallel);
        if self.targets.by_role.contains_key(&Role::TokenEmbedding) {
            let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
            let data = (self.lookups)(&mut **observer)?;
            let hidden = store.spec().hidden;
            quantized.round_embedding(Square { rows: hidden, cols: hidden, data }, self.tokens)?;
        }
        let quantized = quantized;
        let watching = Watching { store, watcher: &original };
        let mut right = Walk::new(&watching, self.tokens, self.context, &self.storage)?;
        let mut own = match self.mode {
            Mode::Sequential => Some(Walk::new(&quantized, self.tokens, self.context, &self.storage)?),
            Mode::Parallel => None,
        };
        for layer in 0..layers {
            original.begin(self.wanted(Some(layer)));
            quantized.begin();
            right.attend()?;
            let choices = match &mut own {
                None => {
                    let choices = right.choices()?;
                    right.feed(choices.as_deref())?;
                    quantized.round_for_original(Some(layer), choices.as_deref())?;
                    choices
                }
                Some(own) => {
                    quantized.aim(States::copy_of(right.hidden(), &self.storage)?);
                    own.attend()?;
                    let choices = own.choices()?;
                    right.feed(choices.as_deref())?;
                    quantized.aim(States::copy_of(right.hidden(), &self.storage)?);
                    own.feed(choices.as_deref())?;
                    choices
                }
            };
            quantized.finish_layer(layer)?;
            let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
            observer.layer(layer, layers, choices.as_deref());
        }
        if self.targets.by_role.contains_key(&Role::Output) {
            original.begin(self.wanted(None));
            quantized.begin();
            watch_output(&watching, &right.finish())?;
            match own {
                None => quantized.round_for_original(None, None)?,
                Some(own) => watch_output(&quantized, &own.finish())?,
            }
        }
        let damped = std::mem::take(&mut *quantized.damped.lock().unwrap_or_else(PoisonError::into_inner));
        *self.damped.lock().unwrap_or_else(PoisonError::into_inner) = damped;
        Ok(())
    }
}

impl pipeline::Calibration for Calibration<'_> {
    fn takes(&self, job: usize) -> bool {
        self.targets.takes[job]
    }

    fn run(&self, desk: &dyn Desk) -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|error| Error::Request(format!("cannot start {} threads: {error}", self.threads)))?;
        pool.install(|| self.walk(desk))
    }
}
