//! Types that rules give, as a `quant_predicate` of mlx-lm gives them.
//!
//! A type is a row of [`FORMATS`] without its `mlx-`: `4bit`, `6bit-g32`; or as `plan` shows it, `affine4_g64`;
//! or, for a module that stays as it is, the float type it has then: `bf16`. The entry of a module in
//! config.json is what `quantize_model` of `mlx_lm/utils.py` writes when the predicate answers with
//! parameters. Unlike there, a rule also counts for rows that the groups of the default do not divide, which
//! mlx-lm skips without asking: its loader reads such a module.

use std::collections::BTreeMap;

use super::element::{Element, Plan};
use super::parameters::Parameter;
use super::recipe::{Quantization, Recipe};
use super::{FAMILY, FORMATS, MlxFormat};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::plan::OutputTensor;
use crate::plan::budget::{Candidate, Choices};
use crate::plan::rules::{self, Choice, Rule, Rules};

/// What a rule says about a parameter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Override {
    /// Its number.
    pub(super) rule: usize,
    /// `None` keeps the parameter a float.
    pub(super) quantization: Option<Quantization>,
}

/// What a type name means.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    Quantized(Quantization),
    Float(Element),
    Ignored,
}

/// Names of types, as rules give them.
pub(super) fn types() -> Vec<&'static str> {
    let quantized =
        FORMATS.iter().filter(|row| row.recipe.uniform().is_some()).map(|row| short(row.format.name));
    quantized.chain(Element::ALL.map(Element::rule_name)).collect()
}

/// For each parameter the rule that is for it, if one is.
///
/// # Errors
/// Rules that match nothing, types that are not MLX's, and groups that do not divide a row.
pub(super) fn resolve(
    rules: &Rules,
    row: &MlxFormat,
    source: &Checkpoint,
    element: Option<Element>,
    parameters: &[Parameter],
) -> Result<Vec<Option<Override>>> {
    if let Some(first) = rules.iter().next()
        && row.recipe == Recipe::Floats
    {
        let name = row.format.name;
        let message = format!("{}: --to {name} quantizes nothing; choose a quantized format", first.origin);
        return Err(Error::Request(message));
    }
    let meanings = rules.iter().map(meaning).collect::<Result<Vec<Meaning>>>()?;
    let candidates: Vec<rules::Candidate<'_>> = parameters
        .iter()
        .map(|parameter| rules::Candidate {
            name: &parameter.name,
            pieces: &parameter.pieces,
            can_be_quantized: parameter.is_quantizable,
        })
        .collect();
    let assigned = rules.assign(source, &candidates)?;
    let overrides = parameters.iter().zip(assigned).map(|(parameter, number)| {
        let Some((number, rule)) = number.and_then(|number| Some((number, rules.get(number)?))) else {
            return Ok(None);
        };
        let refuse =
            |message: String| Err(Error::Request(format!("{}: {}: {message}", rule.origin, parameter.name)));
        let quantization = match meanings[number] {
            Meaning::Ignored => None,
            Meaning::Float(float) => {
                let is = float_of(source, element, parameter)?;
                if is != float {
                    return refuse(format!(
                        "an unquantized weight of this model is {}, not {}",
                        is.rule_name(),
                        float.rule_name()
                    ));
                }
                None
            }
            Meaning::Quantized(quantization) => {
                let (row, len) = (parameter.row_len(), quantization.group_len);
                if !row.is_multiple_of(len) {
                    return refuse(format!("groups of {len} do not divide its rows of {row}"));
                }
                Some(quantization)
            }
        };
        Ok(Some(Override { rule: number, quantization }))
    });
    overrides.collect()
}

/// Types whose groups fit, of every mode, for each parameter that can be quantized.
/// mlx-lm's loader takes group, bits and mode of each module from its entry in config.json.
pub(super) fn choices(
    source: &Checkpoint,
    element: Option<Element>,
    parameters: &[Parameter],
    tensors: &[OutputTensor],
) -> Result<Vec<Choices>> {
    let by_name: BTreeMap<&str, usize> =
        tensors.iter().enumerate().map(|(tensor, output)| (output.names[0].as_str(), tensor)).collect();
    let mut choices = Vec::new();
    for parameter in parameters.iter().filter(|parameter| parameter.is_quantizable) {
        let Some(&tensor) = by_name.get(parameter.name.as_str()) else { continue };
        let is = float_of(source, element, parameter)?;
        let candidates = FORMATS.iter().filter_map(|row| {
            let quantization = row.recipe.uniform()?;
            let codec = quantization.codec(is)?;
            let fits = parameter.row_len().is_multiple_of(quantization.group_len);
            let output = &tensors[tensor];
            fits.then(|| {
                Candidate::encoded(short(row.format.name), codec, output.rounding, output.len_elems())
            })
        });
        choices.push(Choices { tensors: vec![tensor], set: None, candidates: candidates.collect() });
    }
    Ok(choices)
}

/// What a parameter is where it is not quantized.
fn float_of(source: &Checkpoint, element: Option<Element>, parameter: &Parameter) -> Result<Element> {
    let stored = parameter.pieces.iter().map(|piece| &source.tensors()[piece.source]);
    Ok(Plan::new(stored, if parameter.is_cast { element } else { None })?.element)
}

fn meaning(rule: &Rule) -> Result<Meaning> {
    let Choice::Type { name, group_size } = &rule.choice else { return Ok(Meaning::Ignored) };
    let lower = name.to_ascii_lowercase();
    let wanted = short(&lower);
    let quantized = || FORMATS.iter().filter_map(|row| Some((row.format.name, row.recipe.uniform()?)));
    let float = Element::ALL.into_iter().find(|element| element.rule_name() == wanted);
    let found = quantized()
        .find(|(name, q)| short(name) == wanted || q.codec_name() == Some(wanted))
        .map(|(_, quantization)| quantization);
    match (found, float, group_size) {
        (Some(found), _, None) => Ok(Meaning::Quantized(found)),
        (Some(found), _, Some(len)) => {
            let is_regrouped =
                |q: &Quantization| q.mode == found.mode && q.bits == found.bits && q.group_len == *len;
            // A name that says its group already has the last word on it.
            let is_free = short(quantized().find(|(_, q)| *q == found).map_or("", |(name, _)| name))
                == wanted
                && !wanted.contains("-g");
            let regrouped = quantized().map(|(_, q)| q).find(is_regrouped).filter(|q| is_free || *q == found);
            regrouped.map(Meaning::Quantized).ok_or_else(|| {
                Error::Request(format!("{}: there is no {name} with groups of {len}", rule.origin))
            })
        }
        (None, Some(float), None) => Ok(Meaning::Float(float)),
        (None, Some(_), Some(len)) => {
            Err(Error::Request(format!("{}: {name} has no groups, but group_size is {len}", rule.origin)))
        }
        (None, None, _) => Err(rule.unknown_type(FAMILY, &types())),
    }
}

/// A format's name without the family's prefix.
fn short(name: &str) -> &str {
    name.strip_prefix("mlx-").unwrap_or(name)
}
