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
    /// Rows of one of several matrices that are stacked; a vector is one row.
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
    /// All of one tensor, the two halves of each head's rows in turns: so that the rows that turn together, `i` and `i + dim /
    /// 2` in checkpoints, are neighbours. What such a file says of its rotary positions is that, so that it is read back as it is.
    HeadsInterleaved {
        /// What holds it.
        name: String,
        /// Heads.
        heads: usize,
    },
    /// All of one tensor, 1 added to its values: norms whose checkpoints hold what is to be added to 1. Such a file is read back as
    /// it is.
    Raised(String),
}

/// What is done to the rows of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// The block `[rows, cols]` is written as `[cols, rows]`.
    Transposed,
    /// The two halves of the rows are written in turns: the first row of each, then the second of each.
    Interleaved,
    /// 1 is added to every value.
    Raised,
}

impl Turn {
    /// Whether rows stay rows in their order, so that any run of them can be worked on without the others.
    pub fn is_none(self) -> bool {
        self == Self::None
    }

    /// Rows that so many rows of length `cols` become.
    pub fn rows(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::None | Self::Interleaved | Self::Raised => rows,
            Self::Transposed => cols,
        }
    }

    /// The rows that are written, by the number that they had, where rows stay rows: `rows` are turned together.
    pub fn order(self, rows: Range<usize>) -> Vec<usize> {
        let half = rows.len() / 2;
        match self {
            Self::None | Self::Transposed | Self::Raised => rows.collect(),
            Self::Interleaved => {
                (0..half).flat_map(|row| [rows.start + row, rows.start + half + row]).collect()
            }
        }
    }

    /// Does it to `block`, whose rows have length `cols`.
    pub fn apply(self, block: &[f32], cols: usize, turned: &mut Vec<f32>) {
        turned.clear();
        match self {
            Self::None => turned.extend_from_slice(block),
            Self::Raised => turned.extend(block.iter().map(|value| value + 1.0)),
            Self::Transposed => {
                let rows = block.len() / cols.max(1);
                turned.resize(block.len(), 0.0);
                for (row, values) in block.chunks_exact(cols).enumerate() {
                    for (col, &value) in values.iter().enumerate() {
                        turned[col * rows + row] = value;
                    }
                }
            }
            Self::Interleaved => {
                let (first, second) = block.split_at(block.len() / 2);
                for (a, b) in first.chunks_exact(cols).zip(second.chunks_exact(cols)) {
                    turned.extend_from_slice(a);
                    turned.extend_from_slice(b);
                }
            }
        }
    }
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
            Self::Whole(name)
            | Self::Raised(name)
            | Self::Rows { name, .. }
            | Self::Stacked { name, .. }
            | Self::HeadsInterleaved { name, .. } => (name, None),
            Self::SplitTransposed { keys, values, .. } => (keys, Some(values)),
        };
        [Some(first), second].into_iter().flatten().map(String::as_str)
    }

    /// Names and shapes of the tensors that hold it; `shape` is its own.
    pub fn holders(&self, shape: &[usize]) -> Vec<(&str, Vec<usize>)> {
        let cols = shape.last().copied().unwrap_or(1);
        match self {
            Self::Whole(name) | Self::Raised(name) | Self::HeadsInterleaved { name, .. } => {
                vec![(name, shape.to_vec())]
            }
            Self::Rows { name, of, .. } => {
                let whole = if shape.len() < 2 { vec![*of] } else { vec![*of, cols] };
                vec![(name, whole)]
            }
            Self::Stacked { name, count, .. } if shape.len() < 2 => vec![(name, vec![*count, cols])],
            Self::Stacked { name, count, of, .. } => vec![(name, vec![*count, *of, cols])],
            Self::SplitTransposed { keys, values, heads, key_rows, value_rows } => {
                vec![(keys, vec![*heads, cols, *key_rows]), (values, vec![*heads, *value_rows, cols])]
            }
        }
    }

    /// What each of [`Place::holders`] has of it; `rows` are all that it has.
    fn parts(&self, role: Role, rows: usize) -> Vec<Vec<Part>> {
        let (heads, key_rows, value_rows) = match *self {
            Self::SplitTransposed { heads, key_rows, value_rows, .. } => (heads, key_rows, value_rows),
            Self::HeadsInterleaved { heads, .. } => {
                let len = rows / heads.max(1);
                let head = |head| Part { role, rows: head * len..(head + 1) * len, turn: Turn::Interleaved };
                return vec![(0..heads).map(head).collect()];
            }
            Self::Raised(_) => return vec![vec![Part { role, rows: 0..rows, turn: Turn::Raised }]],
            _ => return vec![vec![Part { role, rows: 0..rows, turn: Turn::None }]],
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_move_rows_and_lose_none() {
        let block: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let mut turned = Vec::new();
        for (turn, cols, rows, expected) in [
            (Turn::None, 3, 4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            (Turn::Transposed, 3, 3, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]),
            // Rows 0 and 2, then 1 and 3.
            (Turn::Interleaved, 3, 4, [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]),
            (Turn::Raised, 3, 4, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        ] {
            turn.apply(&block, cols, &mut turned);
            assert_eq!(turned, expected.map(|value| value as f32), "{turn:?}");
            assert_eq!(turn.rows(4, cols), rows, "{turn:?}");
        }
    }

    #[test]
    fn parts_of_a_place_cover_what_it_holds() {
        let role = Role::Output;
        let split = Place::SplitTransposed {
            keys: "k".into(),
            values: "v".into(),
            heads: 2,
            key_rows: 3,
            value_rows: 1,
        };
        let interleaved = Place::HeadsInterleaved { name: "q".into(), heads: 4 };
        for (place, rows) in [(split, 8), (interleaved, 8), (Place::Whole("w".into()), 8)] {
            let parts = place.parts(role, rows);
            assert_eq!(parts.len(), place.names().count(), "{place:?}");
            let mut covered: Vec<usize> = parts.iter().flatten().flat_map(|part| part.rows.clone()).collect();
            covered.sort_unstable();
            assert_eq!(covered, (0..rows).collect::<Vec<_>>(), "{place:?}");
            for ((_, shape), parts) in place.holders(&[rows, 5]).into_iter().zip(parts) {
                let held: usize = parts.iter().map(|part| part.rows.len() * 5).sum();
                assert_eq!(held, shape.iter().product::<usize>(), "{place:?}");
            }
        }
    }
}
