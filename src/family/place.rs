//! Where an ecosystem keeps a tensor: one table for both directions. A writer asks which rows a tensor of its container is
//! made of ([`outputs`]), a reader in which rows of which tensor a role is ([`Place`]).

use std::collections::HashMap;
use std::ops::Range;

use super::{Role, Tensor};

/// Who names and arranges tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ecosystem {
    /// Checkpoints on the Hugging Face hub, as transformers reads them.
    Hf,
    /// llama.cpp.
    Gguf,
    /// mlx-lm.
    Mlx,
}

/// Where a tensor is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// All of one tensor.
    Whole(String),
    /// Rows of a tensor, or elements of a vector, that holds several one after the other.
    Rows {
        /// What holds it.
        name: String,
        /// The first of them.
        first: usize,
        /// Rows or elements of all.
        of: usize,
    },
    /// Rows of one of several matrices that are stacked.
    Stacked {
        /// The stack.
        name: String,
        /// Which matrix.
        number: usize,
        /// How many there are.
        count: usize,
        /// The first row in the matrix.
        first: usize,
        /// Rows of the matrix.
        of: usize,
    },
    /// The first rows of each head transposed in one tensor, the others in another: `[heads, cols, key_rows]` and `[heads,
    /// value_rows, cols]`.
    SplitTransposed {
        /// What holds the first rows.
        keys: String,
        /// What holds the others.
        values: String,
        /// Heads.
        heads: usize,
        /// Rows of a head that are transposed.
        key_rows: usize,
        /// The others.
        value_rows: usize,
    },
}

/// What is done to the rows of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// The block `[rows, cols]` is written as `[cols, rows]`.
    Transposed,
}

/// Rows of a tensor's role that become rows of a tensor of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Whose rows.
    pub role: Role,
    /// Which.
    pub rows: Range<usize>,
    /// What is done to them.
    pub turn: Turn,
}

/// A tensor of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// What it is made of; their rows one after the other are its rows.
    pub parts: Vec<Part>,
}

impl Place {
    /// Names of the tensors that hold it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (first, second) = match self {
            Self::Whole(name) | Self::Rows { name, .. } | Self::Stacked { name, .. } => (name, None),
            Self::SplitTransposed { keys, values, .. } => (keys, Some(values)),
        };
        [Some(first), second].into_iter().flatten().map(String::as_str)
    }

    /// Names and shapes of the tensors that hold it; `shape` is its own.
    pub fn holders(&self, shape: &[usize]) -> Vec<(&str, Vec<usize>)> {
        let cols = shape.last().copied().unwrap_or(1);
        match self {
            Self::Whole(name) => vec![(name, shape.to_vec())],
            Self::Rows { name, of, .. } => {
                let whole = if shape.len() < 2 { vec![*of] } else { vec![*of, cols] };
                vec![(name, whole)]
            }
            Self::Stacked { name, count, of, .. } => vec![(name, vec![*count, *of, cols])],
            Self::SplitTransposed { keys, values, heads, key_rows, value_rows } => {
                vec![(keys, vec![*heads, cols, *key_rows]), (values, vec![*heads, *value_rows, cols])]
            }
        }
    }

    /// What each of [`Place::holders`] has of it; `rows` are all that it has.
    fn parts(&self, role: Role, rows: usize) -> Vec<Vec<Part>> {
        let Self::SplitTransposed { heads, key_rows, value_rows, .. } = *self else {
            return vec![vec![Part { role, rows: 0..rows, turn: Turn::None }]];
        };
        let head_rows = key_rows + value_rows;
        let firsts = || (0..heads).map(|head| head * head_rows);
        let keys = firsts().map(|first| Part { role, rows: first..first + key_rows, turn: Turn::Transposed });
        let values =
            firsts().map(|first| Part { role, rows: first + key_rows..first + head_rows, turn: Turn::None });
        vec![keys.collect(), values.collect()]
    }
}

/// The tensors of a container of `ecosystem` that hold `tensors`, each in its preferred place, in the order in which they
/// first come.
pub fn outputs<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, ecosystem: Ecosystem) -> Vec<Output> {
    let mut outputs: Vec<Output> = Vec::new();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for tensor in tensors {
        let Some(place) = tensor.places(ecosystem).first() else { continue };
        let rows = if let [rows, _] = tensor.shape[..] { rows } else { 1 };
        for ((name, shape), parts) in
            place.holders(&tensor.shape).into_iter().zip(place.parts(tensor.role, rows))
        {
            let at = *by_name.entry(name).or_insert_with(|| {
                outputs.push(Output { name: name.to_owned(), shape, parts: Vec::new() });
                outputs.len() - 1
            });
            outputs[at].parts.extend(parts);
        }
    }
    outputs
}
