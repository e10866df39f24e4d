//! MLX directories as `mlx_lm convert` writes them.
//!
//! The same tensor files, byte for byte, as `python -m mlx_lm convert [-q]` on a CPU, and the same
//! index and config.json (mlx-lm 0.32.2 with mlx 0.32.4 on Linux, `mlx_lm/convert.py`,
//! `mlx_lm/utils.py`, `mlx_lm/models/*.py`). Where we leave its path:
//!
//! - It drops the multi-token prediction layers by the number 61; we drop those at or above
//!   `num_hidden_layers`.
//! - It takes scales to cover 128 x 128 blocks; we read the block size, and scales stored as
//!   `F8_E8M0`, which it would take for integers.
//! - It keeps 32 x 32 blocks with `ue8m0` scales packed (mxfp8); we quantize them like any other.
//! - It has no tied output head for this family; we write the embedding a second time.
//! - It decodes the two NaNs of E4M3 as 480; here they are an error when the tensor is read.
//! - It loads the tokenizer with `transformers` and saves it again, which rewrites tokenizer.json and
//!   tokenizer_config.json and moves a chat template into `chat_template.jinja`. We carry the source's own
//!   files unchanged: they load to the same tokenizer. `*.py`, generation_config.json and, unless
//!   [`Options::leaves_card`] says otherwise, the model card are as mlx-lm's.
//!
//! A format is one row of [`FORMATS`]. A module is quantized when it can be and its rows are whole groups;
//! else it is skipped, unless a rule says otherwise ([`overrides`]).

use std::collections::HashSet;

use requant_formats::codec::{self, MlxMode};
use requant_formats::layout::ROW_MAJOR;

use super::{
    Blueprint, Choices, Dropped, Format, Options, OutputTensor, Sidecar, Target, carried, checkpoint_of,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::family::Role;
use crate::opened::Opened;

mod config;
mod element;
mod overrides;
mod parameters;
mod recipe;
mod shards;
#[cfg(test)]
mod tests;

use element::{Element, Plan};
use parameters::Parameter;
use recipe::{Module, Quantization, Reason, Recipe};

/// `README.md` of a conversion from a local directory.
const MODEL_CARD: &str =
    "---\nlanguage: en\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n---\n";

/// What the family is called.
const FAMILY: &str = "MLX";

/// MLX.
pub(super) struct MlxTarget;

/// One `--to` format.
struct MlxFormat {
    format: Format,
    recipe: Recipe,
    /// What weights are cast to; `None` follows `torch_dtype` of config.json.
    element: Option<Element>,
}

const fn uniform(
    name: &'static str,
    about: &'static str,
    mode: MlxMode,
    bits: usize,
    group_len: usize,
) -> MlxFormat {
    let recipe = Recipe::Uniform(Quantization { mode, bits, group_len });
    MlxFormat { format: Format { name, about }, recipe, element: None }
}

const fn affine(name: &'static str, about: &'static str, bits: usize, group_len: usize) -> MlxFormat {
    uniform(name, about, MlxMode::Affine, bits, group_len)
}

const fn mixed(name: &'static str, about: &'static str, low_bits: usize, high_bits: usize) -> MlxFormat {
    MlxFormat { format: Format { name, about }, recipe: Recipe::Mixed { low_bits, high_bits }, element: None }
}

/// Every format. Bits per weight count a 16-bit scale and bias per group, or a scale of one byte.
const FORMATS: &[MlxFormat] = &[
    affine("mlx-4bit", "MLX affine, 4 bits, groups of 64: 4.5 bits per weight", 4, 64),
    affine("mlx-4bit-g32", "MLX affine, 4 bits, groups of 32: 5 bits per weight", 4, 32),
    affine("mlx-4bit-g128", "MLX affine, 4 bits, groups of 128: 4.25 bits per weight", 4, 128),
    affine("mlx-2bit", "MLX affine, 2 bits, groups of 64: 2.5 bits per weight", 2, 64),
    affine("mlx-2bit-g32", "MLX affine, 2 bits, groups of 32: 3 bits per weight", 2, 32),
    affine("mlx-2bit-g128", "MLX affine, 2 bits, groups of 128: 2.25 bits per weight", 2, 128),
    affine("mlx-3bit", "MLX affine, 3 bits, groups of 64: 3.5 bits per weight", 3, 64),
    affine("mlx-3bit-g32", "MLX affine, 3 bits, groups of 32: 4 bits per weight", 3, 32),
    affine("mlx-3bit-g128", "MLX affine, 3 bits, groups of 128: 3.25 bits per weight", 3, 128),
    affine("mlx-5bit", "MLX affine, 5 bits, groups of 64: 5.5 bits per weight", 5, 64),
    affine("mlx-5bit-g32", "MLX affine, 5 bits, groups of 32: 6 bits per weight", 5, 32),
    affine("mlx-5bit-g128", "MLX affine, 5 bits, groups of 128: 5.25 bits per weight", 5, 128),
    affine("mlx-6bit", "MLX affine, 6 bits, groups of 64: 6.5 bits per weight", 6, 64),
    affine("mlx-6bit-g32", "MLX affine, 6 bits, groups of 32: 7 bits per weight", 6, 32),
    affine("mlx-6bit-g128", "MLX affine, 6 bits, groups of 128: 6.25 bits per weight", 6, 128),
    affine("mlx-8bit", "MLX affine, 8 bits, groups of 64: 8.5 bits per weight", 8, 64),
    affine("mlx-8bit-g32", "MLX affine, 8 bits, groups of 32: 9 bits per weight", 8, 32),
    affine("mlx-8bit-g128", "MLX affine, 8 bits, groups of 128: 8.25 bits per weight", 8, 128),
    uniform(
        "mlx-mxfp4",
        "MLX mxfp4, 4-bit floats, groups of 32: 4.25 bits per weight",
        MlxMode::Mxfp4,
        4,
        32,
    ),
    uniform("mlx-nvfp4", "MLX nvfp4, 4-bit floats, groups of 16: 4.5 bits per weight", MlxMode::Nvfp4, 4, 16),
    uniform(
        "mlx-mxfp8",
        "MLX mxfp8, 8-bit floats, groups of 32: 8.25 bits per weight",
        MlxMode::Mxfp8,
        8,
        32,
    ),
    mixed("mlx-mixed-4-6", "mlx-lm's recipe mixed_4_6: affine, 4 bits, 6 where it matters more", 4, 6),
    mixed("mlx-mixed-3-6", "mlx-lm's recipe mixed_3_6: affine, 3 bits, 6 where it matters more", 3, 6),
    mixed("mlx-mixed-3-4", "mlx-lm's recipe mixed_3_4: affine, 3 bits, 4 where it matters more", 3, 4),
    mixed("mlx-mixed-2-6", "mlx-lm's recipe mixed_2_6: affine, 2 bits, 6 where it matters more", 2, 6),
    MlxFormat {
        format: Format { name: "mlx-bf16", about: "MLX, unquantized BF16" },
        recipe: Recipe::Floats,
        element: Some(Element::Bf16),
    },
];

/// The `format` column of [`FORMATS`].
const NAMES: [Format; FORMATS.len()] = {
    let mut names = [FORMATS[0].format; FORMATS.len()];
    let mut at = 0;
    while at < FORMATS.len() {
        names[at] = FORMATS[at].format;
        at += 1;
    }
    names
};

impl Target for MlxTarget {
    fn family(&self) -> &'static str {
        FAMILY
    }

    fn types(&self) -> Vec<&'static str> {
        overrides::types()
    }

    fn formats(&self) -> &'static [Format] {
        &NAMES
    }

    fn usual(&self) -> &'static [&'static str] {
        &["mlx-4bit", "mlx-8bit", "mlx-mxfp4", "mlx-6bit", "mlx-mixed-4-6", "mlx-bf16"]
    }

    fn bits_per_weight(&self, format: &Format) -> f64 {
        let recipe = FORMATS.iter().find(|row| row.format == *format).map(|row| row.recipe);
        recipe.and_then(Recipe::most).map_or(16.0, Quantization::bits_per_weight)
    }

    fn readers(&self, _: &Format) -> &'static [&'static str] {
        &["mlx-lm"]
    }

    fn blueprint(&self, format: &Format, source: &Opened, options: &Options) -> Result<Blueprint> {
        let source = checkpoint_of(source, format)?;
        let Some(row) = FORMATS.iter().find(|row| row.format == *format) else {
            return Err(Error::Unsupported { what: format.name.into(), hint: "not an MLX format".into() });
        };
        config::check(source)?;
        let element = row.element.or_else(|| Element::of_config(source.config()));
        let parameters = parameters::parameters(source)?;
        let overrides = overrides::resolve(&options.rules, row, source, element, &parameters)?;
        let mut tensors = Vec::new();
        let mut modules = Vec::new();
        for (parameter, found) in parameters.into_iter().zip(overrides) {
            let by_recipe =
                || parameter.kept.or_else(|| row.recipe.of_parameter(&parameter, source.spec().layers));
            let quantization = found.map_or_else(by_recipe, |found| found.quantization);
            if let Some(quantization) = quantization.filter(|_| parameter.is_quantizable) {
                check_groups(&parameter, quantization)?;
                let path = parameter.module().to_owned();
                let reason = match found {
                    Some(_) => Reason::Rule,
                    None if parameter.kept.is_some() => Reason::Kept,
                    None if row.recipe.uniform().is_some() && parameter.own.is_some() => Reason::Model,
                    None => Reason::Format,
                };
                modules.push(Module { path, quantization, reason });
            }
            let rule = found.map(|found| found.rule);
            tensors.push(OutputTensor { rule, ..output_tensor(source, quantization, element, parameter)? });
        }
        let parameter_count = counted(&tensors);

        let shards = shards::lay_out(&mut tensors)?;
        let mut sidecars = carried::sidecars(source)?;
        if !options.leaves_card {
            sidecars.push(Sidecar { name: "README.md".into(), bytes: MODEL_CARD.into() });
        }
        sidecars.push(shards::index(&tensors, &shards, parameter_count));
        sidecars.push(config::sidecar(source, row.recipe.section(&modules))?);
        sidecars.sort_by(|a, b| a.name.cmp(&b.name));
        // In the order of first bytes, a file is finished from front to back.
        tensors.sort_by_key(|tensor| {
            tensor.placements.iter().map(|placement| (placement.file, placement.offset_bytes)).min()
        });
        Ok(Blueprint {
            is_directory: true,
            tensors,
            files: shards,
            sidecars,
            dropped: dropped(source),
            kept: Vec::new(),
        })
    }

    fn choices(
        &self,
        format: &Format,
        source: &Opened,
        options: &Options,
        blueprint: &Blueprint,
    ) -> Result<Vec<Choices>> {
        let source = checkpoint_of(source, format)?;
        match FORMATS.iter().find(|row| row.format == *format) {
            Some(MlxFormat { recipe, element, .. }) if *recipe != Recipe::Floats => {
                let element = element.or_else(|| Element::of_config(source.config()));
                let mut parameters = parameters::parameters(source)?;
                parameters.retain(|parameter| options.choose_head || !parameter.is_head());
                overrides::choices(source, element, &parameters, &blueprint.tensors)
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// Parameters as mlx-lm counts them: of modules that hold no others.
fn counted(tensors: &[OutputTensor]) -> u64 {
    let module =
        |tensor: &OutputTensor| tensor.names[0].rsplit_once('.').map_or("", |(module, _)| module).to_owned();
    let mut holders = HashSet::new();
    for tensor in tensors {
        let mut path = &*module(tensor);
        while let Some((holder, _)) = path.rsplit_once('.') {
            holders.insert(holder.to_owned());
            path = holder;
        }
    }
    tensors.iter().filter(|tensor| !holders.contains(&module(tensor))).map(OutputTensor::len_elems).sum()
}

/// Refuses rows that are no whole groups, which a recipe skips and mlx-lm's models that have a predicate of their own do not.
fn check_groups(parameter: &Parameter, quantization: Quantization) -> Result<()> {
    let (len, group) = (parameter.row_len(), quantization.group_len);
    if len.is_multiple_of(group) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("{} in groups of {group}, with rows of {len}", parameter.name),
        hint: "mlx-lm wants this router so whatever the format is, and fails; a rule (--tensor-type) can give it another \
               type"
            .into(),
    })
}

/// One parameter of the model, quantized if it can be.
fn output_tensor(
    source: &Checkpoint,
    quantization: Option<Quantization>,
    element: Option<Element>,
    parameter: Parameter,
) -> Result<OutputTensor> {
    let stored = parameter.pieces.iter().map(|piece| &source.tensors()[piece.source]);
    let plan = Plan::new(stored, if parameter.is_cast { element } else { None })?;
    let quantization = quantization.filter(|_| parameter.is_quantizable);
    let codec = match quantization {
        Some(how) => how.codec(plan.element),
        None => codec::find(plan.element.dtype().name()),
    };
    let codec = codec.ok_or_else(|| Error::Unsupported {
        what: format!("{}: {quantization:?} of {}", parameter.name, plan.element.dtype()),
        hint: "it is not built in".into(),
    })?;
    let base = parameter.name.strip_suffix("weight");
    let names = match (quantization, base) {
        (Some(_), Some(base)) => codec.parts().iter().map(|part| format!("{base}{}", part.name)).collect(),
        _ => vec![parameter.name],
    };
    Ok(OutputTensor {
        names,
        shape: parameter.shape,
        type_name: codec.name().to_owned(),
        codec,
        layout: ROW_MAJOR,
        rounding: plan.rounding,
        pieces: parameter.pieces,
        scale_sources: Vec::new(),
        content: None,
        placements: Vec::new(),
        rule: None,
        importance: None,
        is_weight: true,
    })
}

/// The multi-token prediction layers, one entry each, and what is beside the text model.
fn dropped(source: &Checkpoint) -> Vec<Dropped> {
    let spec = source.spec();
    let mut aside: Vec<Dropped> = Vec::new();
    for (id, tensor) in source.tensors().iter().enumerate() {
        let Some(what) = source.family().aside(&tensor.name) else { continue };
        let reason = format!("{what}: mlx-lm reads the text model alone");
        match aside.iter_mut().find(|dropped| dropped.reason == reason) {
            Some(dropped) => dropped.tensors.push(id),
            None => aside.push(Dropped { tensors: vec![id], reason }),
        }
    }
    let predictors = (spec.layers..spec.layers + spec.mtp_layers)
        .map(|layer| Dropped {
            tensors: (0..source.tensors().len())
                .filter(|&id| matches!(source.tensors()[id].role, Some(Role::Layer(of, _)) if of == layer))
                .collect(),
            reason: format!("multi-token prediction layer {layer}: mlx-lm does not read it"),
        })
        .filter(|dropped| !dropped.tensors.is_empty());
    predictors.chain(aside).collect()
}
