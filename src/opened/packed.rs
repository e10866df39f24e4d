//! A weight store over tensors that are stacked, fused and split, as GGUF and MLX arrange them.
//!
//! A [`Place`] of the family says which tensors hold a role, a [`Stored`] how a tensor is encoded.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use requant_formats::codec::Codec;

use crate::checkpoint::{Weight, WeightStore, check_finite};
use crate::error::{Error, Result};
use crate::family::{Ecosystem, Family, Place, Presence, Role, Spec};
use crate::source::{Extent, Source};

/// Where one byte stream of a tensor lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
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
    /// One for each part of the codec.
    pub(super) streams: Vec<Stream>,
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

/// A [`Place`], resolved.
#[derive(Clone, Copy)]
enum Rows {
    /// From this row of a tensor on.
    From { tensor: usize, first: usize, rows: usize, cols: usize },
    /// From this element of a vector on.
    Section { tensor: usize, first: usize, len: usize },
    /// The first rows of each head transposed, and the others.
    Split(Split),
}

/// Heads whose first rows are transposed in one tensor and whose other rows are in another.
#[derive(Clone, Copy)]
struct Split {
    keys: usize,
    values: usize,
    heads: usize,
    key_rows: usize,
    value_rows: usize,
    cols: usize,
}

/// A model in such a container.
pub(super) struct PackedStore {
    source: Arc<dyn Source>,
    spec: Spec,
    tensors: Vec<Stored>,
    by_role: HashMap<Role, Rows>,
}

impl PackedStore {
    /// Finds every tensor of a model of `family` among those that `ecosystem` has stored, and checks its shape.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or that nobody knows.
    pub(super) fn new(
        source: Arc<dyn Source>,
        family: &Family,
        spec: Spec,
        ecosystem: Ecosystem,
        tensors: Vec<Stored>,
    ) -> Result<Self> {
        let mut store = Self { source, spec, tensors, by_role: HashMap::new() };
        let names: HashMap<String, usize> =
            store.tensors.iter().enumerate().map(|(id, tensor)| (tensor.name.clone(), id)).collect();
        let mut used: HashSet<usize> = HashSet::new();
        for expected in family.tensors(&store.spec) {
            let places = expected.places(ecosystem);
            let is_there = |place: &&Place| place.names().any(|name| names.contains_key(name));
            // The preferred place is the one that is missing where none is there.
            let Some(place) = places.iter().find(is_there).or(places.first()) else { continue };
            let mut ids = Vec::with_capacity(2);
            for (name, shape) in place.holders(&expected.shape) {
                match names.get(name) {
                    Some(&id) => {
                        store.expect_shape(id, &shape)?;
                        ids.push(id);
                    }
                    None if expected.presence == Presence::Always => return Err(store.missing(name, &shape)),
                    None => {}
                }
            }
            used.extend(&ids);
            if let Some(rows) = resolved(place, &expected.shape, &ids) {
                store.by_role.insert(expected.role, rows);
            }
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
        let file = self.tensors[tensor].streams.first().map(|stream| stream.file);
        file.map_or_else(|| self.source.location(), |file| self.source.files()[file].name.clone())
    }

    fn rows_of(&self, role: Role) -> Result<Rows> {
        let tied = role == Role::Output && self.spec.embedding.tied;
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
            .streams
            .iter()
            .map(|stream| {
                let mut bytes = vec![0; rows.len() * stream.row_bytes];
                let offset = stream.offset_bytes + (rows.start * stream.row_bytes) as u64;
                self.source.read_at(stream.file, offset, &mut bytes)?;
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

    /// Rows of a split matrix, head by head: those that are transposed, then the others.
    fn decode_split(&self, split: Split, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        let Split { keys, values, key_rows, value_rows, cols, .. } = split;
        let head_rows = key_rows + value_rows;
        let mut transposed = vec![0.0; cols * key_rows];
        for head in rows.start / head_rows..rows.end.div_ceil(head_rows) {
            let first = head * head_rows;
            // Wanted rows of this head, counted from its first.
            let wanted = rows.start.max(first) - first..rows.end.min(first + head_rows) - first;
            let at = |row: usize| (first + row - rows.start) * cols;
            if wanted.start < key_rows {
                self.decode(keys, head * cols..(head + 1) * cols, &mut transposed)?;
                for row in wanted.start..wanted.end.min(key_rows) {
                    let column = transposed[row..].iter().step_by(key_rows);
                    tile[at(row)..][..cols].iter_mut().zip(column).for_each(|(to, &from)| *to = from);
                }
            }
            if wanted.end > key_rows {
                let (start, end) = (wanted.start.max(key_rows), wanted.end);
                let stored = head * value_rows + start - key_rows..head * value_rows + end - key_rows;
                let len = (end - start) * cols;
                self.decode(values, stored, &mut tile[at(start)..][..len])?;
            }
        }
        Ok(())
    }
}

/// Where the rows of a tensor of this shape are, if all the tensors that hold it are there.
fn resolved(place: &Place, shape: &[usize], ids: &[usize]) -> Option<Rows> {
    let (rows, cols) = match *shape {
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return None,
    };
    match (place, ids) {
        (Place::Whole(_), &[tensor]) => Some(Rows::From { tensor, first: 0, rows, cols }),
        (&Place::Rows { first, .. }, &[tensor]) if shape.len() < 2 => {
            Some(Rows::Section { tensor, first, len: cols })
        }
        (&Place::Rows { first, .. }, &[tensor]) => Some(Rows::From { tensor, first, rows, cols }),
        (&Place::Stacked { number, first, of, .. }, &[tensor]) => {
            Some(Rows::From { tensor, first: number * of + first, rows, cols })
        }
        (&Place::SplitTransposed { heads, key_rows, value_rows, .. }, &[keys, values]) => {
            Some(Rows::Split(Split { keys, values, heads, key_rows, value_rows, cols }))
        }
        _ => None,
    }
}

impl WeightStore for PackedStore {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        let (tensor, rows, cols, unit_rows) = match self.rows_of(role)? {
            Rows::From { tensor, rows, cols, .. } => (tensor, rows, cols, 1),
            Rows::Section { tensor, len, .. } => (tensor, 1, len, 1),
            Rows::Split(Split { keys, heads, key_rows, value_rows, cols, .. }) => {
                // A head's first rows are stored transposed: any of them takes all.
                let head_rows = key_rows + value_rows;
                (keys, heads * head_rows, cols, head_rows)
            }
        };
        let (name, file) = (self.tensors[tensor].name.clone(), self.file_name(tensor));
        Ok(Weight { role, name, file, rows, cols, unit_rows })
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        match self.rows_of(weight.role)? {
            Rows::From { tensor, first, .. } => {
                self.decode(tensor, first + rows.start..first + rows.end, tile)?;
            }
            Rows::Section { tensor, first, len } => {
                let mut whole = vec![0.0; self.tensors[tensor].matrix().1];
                self.decode(tensor, 0..1, &mut whole)?;
                tile.copy_from_slice(&whole[first..][..len]);
            }
            Rows::Split(split) => self.decode_split(split, rows, tile)?,
        }
        self.spec.raise(weight.role, tile);
        Ok(())
    }

    fn stored(&self, role: Role) -> Option<(String, usize)> {
        match self.rows_of(role).ok()? {
            Rows::From { tensor, first, .. } => Some((self.tensors[tensor].name.clone(), first)),
            Rows::Section { .. } | Rows::Split(_) => None,
        }
    }

    fn extents(&self, role: Role) -> Result<Vec<Extent>> {
        let of = |tensor: usize, rows: Range<usize>| {
            let Stored { shape, streams, .. } = &self.tensors[tensor];
            streams.iter().map(move |stream| {
                let at = |row: usize| stream.offset_bytes + (row * stream.row_bytes) as u64;
                Extent { file: stream.file, range: at(rows.start)..at(rows.end), is_small: shape.len() < 2 }
            })
        };
        Ok(match self.rows_of(role)? {
            Rows::From { tensor, first, rows, .. } => of(tensor, first..first + rows).collect(),
            Rows::Section { tensor, .. } => of(tensor, 0..1).collect(),
            Rows::Split(Split { keys, values, .. }) => {
                let whole = |tensor: usize| of(tensor, 0..self.tensors[tensor].matrix().0);
                whole(keys).chain(whole(values)).collect()
            }
        })
    }
}
