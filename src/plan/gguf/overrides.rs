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
use crate::plan::budget::{Candidate, Choices};
use crate::plan::rules::{self, Choice, Rule, Rules};
use crate::plan::{OutputTensor, Rounding};

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

/// Block types that fit, for each tensor that can be quantized; the output head is one of them if `with_head` says so.
pub(super) fn choices(tensors: &[OutputTensor], tied_embeddings: bool, with_head: bool) -> Vec<Choices> {
    let is_free = |output: &OutputTensor| {
        can_be_quantized(output) && (with_head || !mix::is_head(&output.names[0], tied_embeddings))
    };
    let free = tensors.iter().enumerate().filter(|(_, output)| is_free(output));
    free.map(|(tensor, output)| Choices { tensors: vec![tensor], set: None, candidates: fitting(output) })
        .collect()
}

/// As [`choices`], for a file whose tensors are `stored` as they are: what is in blocks already keeps its type, which
/// loses nothing, and may have another one with `leave` only. So does the output head, if `is_head` knows one.
pub(super) fn choices_again(
    tensors: &[OutputTensor],
    stored: impl Fn(&OutputTensor) -> Option<GgmlType>,
    is_head: impl Fn(&str) -> bool,
    leave: bool,
) -> Vec<Choices> {
    let mut all = Vec::new();
    for (tensor, output) in tensors.iter().enumerate().filter(|(_, output)| can_be_quantized(output)) {
        let own = stored(output).filter(|own| own.block_len_elems() > 1);
        let is_head = is_head(&output.names[0]);
        let candidates = match own.and_then(|own| candidate(own, output)) {
            Some(own) if leave && !is_head => {
                let own = Candidate { is_copied: true, ..own };
                let others = fitting(output).into_iter().filter(|other| other.choice != own.choice);
                [own.clone()].into_iter().chain(others).collect()
            }
            Some(own) if !leave => vec![Candidate { is_copied: true, ..own }],
            None if !is_head => fitting(output),
            _ => continue,
        };
        all.push(Choices { tensors: vec![tensor], set: None, candidates });
    }
    all
}

fn can_be_quantized(output: &OutputTensor) -> bool {
    mix::can_be_quantized(&output.names[0], &ne(output))
}

/// Types that a budget does not choose: codebooks, which want an importance matrix, and those of models that were trained with
/// two or three values.
const NOT_CHOSEN: [GgmlType; 11] = [
    GgmlType::IQ1_S,
    GgmlType::IQ1_M,
    GgmlType::IQ2_XXS,
    GgmlType::IQ2_XS,
    GgmlType::IQ2_S,
    GgmlType::IQ3_XXS,
    GgmlType::IQ3_S,
    GgmlType::TQ1_0,
    GgmlType::TQ2_0,
    GgmlType::Q1_0,
    GgmlType::Q2_0,
];

/// Block types that fit the rows of a tensor.
fn fitting(output: &OutputTensor) -> Vec<Candidate> {
    let row = ne(output)[0];
    let fits = |ggml_type: &GgmlType| {
        let len = ggml_type.block_len_elems();
        len > 1 && row.is_multiple_of(len) && !NOT_CHOSEN.contains(ggml_type)
    };
    types().filter(fits).filter_map(|ggml_type| candidate(ggml_type, output)).collect()
}

fn candidate(ggml_type: GgmlType, output: &OutputTensor) -> Option<Candidate> {
    let name = ggml_type.name().to_lowercase();
    Some(Candidate::encoded(&name, ggml_type.codec()?, Rounding::Exact, output.len_elems()))
}

/// Extents, innermost first.
fn ne(output: &OutputTensor) -> Vec<u64> {
    output.shape.iter().rev().map(|&extent| extent as u64).collect()
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
