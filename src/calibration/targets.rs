//! Which matrices are calibrated, and which jobs of a plan write them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::inputs::Kind;
use super::rounding;
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::family::{Role, Turn};
use crate::model::has_second_next;
use crate::opened::Opened;
use crate::plan::{Blueprint, Job, OutputTensor};

/// A matrix that is calibrated.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Rows and columns.
    pub(super) shape: [usize; 2],
    /// Which row of the source's tensor is its first.
    pub(super) first: usize,
    /// Jobs that write rows of it, and these rows, by the output tensor.
    pub(super) outputs: BTreeMap<usize, Vec<(usize, Range<usize>)>>,
}

/// All of them, and what else the forward pass of the result needs to know.
pub(super) struct Targets {
    pub(super) by_role: BTreeMap<Role, Target>,
    /// For each job whether one of these takes it.
    pub(super) takes: Vec<bool>,
    /// Output tensors that have all rows of a matrix that is only rounded, as they are.
    pub(super) rounded: HashMap<Role, usize>,
}

impl Targets {
    /// # Errors
    /// When the model cannot be evaluated, or a matrix becomes a type of codebooks.
    pub(super) fn new(opened: &Opened, blueprint: &Blueprint, jobs: &[Job]) -> Result<Self> {
        let (store, family) = (opened.store()?, opened.family()?);
        let catalogue = opened.catalogue();
        let ids: HashMap<&str, usize> =
            catalogue.tensors().iter().enumerate().map(|(id, tensor)| (tensor.name.as_str(), id)).collect();
        let mut of_source: HashMap<usize, Vec<usize>> = HashMap::new();
        for (number, job) in jobs.iter().enumerate() {
            let source = blueprint.tensors[job.tensor].pieces[job.piece].source;
            of_source.entry(source).or_default().push(number);
        }
        let mut targets =
            Self { by_role: BTreeMap::new(), takes: vec![false; jobs.len()], rounded: HashMap::new() };
        for tensor in family.tensors(store.spec()) {
            let role = tensor.role;
            let Some((name, first)) = store.stored(role) else { continue };
            let Some((id, weight)) = ids.get(name.as_str()).copied().zip(store.weight(role).ok()) else {
                continue;
            };
            let mut target = Target { shape: [weight.rows, weight.cols], first, outputs: BTreeMap::new() };
            for &number in of_source.get(&id).into_iter().flatten() {
                let job = &jobs[number];
                let (output, rows) = (&blueprint.tensors[job.tensor], &job.source_rows);
                let piece = &output.pieces[job.piece];
                if piece.turn == Turn::Transposed
                    || piece.unscaled
                    || output.copies(piece, &catalogue.tensors()[id])
                {
                    continue;
                }
                if role == Role::TokenEmbedding {
                    targets.rounded.insert(role, job.tensor);
                }
                if is_calibrated(role, store) && output.codec.weighs() && output.codec.ladder().is_none() {
                    return Err(Error::Request(format!(
                        "--calibrate: {} becomes {}, whose codes cannot be chosen one by one; convert with an importance matrix \
                         (requant calibrate, --imatrix), or to another type",
                        output.names[0], output.type_name
                    )));
                }
                let is_inside = rows.start >= first && rows.end <= first + weight.rows;
                if !is_calibrated(role, store) || !is_inside || !can(output, weight.cols) {
                    continue;
                }
                let own = rows.start - first..rows.end - first;
                target.outputs.entry(job.tensor).or_default().push((number, own));
                targets.takes[number] = true;
            }
            if !target.outputs.is_empty() {
                targets.by_role.insert(role, target);
            }
        }
        Ok(targets)
    }

    /// Jobs of the embedding and of the first `layers` layers.
    pub(super) fn jobs_before(&self, layers: usize) -> impl Iterator<Item = usize> {
        let is_before = move |role: &Role| match role {
            Role::TokenEmbedding => true,
            Role::Layer(layer, _) => *layer < layers,
            _ => false,
        };
        let targets = self.by_role.iter().filter(move |(role, _)| is_before(role)).map(|(_, target)| target);
        targets.flat_map(|target| target.outputs.values().flatten().map(|&(job, _)| job))
    }

    /// Those of one layer, in the order of their roles.
    pub(super) fn of_layer(&self, layer: usize) -> impl Iterator<Item = (Role, &Target)> {
        let own =
            self.by_role.iter().filter(move |(role, _)| matches!(role, Role::Layer(of, _) if *of == layer));
        own.map(|(&role, target)| (role, target))
    }
}

fn can(output: &OutputTensor, cols: usize) -> bool {
    output.row_len_elems() == cols && rounding::can(output.codec)
}

/// Matrices of layers, that of the first prediction module too, and a head of its own.
fn is_calibrated(role: Role, store: &dyn WeightStore) -> bool {
    let spec = store.spec();
    match role {
        Role::Output => !spec.embedding.tied,
        Role::TokenEmbedding => true,
        Role::Layer(layer, own) => {
            layer < spec.layers + usize::from(has_second_next(store))
                && own.is_linear()
                && Kind::of(role, true).is_some()
        }
        _ => false,
    }
}
