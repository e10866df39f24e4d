//! A linear layer whose weight is read tile by tile from the weight store, for all tokens or some of them.
//!
//! Legend: B tokens of one block, K columns of a weight, N rows of one tile.

use std::ops::Range;

use super::matmul::{Into, View, wide_product_transposed};
use super::panel::{Slice, for_each_panel, tiles, tiles_per_panel};
use super::states::{BLOCK_ROWS, Part, States};
use super::watch;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::{Error, Result};
use crate::family::Role;

/// Tokens routed to an expert, in ascending order, each with the factor on the expert's output.
pub(crate) type Picks = [(usize, f32)];

/// The input of a product: hidden states, one row per token.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// All rows.
    All(&'a States),
    /// The rows of the picked tokens.
    Picked(&'a States, &'a Picks),
}

impl Input<'_> {
    pub(crate) fn states(&self) -> &States {
        match self {
            Self::All(states) | Self::Picked(states, _) => states,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::All(states) => states.rows(),
            Self::Picked(_, picks) => picks.len(),
        }
    }

    /// Reads these rows of the input.
    ///
    /// # Errors
    /// When the states cannot be read.
    pub(crate) fn read(&self, rows: Range<usize>) -> Result<std::borrow::Cow<'_, [f32]>> {
        match self {
            Self::All(states) => states.read(rows),
            Self::Picked(states, picks) => Ok(states.gather(picks[rows].iter().map(|&(row, _)| row))?.into()),
        }
    }
}

/// What happens to a product.
pub(crate) enum Output<'a> {
    /// It replaces the states.
    Replace(&'a mut States),
    /// It is added to the states.
    Add(&'a mut States),
    /// It is multiplied by the factor of each picked token and added to its row.
    AddPicked(&'a mut States, &'a Picks),
}

/// The tokens for which a block is computed.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// All tokens.
    All,
    /// Only these, each with factor 1.
    Picked(&'a Picks),
}

impl<'a> Rows<'a> {
    /// The tokens in `picks`, or all tokens when it is `None`.
    pub(crate) fn of(picks: Option<&'a Picks>) -> Self {
        picks.map_or(Self::All, Self::Picked)
    }

    /// The rows of `x` that belong to these tokens.
    pub(crate) fn of_input(self, x: &'a States) -> Input<'a> {
        match self {
            Self::All => Input::All(x),
            Self::Picked(picks) => Input::Picked(x, picks),
        }
    }

    /// An output that adds to the rows of `y` of these tokens.
    pub(crate) fn of_output<'b>(self, y: &'b mut States) -> Output<'b>
    where
        'a: 'b,
    {
        match self {
            Self::All => Output::Add(y),
            Self::Picked(picks) => Output::AddPicked(y, picks),
        }
    }

    /// The picks whose token is among these tokens; `picks` are in ascending order.
    pub(crate) fn among(self, picks: Vec<(usize, f32)>) -> Vec<(usize, f32)> {
        match self {
            Self::All => picks,
            Self::Picked(wanted) => {
                let is_wanted =
                    |&(row, _): &(usize, f32)| wanted.binary_search_by_key(&row, |&(row, _)| row).is_ok();
                picks.into_iter().filter(is_wanted).collect()
            }
        }
    }
}

/// Multiplies the input by the transposed weight with this role, `x w^T`, and stores or adds the product.
///
/// # Errors
/// When a weight cannot be read; when the product is not finite.
pub(crate) fn linear(store: &dyn WeightStore, role: Role, x: Input, mut y: Output) -> Result<()> {
    let hidden = match &y {
        Output::Add(hidden) => Some(&**hidden),
        Output::Replace(_) | Output::AddPicked(..) => None,
    };
    watch::input(store, role, &x, hidden)?;
    let weight = store.weight(role)?;
    let tiles: Vec<Slice> = tiles(store, &weight).collect();
    let panels: Vec<Vec<Slice>> =
        tiles.chunks(tiles_per_panel(&x.states().storage())).map(<[Slice]>::to_vec).collect();
    for_each_panel(&panels, |slices, tiles_NK| {
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else { return Ok(()) };
        let columns = first.rows.start..last.rows.end;
        let multiply = |tokens: Range<usize>, part: Part, into: Into| {
            let x_BK = x.read(tokens.clone())?;
            let Part { data, stride, offset } = part;
            for (slice, w_NK) in slices.iter().zip(tiles_NK) {
                let at = offset + slice.rows.start - columns.start;
                wide_product_transposed(View::new(&x_BK, weight.cols), *w_NK, data, stride, at, into);
            }
            check_finite(&weight, tokens.start, data, stride, offset..offset + columns.len())
        };
        match &mut y {
            Output::Replace(y) => {
                y.for_each_block(BLOCK_ROWS, columns.clone(), Into::Replace, |tokens, part| {
                    multiply(tokens, part, Into::Replace)
                })
            }
            Output::Add(y) => y.for_each_block(BLOCK_ROWS, columns.clone(), Into::Add, |tokens, part| {
                multiply(tokens, part, Into::Add)
            }),
            Output::AddPicked(y, picks) => y.add_to_rows(picks, columns.clone(), |tokens, y| {
                let part = Part { data: y, stride: columns.len(), offset: 0 };
                multiply(tokens, part, Into::Replace)
            }),
        }
    })
}

/// The product `x w^T` with all rows of the weight, as new states.
///
/// # Errors
/// As [`linear`].
pub(crate) fn linear_states(store: &dyn WeightStore, role: Role, x: &States) -> Result<States> {
    let mut y = x.sibling(x.rows(), store.weight(role)?.rows)?;
    linear(store, role, Input::All(x), Output::Replace(&mut y))?;
    Ok(y)
}

/// Adds the bias with this role to every row, if the model has it.
///
/// # Errors
/// When the bias cannot be read, or the states cannot be read or kept.
pub(crate) fn add_bias(store: &dyn WeightStore, role: Role, y: &mut States) -> Result<()> {
    let bias = optional_vector(store, role)?;
    if bias.is_empty() {
        return Ok(());
    }
    y.for_each_block(BLOCK_ROWS, 0..bias.len(), Into::Add, |_, part| {
        let Part { data, stride, offset } = part;
        data.chunks_mut(stride).for_each(|row| add_to_row(&mut row[offset..], &bias));
        Ok(())
    })
}

/// Adds a bias to one row.
pub(crate) fn add_to_row(row: &mut [f32], bias: &[f32]) {
    row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
}

/// Whether the model has a weight with this role.
pub(crate) fn has(store: &dyn WeightStore, role: Role) -> bool {
    store.weight(role).is_ok()
}

/// A vector of weights, empty where the model has none.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn optional_vector(store: &dyn WeightStore, role: Role) -> Result<Vec<f32>> {
    if has(store, role) { vector(store, role) } else { Ok(Vec::new()) }
}

/// A vector of weights.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn vector(store: &dyn WeightStore, role: Role) -> Result<Vec<f32>> {
    let weight = store.weight(role)?;
    let mut values = vec![0.0; weight.rows * weight.cols];
    store.read_rows(&weight, 0..weight.rows, &mut values)?;
    Ok(values)
}

/// Refuses a product with `weight` that is NaN or infinite: in `columns` of rows `stride` apart, the first of which
/// is that of token `first` of those it saw.
///
/// # Errors
/// Names the tensor and the token.
pub(crate) fn check_finite(
    weight: &Weight,
    first: usize,
    y: &[f32],
    stride: usize,
    columns: Range<usize>,
) -> Result<()> {
    let bad = |row: &[f32]| row[columns.clone()].iter().any(|value| !value.is_finite());
    match y.chunks(stride).position(bad) {
        None => Ok(()),
        Some(row) => Err(not_finite(weight, first + row)),
    }
}

/// The first product that is NaN or infinite ends a run.
fn not_finite(weight: &Weight, row: usize) -> Error {
    let place = match weight.role {
        Role::Layer(layer, _) => format!("layer {layer}"),
        _ => "outside the layers".to_owned(),
    };
    let message = format!(
        "tensor {} ({place}): its product is NaN or infinite for token {row} of those it saw; \
         nothing before it was, so look at this tensor first",
        weight.name
    );
    Error::checkpoint(&weight.file, message)
}
