//! Types that rules give, as `llama-quantize --tensor-type` gives them.
//!
//! What it does, and we too: the first expression found in a tensor's name counts; a type whose blocks do
//! not fit the rows gives way to its stand-in or to F16; norms, routers and vectors are never
//! quantized; a tensor with a type of its own does not count where a mix gives more bits to the first few
//! of a kind. Where it says nothing, we stop: rules for a file that is not quantized, which it
//! ignores, and rules that match nothing.
//!
//! A tensor that a recipe ignores stays F32, as it is in the file that llama-quantize starts from.
//!
//! Source: llama.cpp `src/llama-quant.cpp` (`llama_tensor_get_type`, `tensor_type_fallback`),
//! `tools/quantize/quantize.cpp` (`parse_tensor_type`).

use requant_formats::container::gguf::GgmlType;

use super::file_type::FileType;
use super::mix;
use super::names::Planned;
use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};
use crate::plan::OutputTensor;
use crate::plan::budget::{Candidate, Choices};
use crate::plan::rules::{self, Choice, Rule, Rules};

/// Types that a rule may give: those that can be encoded.
pub(super) fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|ggml_type| ggml_type.codec().is_some())
}

/// For each tensor the rule that is for it, if one is, and the type that it asks for.
///
/// # Errors
/// Rules that match nothing, types that are not GGUF's, and types that some row cannot have.
pub(super) fn resolve(
    rules: &Rules,
    file_type: &FileType,
    source: &Catalogue,
    planned: &[Planned],
) -> Result<Vec<Option<(usize, GgmlType)>>> {
    if let Some(first) = rules.iter().next()
        && file_type.base.block_len_elems() == 1
    {
        let message = format!(
            "{}: --to {} quantizes nothing, and llama-quantize ignores such a rule then; choose a quantized format",
            first.origin, file_type.format.name
        );
        return Err(Error::Request(message));
    }
    let types = rules.iter().map(ggml_type).collect::<Result<Vec<GgmlType>>>()?;
    let candidates: Vec<rules::Candidate<'_>> = planned
        .iter()
        .map(|tensor| rules::Candidate {
            name: &tensor.name,
            pieces: &tensor.pieces,
            can_be_quantized: mix::can_be_quantized(&tensor.name, &tensor.ne()),
        })
        .collect();
    let assigned = rules.assign(source, &candidates)?;
    for (tensor, rule) in planned.iter().zip(&assigned) {
        let Some(rule) = *rule else { continue };
        let (wanted, row) = (types[rule], tensor.ne()[0]);
        if !row.is_multiple_of(wanted.block_len_elems()) && !mix::can_fall_back(wanted) {
            let origin = rules.get(rule).map_or("", |rule| &rule.origin);
            return Err(Error::Request(format!(
                "{origin}: rows of {} have {row} weights, which blocks of {wanted} ({}) do not divide, and \
                 llama-quantize has no stand-in for it",
                tensor.name,
                wanted.block_len_elems()
            )));
        }
    }
    Ok(assigned.into_iter().map(|rule| rule.map(|rule| (rule, types[rule]))).collect())
}

/// Block types that fit, for each tensor that can be quantized and is not the output head.
pub(super) fn choices(tensors: &[OutputTensor], tied_embeddings: bool) -> Vec<Choices> {
    let choices = tensors.iter().enumerate().filter_map(|(tensor, output)| {
        let ne: Vec<u64> = output.shape.iter().rev().map(|&extent| extent as u64).collect();
        let candidates = types().filter_map(|ggml_type| {
            let codec = ggml_type.codec()?;
            // A factor on a whole tensor cannot be told from a sample.
            let is_candidate = ggml_type.block_len_elems() > 1
                && ne[0].is_multiple_of(ggml_type.block_len_elems())
                && codec.tensor_scale(1.0).is_none();
            let name = ggml_type.name().to_lowercase();
            is_candidate.then_some(Candidate { choice: Choice::Type { name, group_size: None }, codec })
        });
        let is_free =
            mix::can_be_quantized(&output.names[0], &ne) && !mix::is_head(&output.names[0], tied_embeddings);
        is_free.then(|| Choices { tensor, set: None, candidates: candidates.collect() })
    });
    choices.collect()
}

fn ggml_type(rule: &Rule) -> Result<GgmlType> {
    match &rule.choice {
        Choice::Ignore => Ok(GgmlType::F32),
        Choice::Type { name, group_size } => {
            let known = || types().map(GgmlType::name).collect::<Vec<_>>();
            let found = GgmlType::find(name).filter(|ggml_type| ggml_type.codec().is_some());
            let found = found.ok_or_else(|| rule.unknown_type("GGUF", &known()))?;
            match group_size {
                Some(len) => Err(Error::Request(format!(
                    "{}: group_size {len}: the types of GGUF have blocks of their own ({found}: {})",
                    rule.origin,
                    found.block_len_elems()
                ))),
                None => Ok(found),
            }
        }
    }
}
