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

mod cost;
mod embedding;
pub(crate) mod gram;
pub(crate) mod inputs;
mod quantized;
mod recorder;
mod rounding;
mod side_by_side;
mod targets;
mod texts;

pub use cost::Cost;
use gram::Square;
use inputs::Kind;
use quantized::Quantized;
use recorder::Recorder;
pub(crate) use recorder::has_query_latent;
pub(crate) use rounding::left_by_feedback;
use side_by_side::SideBySide;
use targets::Targets;
pub use texts::DEFAULT as DEFAULT_TEXT;

use crate::checkpoint::{Watching, WeightStore};
use crate::error::{Error, Result};
use crate::family::Role;
use crate::model::{
    Choice, Observer, Saved, States, Stopped, Storage, There, Walk, before_second_next, watch_output,
};
use crate::opened::Opened;
use crate::pipeline::{self, Damped, Desk, Keep};
use crate::plan::{self, Blueprint};

/// Windows that say which errors in the embedding count.
pub const LOOKUP_WINDOWS: usize = 16;

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
    damped: Mutex<Vec<Damped>>,
    /// Where the walk is kept, and how far an earlier run has come.
    kept: Mutex<Option<(Saved, Option<Stopped>)>>,
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

/// What it costs to calibrate the conversion of `opened` that `blueprint` describes on `tokens` tokens, in windows of `context`,
/// with `limit_bytes` of memory (else what is available).
///
/// # Errors
/// When the model cannot be evaluated, or nothing of the result can be calibrated.
pub fn cost(
    opened: &Opened,
    blueprint: &Blueprint,
    tokens: usize,
    context: usize,
    mode: Mode,
    limit_bytes: Option<u64>,
) -> Result<Cost> {
    cost::cost(opened.store()?, &targets(opened, blueprint)?, (tokens, context), mode, limit_bytes)
}

/// Matrices that are calibrated.
fn targets(opened: &Opened, blueprint: &Blueprint) -> Result<Targets> {
    let targets = Targets::new(opened, blueprint, &plan::jobs(blueprint, opened.catalogue().tensors()))?;
    if targets.by_role.is_empty() {
        let message = "--calibrate: no matrix of this result is rounded to codes that can be chosen one by one; \
                       convert without it";
        return Err(Error::Request(message.into()));
    }
    Ok(targets)
}

impl<'a> Calibration<'a> {
    /// Of the conversion of `opened` that `blueprint` describes.
    ///
    /// # Errors
    /// When the model cannot be evaluated, or nothing of the result can be calibrated.
    pub fn new(opened: &'a Opened, blueprint: &'a Blueprint, settings: Settings<'a>) -> Result<Self> {
        let targets = targets(opened, blueprint)?;
        let Settings { tokens, context, mode, storage, threads, observer, lookups } = settings;
        let observer = Mutex::new(observer);
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
            damped: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    /// Number of matrices that are calibrated.
    pub fn matrices(&self) -> usize {
        self.targets.by_role.len()
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

    /// A walk from the first layer, or from layer `first` where it had these `states`.
    fn begin<'s>(
        &self,
        store: &'s dyn WeightStore,
        first: usize,
        states: Option<States>,
    ) -> Result<Walk<'s>> {
        match states {
            Some(states) => Walk::resume(store, self.tokens.len(), self.context, first, states),
            None => Walk::new(store, self.tokens, self.context, &self.storage),
        }
    }

    fn walk(&self, desk: &dyn Desk) -> Result<()> {
        let store = self.opened.store()?;
        let layers = store.spec().layers;
        let original = Recorder::new(store, self.storage.clone());
        let is_parallel = self.mode == Mode::Parallel;
        let mut quantized =
            Quantized::new(store, self.blueprint, &self.targets, desk, &original, is_parallel);
        let (saved, stopped) = match self.kept.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => (None, None),
            Some((saved, stopped)) => (Some(saved), stopped),
        };
        if stopped.is_none() && self.targets.by_role.contains_key(&Role::TokenEmbedding) {
            let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
            let data = (self.lookups)(&mut **observer)?;
            let hidden = store.spec().hidden;
            quantized.round_embedding(Square { rows: hidden, cols: hidden, data }, self.tokens)?;
        }
        let first = stopped.as_ref().map_or(0, |stopped| stopped.layers);
        let mut states = Vec::new().into_iter();
        if let Some(stopped) = stopped {
            *quantized.damped.get_mut().unwrap_or_else(PoisonError::into_inner) = known(&stopped.own);
            states = stopped.states.into_iter();
        }
        let quantized = quantized;
        let watching = Watching { store, watcher: &original };
        let mut walks = SideBySide {
            right: self.begin(&watching, first, states.next())?,
            own: match self.mode {
                Mode::Sequential => Some(self.begin(&quantized, first, states.next())?),
                Mode::Parallel => None,
            },
        };
        let has_prediction = self.targets.of_layer(layers).next().is_some();
        let all = layers + usize::from(has_prediction);
        let done = |layer: usize, choices: Option<&[Vec<Choice>]>| {
            self.observer.lock().unwrap_or_else(PoisonError::into_inner).layer(layer, all, choices);
        };
        for layer in first..layers {
            original.begin(self.wanted(Some(layer)));
            quantized.begin();
            let choices = walks.step(layer, &quantized, &self.storage)?;
            if let Some(saved) = &saved {
                // What is behind this layer counts only if all before it is on the disk.
                desk.settle()?;
                let damped = quantized.damped.lock().unwrap_or_else(PoisonError::into_inner);
                let own = serde_json::to_vec(&*damped).unwrap_or_default();
                saved.write(layer + 1, &walks.states(), &own)?;
            }
            done(layer, choices.as_deref());
        }
        let (right, own) = walks.finish();
        if has_prediction {
            original.begin(self.wanted(Some(layers)));
            quantized.begin_prediction();
            let (tokens, context) = (self.tokens, self.context);
            let own = own.as_ref().map(|own| before_second_next(&quantized, own, tokens, context));
            let right = before_second_next(&watching, &right, tokens, context)?;
            let mut walks = SideBySide { right, own: own.transpose()? };
            let choices = walks.step(layers, &quantized, &self.storage)?;
            done(layers, choices.as_deref());
        }
        if self.targets.by_role.contains_key(&Role::Output) {
            original.begin(self.wanted(None));
            quantized.begin();
            watch_output(&watching, &right)?;
            match own {
                None => quantized.round_for_original(None, None)?,
                Some(own) => watch_output(&quantized, &own)?,
            }
        }
        let damped = std::mem::take(&mut *quantized.damped.lock().unwrap_or_else(PoisonError::into_inner));
        *self.damped.lock().unwrap_or_else(PoisonError::into_inner) = damped;
        Ok(())
    }
}

/// What was kept beside states.
fn known(own: &[u8]) -> Vec<Damped> {
    serde_json::from_slice(own).unwrap_or_default()
}

impl pipeline::Calibration for Calibration<'_> {
    fn takes(&self, job: usize) -> bool {
        self.targets.takes[job]
    }

    fn go_on(&self, keep: Keep, done: &dyn Fn(usize) -> bool) -> Result<Vec<usize>> {
        let saved = Saved::new(keep.disk, keep.path, keep.request);
        let streams = if self.mode == Mode::Sequential { 2 } else { 1 };
        let stopped = match saved.read(&self.storage)? {
            There::Walk(stopped) if stopped.states.len() == streams => Some(stopped),
            _ => None,
        };
        let stopped = stopped.filter(|stopped| self.targets.jobs_before(stopped.layers).all(done));
        let layers = stopped.as_ref().map(|stopped| stopped.layers);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((saved, stopped));
        Ok(layers.map_or_else(Vec::new, |layers| self.targets.jobs_before(layers).collect()))
    }

    fn run(&self, desk: &dyn Desk) -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|error| Error::Request(format!("cannot start {} threads: {error}", self.threads)))?;
        pool.install(|| self.walk(desk))
    }

    fn damped(&self) -> Vec<Damped> {
        self.damped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
