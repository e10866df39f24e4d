//! Tensors of a GGUF beside the weights of its forward pass: factors of matrices, and what it does not need.
//!
//! `X.scale` is a factor on the product with `X.weight`, one for the matrix or one for each expert of a stack: the global
//! scales of NVFP4. Here it becomes a factor on the weights, which is the same but for rounding. `X.input_scale` is for
//! hardware that multiplies in 4 bits. Heads for classes and embeddings say nothing about the next token.
//!
//! Source: llama.cpp `src/llama-model.cpp` (`load_tensors`), `conversion/base.py` (`_write_scale_tensor`).

use std::collections::HashMap;

use super::packed::Stored;
use crate::error::{Error, Result};
use crate::source::Source;

/// What a forward pass does not need.
const IDLE: &[&str] = &[
    "cls.weight",
    "cls.bias",
    "cls.output.weight",
    "cls.output.bias",
    "cls.norm.weight",
    "dense_2.weight",
    "dense_3.weight",
];
const FACTOR: &str = ".scale";
const INPUT_FACTOR: &str = ".input_scale";

/// Leaves out what is idle, and gives factors to the matrices that they belong to.
///
/// # Errors
/// Factors that belong to nothing, cannot be read, are not finite, or are neither one nor one for each matrix of a stack.
pub(super) fn resolve(source: &dyn Source, stored: Vec<Stored>) -> Result<Vec<Stored>> {
    let (factors, mut weights): (Vec<Stored>, Vec<Stored>) = stored
        .into_iter()
        .filter(|tensor| !IDLE.contains(&tensor.name.as_str()) && !tensor.name.ends_with(INPUT_FACTOR))
        .partition(|tensor| tensor.name.ends_with(FACTOR));
    let ids: HashMap<String, usize> =
        weights.iter().enumerate().map(|(id, tensor)| (tensor.name.clone(), id)).collect();
    for factor in factors {
        let stem = factor.name.strip_suffix(FACTOR).unwrap_or_default();
        let Some(stream) = factor.streams.first() else { continue };
        let file = &source.files()[stream.file].name;
        let weight = format!("{stem}.weight");
        let invalid = |message: String| Error::checkpoint(file, format!("tensor {}: {message}", factor.name));
        let id = *ids.get(&weight).ok_or_else(|| invalid(format!("there is no {weight} that it scales")))?;
        let (rows, cols) = factor.matrix();
        let count = rows * cols;
        let stack = if let [stack, _, _] = weights[id].shape[..] { stack } else { 1 };
        if count != 1 && count != stack {
            let expected = if stack == 1 { "1".to_owned() } else { format!("1 or {stack}") };
            return Err(invalid(format!("found {count} values, expected {expected} as for {weight}")));
        }
        let mut bytes = vec![0; rows * stream.row_bytes];
        source.read_at(stream.file, stream.offset_bytes, &mut bytes)?;
        let mut values = vec![0.0; count];
        factor.codec.decode(&[&bytes], &mut values);
        if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
            return Err(invalid(format!("found {bad}, expected finite factors")));
        }
        weights[id].factors = values;
    }
    Ok(weights)
}
