//! A model that is made up.

use std::collections::BTreeMap;
use std::ops::Range;

use super::numbers;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::{Error, Result};
use crate::family::{LayerRole, Role, Spec, of_architecture};
use crate::source::Extent;

/// A model of random weights in memory.
#[derive(Clone)]
pub(super) struct Made {
    spec: Spec,
    pub(super) weights: BTreeMap<Role, (usize, usize, Vec<f32>)>,
}

impl Made {
    pub(super) fn new(spec: Spec, seed: u64) -> Self {
        let family = of_architecture("llama").unwrap();
        let mut weights = BTreeMap::new();
        for (number, tensor) in family.tensors(&spec).into_iter().enumerate() {
            if tensor.role == Role::Output && spec.embedding.tied {
                continue;
            }
            let (rows, cols) = match *tensor.shape.as_slice() {
                [rows, cols] => (rows, cols),
                [cols] => (1, cols),
                _ => panic!("{:?}", tensor.shape),
            };
            let (mean, size) = match tensor.role {
                Role::TokenEmbedding => (0.0, 1.0),
                Role::OutputNorm => (1.0, 0.3),
                Role::Layer(_, LayerRole::Router) => (0.0, 4.0 / (cols as f32).sqrt()),
                _ if rows > 1 => (0.0, 2.0 / (cols as f32).sqrt()),
                Role::Layer(
                    _,
                    LayerRole::QBias
                    | LayerRole::KBias
                    | LayerRole::VBias
                    | LayerRole::AttentionOutputBias
                    | LayerRole::DenseBias(_)
                    | LayerRole::Sinks
                    | LayerRole::RouterLogitBias
                    | LayerRole::ExpertBias(..)
                    | LayerRole::RouterBias,
                )
                | Role::OutputBias => (0.0, 0.3),
                Role::Layer(_, LayerRole::SharedGate) => (0.0, 0.5),
                _ => (1.0, 0.3),
            };
            let values = numbers(rows * cols, seed * 1000 + number as u64);
            let values = values.into_iter().map(|value| mean + size * value).collect();
            weights.insert(tensor.role, (rows, cols, values));
        }
        Self { spec, weights }
    }

    fn serving(&self, role: Role) -> Role {
        if role == Role::Output && self.spec.embedding.tied { Role::TokenEmbedding } else { role }
    }
}

impl WeightStore for Made {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        let (rows, cols, _) = self
            .weights
            .get(&self.serving(role))
            .ok_or_else(|| Error::Request(format!("there is no {role:?}")))?;
        let (name, file) = (format!("{:?}", self.serving(role)), "made".into());
        Ok(Weight { role, name, file, rows: *rows, cols: *cols, unit_rows: 1 })
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        let (_, cols, values) = &self.weights[&self.serving(weight.role)];
        tile.copy_from_slice(&values[rows.start * cols..rows.end * cols]);
        Ok(())
    }

    fn extents(&self, _: Role) -> Result<Vec<Extent>> {
        Ok(Vec::new())
    }
}
