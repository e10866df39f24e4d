//! The model as it is quantized so far. Whenever a matrix is about to be multiplied with inputs, it is rounded for them first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::embedding::{self, Stored};
use super::gram::{Square, cross, gram, weighed};
use super::inputs::{Kind, Picked, WithFactors};
use super::recorder::{Recorder, has_query_latent};
use super::rounding::{Correction, Encoded, Feedback, Lengths, Task};
use super::targets::Targets;
use crate::checkpoint::{Matrix, Watcher, Weight, WeightStore};
use crate::error::{Error, Result};
use crate::family::{LayerRole, Role, Spec};
use crate::model::{Choice, States, picks};
use crate::pipeline::{Damped, Desk, Refinement};
use crate::plan::{Blueprint, OutputTensor};
use crate::source::Extent;

/// How many tokens of the layer's mean are added to those of an expert, for each column.
const PSEUDO_TOKENS: f32 = 0.1;

/// The model on its way.
pub(super) struct Quantized<'a> {
    pub(super) store: &'a dyn WeightStore,
    pub(super) blueprint: &'a Blueprint,
    pub(super) targets: &'a Targets,
    pub(super) desk: &'a dyn Desk,
    /// The original, whose inputs are the right ones.
    pub(super) original: &'a Recorder<'a>,
    /// Whether inputs are those of the original, so that there is nothing to make good.
    pub(super) is_parallel: bool,
    /// Matrices of this layer as they are stored, of experts only those of the one that is at work: all of a large model's layer
    /// would be tens of gigabytes.
    known: RwLock<HashMap<Role, Arc<Vec<f32>>>>,
    /// Rows of the embedding as they are stored.
    embedded: RwLock<Stored>,
    state: Mutex<State>,
    /// Matrices for which more damping was needed.
    pub(super) damped: Mutex<Vec<Damped>>,
}

#[derive(Default)]
struct State {
    /// Of the input that came last.
    stage: Option<Arc<Stage>>,
    /// Sum of the outer products of the inputs of all experts, and the number of rows.
    ffn: Option<Arc<(Square, usize)>>,
    /// Hidden states of the original behind this half of the layer.
    right: Option<Arc<States>>,
    /// Matrices of this layer that are rounded.
    rounded: BTreeSet<Role>,
}

/// What is known of one input.
struct Stage {
    kind: Kind,
    h: Square,
    mean: f32,
    /// Sum of products of differences from the right input, and the input.
    differences: Option<Square>,
    /// By what columns share scales.
    feedbacks: Mutex<BTreeMap<Lengths, Arc<Feedback>>>,
}

/// Rows that are ready, as rows of the source's tensor.
pub(super) struct Ready(pub(super) Vec<Encoded>);

impl Refinement for Ready {
    fn encode(
        &self,
        output: &OutputTensor,
        _: f32,
        rows: &[usize],
        _: &[f32],
        dst: &mut [&mut [u8]],
    ) -> Result<()> {
        let cols = output.row_len_elems() as u64;
        for (part, dst) in dst.iter_mut().enumerate() {
            let bytes = requant_formats::codec::part_len_bytes(output.codec, part, cols) as usize;
            for (row, to) in rows.iter().zip(dst.chunks_exact_mut(bytes)) {
                let encoded = self.0.iter().find(|encoded| encoded.rows.contains(row)).ok_or_else(|| {
                    let name = &output.names[0];
                    Error::Request(format!("tensor {name}: row {row} was not calibrated; please report this"))
                })?;
                to.copy_from_slice(&encoded.parts[part][(row - encoded.rows.start) * bytes..][..bytes]);
            }
        }
        Ok(())
    }
}

impl<'a> Quantized<'a> {
    pub(super) fn new(
        store: &'a dyn WeightStore,
        blueprint: &'a Blueprint,
        targets: &'a Targets,
        desk: &'a dyn Desk,
        original: &'a Recorder<'a>,
        is_parallel: bool,
    ) -> Self {
        Self {
            store,
            blueprint,
            targets,
            desk,
            original,
            is_parallel,
            known: RwLock::default(),
            embedded: RwLock::default(),
            state: Mutex::default(),
            damped: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rounds the embedding, if it is calibrated, under sums of outer products of gradients of its rows.
    pub(super) fn round_embedding(&mut self, h: Square, tokens: &[u32]) -> Result<()> {
        if let Some(target) = self.targets.by_role.get(&Role::TokenEmbedding) {
            let damped = self.damped.get_mut().unwrap_or_else(PoisonError::into_inner);
            let rows = embedding::round(self.store, self.blueprint, (target, self.desk), h, tokens, damped)?;
            *self.embedded.get_mut().unwrap_or_else(PoisonError::into_inner) = rows;
        }
        Ok(())
    }

    /// A new layer, or the head.
    pub(super) fn begin(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).clear();
        *self.state() = State::default();
    }

    /// The prediction layer. It looks its tokens up as they are rounded without calibration: so a run that is gone on with, which
    /// does not know how they were calibrated, comes to the same.
    pub(super) fn begin_prediction(&self) {
        self.begin();
        self.embedded.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The hidden states that this half of the layer is to come to.
    pub(super) fn aim(&self, right: States) {
        self.state().right = Some(Arc::new(right));
    }

    /// The mean input of experts is that of all tokens.
    pub(super) fn see_ffn(&self, input: &dyn Matrix) -> Result<()> {
        let is_wanted = |kind| matches!(kind, Some(Kind::Expert(_)));
        if self.state().ffn.is_none()
            && self.targets.by_role.keys().any(|&role| is_wanted(Kind::of(role, true)))
        {
            let sum = gram(input)?;
            self.state().ffn = Some(Arc::new((sum, input.rows())));
        }
        Ok(())
    }

    /// Rounds the matrices of experts that no token reached, for what experts see on average.
    pub(super) fn finish_layer(&self, layer: usize) -> Result<()> {
        for (role, _) in self.targets.of_layer(layer) {
            let is_rounded = self.state().rounded.contains(&role);
            if !is_rounded {
                let cols = self.store.weight(role)?.cols;
                self.round(role, &Nothing { cols }, None)?;
            }
        }
        Ok(())
    }

    /// Rounds the matrices of a layer for the inputs that the original has.
    pub(super) fn round_for_original(
        &self,
        layer: Option<usize>,
        choices: Option<&[Vec<Choice>]>,
    ) -> Result<()> {
        let mut seen = std::mem::take(&mut self.original.seen().inputs);
        if let Some(ffn) = seen.get(&Kind::Ffn) {
            self.see_ffn(ffn)?;
        }
        let roles: Vec<Role> = match layer {
            Some(layer) => self.targets.of_layer(layer).map(|(role, _)| role).collect(),
            None => self.targets.by_role.keys().copied().filter(|role| *role == Role::Output).collect(),
        };
        for role in roles {
            let Some(kind) = self.kind(role) else { continue };
            match (kind, choices) {
                (Kind::Expert(expert), Some(choices)) => {
                    let picks = picks(choices, expert);
                    let Some(of) = seen.get(&Kind::Ffn).filter(|_| !picks.is_empty()) else { continue };
                    self.round(role, &Picked { of, picks: &picks }, None)?;
                }
                (Kind::Inner(Some(expert)), Some(choices)) => {
                    let picks = picks(choices, expert);
                    let Some(of) = seen.get(&kind) else { continue };
                    self.round(role, &WithFactors { of, picks: Some(&picks) }, None)?;
                }
                _ => {
                    let Some(input) = seen.get(&kind) else { continue };
                    self.round(role, input, None)?;
                }
            }
        }
        seen.clear();
        Ok(())
    }

    fn kind(&self, role: Role) -> Option<Kind> {
        Kind::of(role, has_query_latent(self.store))
    }

    /// Rounds the matrix with this role for `input`.
    fn round(&self, role: Role, input: &dyn Matrix, hidden: Option<&dyn Matrix>) -> Result<()> {
        let (Some(target), Some(kind)) = (self.targets.by_role.get(&role), self.kind(role)) else {
            return Ok(());
        };
        let last = self.state().stage.clone().filter(|stage| stage.kind == kind);
        let stage = match last {
            Some(stage) => stage,
            None => {
                let stage = Arc::new(self.stage(kind, input)?);
                self.state().stage = Some(Arc::clone(&stage));
                stage
            }
        };
        let [rows, cols] = target.shape;
        let right = self.state().right.clone();
        // Norms between a block and the hidden states leave no place to repair these.
        let hidden = hidden.filter(|_| !self.store.spec().norms.post && !self.is_parallel);
        let wanted = match (hidden, right) {
            (Some(hidden), Some(right)) => Some(cross(rows, input, |tokens, _| {
                let mut missing = right.read(tokens.clone())?.into_owned();
                missing.iter_mut().zip(&*hidden.read(tokens)?).for_each(|(value, there)| *value -= there);
                Ok(missing)
            })?),
            _ => None,
        };
        let weight = self.store.weight(role)?;
        let mut stored = vec![0.0; rows * cols];
        // Rows that are stored in another way are as they are.
        self.store.read_rows(&weight, 0..rows, &mut stored)?;
        for (&tensor, jobs) in &target.outputs {
            let output = &self.blueprint.tensors[tensor];
            let feedback = stage.feedback(Lengths::of(output.codec)).ok_or_else(|| {
                let message = format!(
                    "tensor {}: squares of its inputs are beyond f32, so it cannot be calibrated; convert without --calibrate",
                    weight.name
                );
                Error::checkpoint(&weight.file, message)
            })?;
            let task = Task {
                output,
                tensor_scale: self.desk.tensor_scale(output)?,
                feedback: &feedback,
                correction: match (&wanted, &stage.differences) {
                    (Some(wanted), _) => Correction::Residual(wanted, &stage.h),
                    (None, Some(differences)) => Correction::Target(differences),
                    (None, None) => Correction::None,
                },
                mean: stage.mean,
            };
            if feedback.is_damped() {
                let found = Damped { name: weight.name.clone(), damping: feedback.damping };
                self.damped.lock().unwrap_or_else(PoisonError::into_inner).push(found);
            }
            let mut encoded = Vec::with_capacity(jobs.len());
            for (_, rows) in jobs {
                let read = |rows: Range<usize>, tile: &mut [f32]| self.store.read_rows(&weight, rows, tile);
                let stored = &mut stored[rows.start * cols..rows.end * cols];
                encoded.push(task.encode(rows.clone(), &read, stored)?.behind(target.first));
            }
            let numbers: Vec<usize> = jobs.iter().map(|&(number, _)| number).collect();
            self.desk.encode(&numbers, Arc::new(Ready(encoded)))?;
        }
        self.state().rounded.insert(role);
        if !self.is_parallel {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(expert) = expert(role) {
                known.retain(|&other, _| self::expert(other).is_none_or(|other| other == expert));
            }
            known.insert(role, Arc::new(stored));
        }
        Ok(())
    }

    /// What there is to know of an input.
    fn stage(&self, kind: Kind, input: &dyn Matrix) -> Result<Stage> {
        let mut h = gram(input)?;
        let ffn = self.state().ffn.clone();
        let mut original = self.original.seen();
        let mean = match kind {
            Kind::Expert(_) => ffn.as_deref().map(|(sum, rows)| (sum, *rows)),
            Kind::Inner(Some(_)) => original.inner.as_ref().map(|(sum, rows)| (sum, *rows)),
            _ => None,
        };
        if let Some((sum, rows)) = mean {
            let factors = input.picks().unwrap_or_default();
            let squares: f32 = factors.iter().map(|(_, factor)| factor * factor).sum();
            let square = if factors.is_empty() { 1.0 } else { squares / factors.len() as f32 };
            h.add(PSEUDO_TOKENS * h.cols as f32 * square / rows.max(1) as f32, sum);
        }
        if h.mean_diagonal() == 0.0 {
            (0..h.cols).for_each(|column| h.data[column * h.cols + column] = 1.0);
        }
        let differences = if self.is_parallel || input.rows() == 0 {
            None
        } else {
            let differ = |right: &dyn Matrix| {
                cross(h.cols, input, |tokens, own| {
                    let mut right = weighed(right, tokens)?;
                    right.iter_mut().zip(own).for_each(|(value, own)| *value -= own);
                    Ok(right)
                })
            };
            let picks = input.picks().unwrap_or_default();
            let inputs = &mut original.inputs;
            match kind {
                Kind::Expert(_) => {
                    inputs.get(&Kind::Ffn).map(|of| differ(&Picked { of, picks })).transpose()?
                }
                // Nobody needs it after this.
                Kind::Inner(Some(_)) => inputs
                    .remove(&kind)
                    .map(|of| differ(&WithFactors { of: &of, picks: input.picks() }))
                    .transpose()?,
                _ => inputs.get(&kind).map(|of| differ(of)).transpose()?,
            }
        };
        let mean = h.mean_diagonal() as f32;
        Ok(Stage { kind, h, mean, differences, feedbacks: Mutex::default() })
    }
}

/// The number of the expert that a matrix is of.
fn expert(role: Role) -> Option<usize> {
    match role {
        Role::Layer(_, LayerRole::Expert(expert, _)) => Some(expert),
        _ => None,
    }
}

impl Stage {
    /// The feedback for groups of these lengths, if sums are numbers.
    fn feedback(&self, lengths: Lengths) -> Option<Arc<Feedback>> {
        let mut known = self.feedbacks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&lengths) {
            return Some(Arc::clone(found));
        }
        let found = Arc::new(Feedback::new(&self.h, lengths)?);
        known.insert(lengths, Arc::clone(&found));
        Some(found)
    }
}

/// No rows.
struct Nothing {
    cols: usize,
}

impl Matrix for Nothing {
    fn rows(&self) -> usize {
        0
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(&self, _: Range<usize>) -> Result<std::borrow::Cow<'_, [f32]>> {
        Ok(Vec::new().into())
    }
}

impl Watcher for Quantized<'_> {
    fn wants_sums(&self) -> bool {
        false
    }

    fn meets(&self, role: Role, input: &dyn Matrix, hidden: Option<&dyn Matrix>) -> Result<()> {
        if self.kind(role) == Some(Kind::Ffn) && input.picks().is_none() {
            self.see_ffn(input)?;
        }
        self.round(role, input, hidden)
    }
}

impl WeightStore for Quantized<'_> {
    fn spec(&self) -> &Spec {
        self.store.spec()
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        self.store.weight(role)
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&weight.role).cloned();
        if let Some(stored) = known {
            tile.copy_from_slice(&stored[rows.start * weight.cols..rows.end * weight.cols]);
            return Ok(());
        }
        if weight.role == Role::TokenEmbedding
            && rows.len() == 1
            && let Some(stored) =
                self.embedded.read().unwrap_or_else(PoisonError::into_inner).get(&rows.start)
        {
            tile.copy_from_slice(stored);
            return Ok(());
        }
        self.store.read_rows(weight, rows, tile)?;
        if let Some(&tensor) = self.targets.rounded.get(&weight.role) {
            let output = &self.blueprint.tensors[tensor];
            let codec = output.codec;
            output.rounding.apply(tile);
            let mut parts: Vec<Vec<u8>> = (0..codec.parts().len())
                .map(|part| {
                    vec![0; requant_formats::codec::part_len_bytes(codec, part, tile.len() as u64) as usize]
                })
                .collect();
            let scale = self.desk.tensor_scale(output)?;
            let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
            codec.encode_under(scale, tile, &mut slices);
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            codec.decode_under(scale, &slices, tile);
        }
        Ok(())
    }

    fn watcher(&self) -> Option<&dyn Watcher> {
        Some(self)
    }

    fn extents(&self, role: Role) -> Result<Vec<Extent>> {
        self.store.extents(role)
    }
}
