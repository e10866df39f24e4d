//! A weight store over stacked and split tensors, as GGUF and MLX arrange them.
//!
//! Both stack the experts of a layer, `[experts, rows, cols]`, and split `kv_b_proj` into the key half of
//! every head, transposed, `[heads, kv_lora, nope]`, and the value half, `[heads, v, kv_lora]`. They
//! differ in names and block formats only: a [`Home`] says which tensors hold a role, a [`Stored`] how
//! a tensor is encoded.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use requant_formats::codec::Codec;

use crate::arch::{ArchSpec, Expected, Latent, Role};
use crate::checkpoint::{Weight, WeightStore, check_finite};
use crate::error::{Error, Result};
use crate::source::{Extent, Source};

/// Where one byte stream of a tensor lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) offset_bytes: u64,
    pub(super) row_bytes: usize,
}

/// A tensor of the container.
pub(super) struct Stored {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) codec: &'static dyn Codec,
    /// One place for each part of the codec.
    pub(super) places: Vec<Place>,
    /// Factors on what the codec says, one for each of as many equal runs of rows; none is 1.
    pub(super) factors: Vec<f32>,
}

impl Stored {
    /// Leading dimensions folded into rows.
    pub(super) fn matrix(&self) -> (usize, usize) {
        let (&cols, leading) = self.shape.split_last().unwrap_or((&1, &[]));
        (leading.iter().product(), cols)
    }
}

/// Names of the tensors that hold a role.
pub(super) enum Home {
    /// The whole of one.
    Whole(String),
    /// Matrix number `.1` of a stack.
    Stacked(String, usize),
    /// One of two matrices of the same shape that are number `number` of a stack, one after the other.
    Half { name: String, number: usize, is_second: bool },
    /// Rows of one that holds several, one after the other.
    Part {
        name: String,
        /// First row.
        first: usize,
        /// Rows of all.
        rows: usize,
    },
    /// Elements of a vector that holds several, one after the other.
    Section {
        name: String,
        /// First element.
        first: usize,
        /// Elements of all.
        len: usize,
    },
    /// Keys, transposed, and values.
    KeyValue(String, String),
}

/// The same, resolved.
#[derive(Clone, Copy)]
enum Rows {
    /// From this row of a tensor on.
    From {
        tensor: usize,
        first: usize,
        rows: usize,
        cols: usize,
    },
    /// From this element of a vector on.
    Section {
        tensor: usize,
        first: usize,
        len: usize,
    },
    KeyValue {
        keys: usize,
        values: usize,
    },
}

/// A model in such a container.
pub(super) struct PackedStore {
    source: Box<dyn Source>,
    spec: ArchSpec,
    tensors: Vec<Stored>,
    by_role: HashMap<Role, Rows>,
}

impl PackedStore {
    /// Finds the home of every tensor in `expected` and checks its shape.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or that nobody knows.
    pub(super) fn new(
        source: Box<dyn Source>,
        spec: ArchSpec,
        expected: &[Expected],
        tensors: Vec<Stored>,
        home: impl Fn(&Expected) -> Option<Home>,
    ) -> Result<Self> {
        let mut store = Self { source, spec, tensors, by_role: HashMap::new() };
        let names: HashMap<String, usize> =
            store.tensors.iter().enumerate().map(|(id, tensor)| (tensor.name.clone(), id)).collect();
        let mut used = HashSet::new();
        for expected in expected {
            let Some(home) = home(expected) else { continue };
            let (cols, rows) = match expected.shape.as_slice() {
                [cols] => (*cols, 1),
                [rows, cols] => (*cols, *rows),
                _ => continue,
            };
            let place = match home {
                Home::Whole(name) => {
                    let Some(&tensor) = names.get(&name) else {
                        if expected.required {
                            return Err(store.missing(&name, &expected.shape));
                        }
                        continue;
                    };
                    store.expect_shape(tensor, &expected.shape)?;
                    used.insert(tensor);
                    Rows::From { tensor, first: 0, rows, cols }
                }
                Home::Stacked(name, number) => {
                    let shape = [store.spec.experts, rows, cols];
                    let tensor = *names.get(&name).ok_or_else(|| store.missing(&name, &shape))?;
                    store.expect_shape(tensor, &shape)?;
                    used.insert(tensor);
                    Rows::From { tensor, first: number * rows, rows, cols }
                }
                Home::Half { name, number, is_second } => {
                    let shape = [store.spec.experts, 2 * rows, cols];
                    let tensor = *names.get(&name).ok_or_else(|| store.missing(&name, &shape))?;
                    store.expect_shape(tensor, &shape)?;
                    used.insert(tensor);
                    Rows::From { tensor, first: (2 * number + usize::from(is_second)) * rows, rows, cols }
                }
                Home::Part { name, first, rows: all } => {
                    let shape = [all, cols];
                    let tensor = *names.get(&name).ok_or_else(|| store.missing(&name, &shape))?;
                    store.expect_shape(tensor, &shape)?;
                    used.insert(tensor);
                    Rows::From { tensor, first, rows, cols }
                }
                Home::Section { name, first, len } => {
                    let tensor = *names.get(&name).ok_or_else(|| store.missing(&name, &[len]))?;
                    store.expect_shape(tensor, &[len])?;
                    used.insert(tensor);
                    Rows::Section { tensor, first, len: cols }
                }
                Home::KeyValue(keys, values) => {
                    let &Latent { heads, kv_lora, nope_dim, v_dim, .. } = store.spec.latent()?;
                    let mut find = |name: &str, shape: [usize; 3]| -> Result<usize> {
                        let tensor = *names.get(name).ok_or_else(|| store.missing(name, &shape))?;
                        store.expect_shape(tensor, &shape)?;
                        used.insert(tensor);
                        Ok(tensor)
                    };
                    let keys = find(&keys, [heads, kv_lora, nope_dim])?;
                    Rows::KeyValue { keys, values: find(&values, [heads, v_dim, kv_lora])? }
                }
            };
            store.by_role.insert(expected.role, place);
        }
        match (0..store.tensors.len()).find(|id| !used.contains(id)) {
            None => Ok(store),
            Some(id) => {
                let Stored { name, shape, .. } = &store.tensors[id];
                let message = format!(
                    "tensor {name} {shape:?} is unknown to this model family; \
                     an evaluation without it would be of another model"
                );
                Err(Error::checkpoint(store.file_name(id), message))
            }
        }
    }

    /// Where the bytes come from.
    pub(super) fn source(&self) -> &dyn Source {
        &*self.source
    }

    fn missing(&self, name: &str, shape: &[usize]) -> Error {
        let message = format!("tensor {name} {shape:?} is missing; the hyper-parameters imply it");
        Error::checkpoint(self.source.location(), message)
    }

    fn expect_shape(&self, tensor: usize, expected: &[usize]) -> Result<()> {
        let Stored { name, shape, .. } = &self.tensors[tensor];
        // GGUF drops trailing dimensions of 1, and a stack of one expert keeps its dimension in MLX only.
        let trimmed =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().skip_while(|&d| d == 1).collect() };
        if trimmed(shape) == trimmed(expected) {
            return Ok(());
        }
        let message =
            format!("tensor {name}: found shape {shape:?}, the hyper-parameters imply {expected:?}");
        Err(Error::checkpoint(self.file_name(tensor), message))
    }

    fn file_name(&self, tensor: usize) -> String {
        let file = self.tensors[tensor].places.first().map(|place| place.file);
        file.map_or_else(|| self.source.location(), |file| self.source.files()[file].name.clone())
    }

    fn rows_of(&self, role: Role) -> Result<Rows> {
        let tied = role == Role::Output && self.spec.tied_embeddings;
        let found = self
            .by_role
            .get(&role)
            .or_else(|| if tied { self.by_role.get(&Role::TokenEmbedding) } else { None });
        found.copied().ok_or_else(|| {
            let message = format!("no tensor serves as {role:?}; the forward pass needs it");
            Error::checkpoint(self.source.location(), message)
        })
    }

    /// Decodes rows of a stored tensor.
    fn decode(&self, tensor: usize, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        let stored = &self.tensors[tensor];
        let bytes: Vec<Vec<u8>> = stored
            .places
            .iter()
            .map(|place| {
                let mut bytes = vec![0; rows.len() * place.row_bytes];
                let offset = place.offset_bytes + (rows.start * place.row_bytes) as u64;
                self.source.read_at(place.file, offset, &mut bytes)?;
                Ok(bytes)
            })
            .collect::<Result<_>>()?;
        let parts: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        stored.codec.decode(&parts, tile);
        let (all, cols) = stored.matrix();
        if !stored.factors.is_empty() {
            let run = all / stored.factors.len();
            for (row, values) in rows.clone().zip(tile.chunks_exact_mut(cols)) {
                let factor = stored.factors[row / run];
                values.iter_mut().for_each(|value| *value *= factor);
            }
        }
        check_finite(&stored.name, &self.file_name(tensor), rows.start, cols, tile)
    }

    /// Rows of `kv_b_proj`, head by head: `nope` key rows, then `v` value rows.
    fn decode_key_value(
        &self,
        keys: usize,
        values: usize,
        rows: Range<usize>,
        tile: &mut [f32],
    ) -> Result<()> {
        let &Latent { kv_lora, nope_dim, v_dim, .. } = self.spec.latent()?;
        let head_rows = nope_dim + v_dim;
        let mut transposed = vec![0.0; kv_lora * nope_dim];
        for head in rows.start / head_rows..rows.end.div_ceil(head_rows) {
            let first = head * head_rows;
            // Wanted rows of this head, counted from its first.
            let wanted = rows.start.max(first) - first..rows.end.min(first + head_rows) - first;
            let at = |row: usize| (first + row - rows.start) * kv_lora;
            if wanted.start < nope_dim {
                self.decode(keys, head * kv_lora..(head + 1) * kv_lora, &mut transposed)?;
                for row in wanted.start..wanted.end.min(nope_dim) {
                    let column = transposed[row..].iter().step_by(nope_dim);
                    tile[at(row)..][..kv_lora].iter_mut().zip(column).for_each(|(to, &from)| *to = from);
                }
            }
            if wanted.end > nope_dim {
                let (start, end) = (wanted.start.max(nope_dim), wanted.end);
                let stored = head * v_dim + start - nope_dim..head * v_dim + end - nope_dim;
                let len = (end - start) * kv_lora;
                self.decode(values, stored, &mut tile[at(start)..][..len])?;
            }
        }
        Ok(())
    }
}

impl WeightStore for PackedStore {
    fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        let (tensor, rows, cols, unit_rows) = match self.rows_of(role)? {
            Rows::From { tensor, rows, cols, .. } => (tensor, rows, cols, 1),
            Rows::Section { tensor, len, .. } => (tensor, 1, len, 1),
            Rows::KeyValue { keys, .. } => {
                // A head's keys are stored transposed: any row takes all of them.
                let &Latent { heads, kv_lora, nope_dim, v_dim, .. } = self.spec.latent()?;
                let head_rows = nope_dim + v_dim;
                (keys, heads * head_rows, kv_lora, head_rows)
            }
        };
        let (name, file) = (self.tensors[tensor].name.clone(), self.file_name(tensor));
        Ok(Weight { role, name, file, rows, cols, unit_rows })
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        match self.rows_of(weight.role)? {
            Rows::From { tensor, first, .. } => {
                self.decode(tensor, first + rows.start..first + rows.end, tile)
            }
            Rows::Section { tensor, first, len } => {
                let mut whole = vec![0.0; self.tensors[tensor].matrix().1];
                self.decode(tensor, 0..1, &mut whole)?;
                tile.copy_from_slice(&whole[first..][..len]);
                Ok(())
            }
            Rows::KeyValue { keys, values } => self.decode_key_value(keys, values, rows, tile),
        }
    }

    fn extents(&self, role: Role) -> Result<Vec<Extent>> {
        let of = |tensor: usize, rows: Range<usize>| {
            let Stored { shape, places, .. } = &self.tensors[tensor];
            places.iter().map(move |place| {
                let at = |row: usize| place.offset_bytes + (row * place.row_bytes) as u64;
                Extent { file: place.file, range: at(rows.start)..at(rows.end), is_small: shape.len() < 2 }
            })
        };
        Ok(match self.rows_of(role)? {
            Rows::From { tensor, first, rows, .. } => of(tensor, first..first + rows).collect(),
            Rows::Section { tensor, .. } => of(tensor, 0..1).collect(),
            Rows::KeyValue { keys, values } => {
                let whole = |tensor: usize| of(tensor, 0..self.tensors[tensor].matrix().0);
                whole(keys).chain(whole(values)).collect()
            }
        })
    }
}
