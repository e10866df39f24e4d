//! Quantized checkpoints as Hugging Face lays them out: what compressed-tensors, GPTQ and AWQ share.
//!
//! Every tensor keeps the name of its module; the weight of a linear layer becomes the tensors of a
//! [`Layout`]. What stays as it is (16 bit, or 32 where the source has that):
//!
//! - what is not a linear layer of a decoder layer: embeddings, output head, norms, the router, its bias;
//! - multi-token prediction layers: serving engines read them with 16-bit weights or not at all;
//! - layers that do not fit, for instance because the group length does not divide their rows.
//!
//! Engines fuse some layers and then want them stored alike: gate and up projection, all matrices of a layer's routed
//! experts, and what else the family says. Such a set is quantized as a whole or not at all, and its members share their
//! factor where the codec has one. Source: vLLM `layers/fused_moe`.

use requant_formats::Dtype;
use requant_formats::codec::{self, Codec};
use requant_formats::layout::{self, Layout, ROW_MAJOR};
use serde_json::Value;

use super::{Blueprint, Format, OutputTensor, Piece, Rounding, Rules, Sidecar, Target, carried};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};
use crate::family::{LayerRole, Role, Turn};

mod alternatives;
mod choices;
mod dynamic;
mod modules;
mod shards;

pub(super) use alternatives::alternatives;
pub(super) use dynamic::{left_out, overridden};
pub(super) use modules::Modules;

/// One `--to` format of a family, and what its type is. The type is called as the format is, without the
/// family's prefix.
pub(super) struct Row<T: 'static> {
    pub(super) format: Format,
    pub(super) kind: T,
}

impl<T> Row<T> {
    pub(super) const fn new(name: &'static str, about: &'static str, kind: T) -> Self {
        Self { format: Format { name, about }, kind }
    }
}

/// The `format` column of a table.
pub(super) const fn formats<T, const ROWS: usize>(rows: &[Row<T>]) -> [Format; ROWS] {
    let mut formats = [Format { name: "", about: "" }; ROWS];
    let mut at = 0;
    while at < ROWS {
        formats[at] = rows[at].format;
        at += 1;
    }
    formats
}

/// What the type of this name is.
///
/// # Errors
/// When the table has none, which rules and formats rule out.
pub(super) fn kind_of<T: Copy>(rows: &[Row<T>], prefix: &str, type_name: &str) -> Result<T> {
    let row = rows.iter().find(|row| row.format.name.strip_prefix(prefix) == Some(type_name));
    row.map(|row| row.kind)
        .ok_or_else(|| Error::Unsupported { what: format!("type {type_name}"), hint: "see --help".into() })
}

/// How the weight of a linear layer is encoded.
#[derive(Clone, Copy)]
pub(super) struct Scheme {
    pub(super) codec: &'static dyn Codec,
    pub(super) layout: &'static dyn Layout,
    pub(super) rounding: Rounding,
}

/// What is written for the weight of a linear layer.
pub(super) enum Stored {
    /// Encoded.
    Encoded(Scheme),
    /// The source's own FP8 numbers and block scales, the scales under the module's name and this suffix.
    Carried { scale_suffix: &'static str },
}

/// A family of formats of this shape. Its types are what rules can give: a format without the family's name.
pub(super) trait Packing {
    /// The family.
    fn target(&self) -> &'static dyn Target;

    /// How the weight of a linear layer is stored as one of the family's types; `None` when it does not fit.
    ///
    /// # Errors
    /// When the source is none that this type can be made of.
    fn stored(&self, type_name: &'static str, tensor: &SourceTensor) -> Result<Option<Stored>>;

    /// The name of the type `name` with groups of `group_len`, for rules that state the two apart.
    fn with_groups(&self, name: &str, group_len: usize) -> String;

    /// Types that a budget may choose from for a layer of this role where the format's own is `default`: none where
    /// all modules have to have one.
    fn alternatives(&self, default: &str, role: LayerRole) -> Vec<&'static str> {
        let _ = (default, role);
        Vec::new()
    }

    /// Whether prediction layers are quantized too, when they can be.
    fn takes_prediction_layers(&self) -> bool {
        false
    }

    /// `quantization_config` of config.json; `default` is the type that no rule gave.
    ///
    /// # Errors
    /// When it cannot say what `modules` are.
    fn quantization_config(&self, default: &'static str, modules: &Modules) -> Result<Value>;

    /// Files beside config.json that say how the model is quantized.
    fn sidecars(&self, quantization_config: &Value) -> Vec<Sidecar> {
        let _ = quantization_config;
        Vec::new()
    }
}

/// The scheme of `codec` in the layout of this name, if the tensor's rows are whole groups.
///
/// # Errors
/// When either is not built in.
pub(super) fn encoded_if_it_fits(
    tensor: &SourceTensor,
    codec: Option<&'static dyn Codec>,
    layout: &str,
    rounding: Rounding,
) -> Result<Option<Stored>> {
    let (Some(codec), Some(layout)) = (codec, layout::find(layout)) else {
        return Err(Error::Unsupported {
            what: format!("layout {layout}"),
            hint: "it is not built in".into(),
        });
    };
    let fits = tensor.matrix().1.is_multiple_of(codec.group_len_elems());
    Ok(fits.then_some(Stored::Encoded(Scheme { codec, layout, rounding })))
}

/// The precision in which a 16-bit copy of the checkpoint has this tensor: what other tools quantize.
pub(super) fn rounding_of(tensor: &SourceTensor) -> Rounding {
    if tensor.dtype == Dtype::F16 { Rounding::Exact } else { Rounding::Bf16 }
}

/// Works out the result; `default` is the type of what no rule is for.
///
/// # Errors
/// What [`Packing::stored`] refuses, matrices that its layout cannot store, and rules that cannot be followed.
pub(super) fn blueprint(
    source: &Checkpoint,
    packing: &dyn Packing,
    default: &'static str,
    rules: &Rules,
) -> Result<Blueprint> {
    if !source.family().is_packable() {
        return Err(Error::Unsupported {
            what: format!("{} as {}", source.spec().model_type, packing.target().family()),
            hint: "engines read the experts of this family only as the hub has them; GGUF and MLX results keep their codes"
                .into(),
        });
    }
    let choices = choices::Choices::new(source, packing, default, rules)?;
    let mut modules = Modules::new(source.family(), source.spec());
    let mut tensors = Vec::new();
    for (id, tensor) in source.tensors().iter().enumerate() {
        let Some(role) = tensor.role else {
            // The engine reads the whole model.
            if source.family().aside(&tensor.name).is_some() {
                if let Some(stem) = tensor.name.strip_suffix(".weight").filter(|_| tensor.shape.len() > 1) {
                    modules.kept(stem);
                }
                tensors.push(kept(tensor, id)?);
            }
            continue;
        };
        let stem = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        let first = tensors.len();
        match choices.of(id) {
            Some((type_name, stored)) => {
                modules.quantized(stem, type_name);
                match *stored {
                    Stored::Encoded(scheme) => {
                        tensors.push(encoded(tensor, id, scheme, choices.sharing(source, id))?);
                    }
                    Stored::Carried { scale_suffix } => {
                        tensors.extend(carried_over(source, id, &format!("{stem}.{scale_suffix}"))?);
                    }
                }
            }
            None => {
                if role.is_module() {
                    modules.kept(stem);
                }
                tensors.push(kept(tensor, id)?);
            }
        }
        tensors[first..].iter_mut().for_each(|output| output.rule = choices.rule(id));
    }

    let files = shards::lay_out(&mut tensors)?;
    let mut sidecars = carried::sidecars(source)?;
    let quantization_config = packing.quantization_config(default, &modules)?;
    sidecars.extend(packing.sidecars(&quantization_config));
    sidecars.push(shards::index(&tensors, &files));
    sidecars.push(config(source, quantization_config));
    sidecars.sort_by(|a, b| a.name.cmp(&b.name));
    // In the order of first bytes, a file is finished from front to back.
    tensors.sort_by_key(|tensor| {
        tensor.placements.iter().map(|placement| (placement.file, placement.offset_bytes)).min()
    });
    Ok(Blueprint {
        is_directory: true,
        tensors,
        files,
        sidecars,
        dropped: Vec::new(),
        kept: modules.kept_patterns(),
    })
}

/// Layer and role of the weight of a linear layer that formats quantize.
fn linear(role: Option<Role>) -> Option<(usize, LayerRole)> {
    match role {
        Some(Role::Layer(layer, role)) if role.is_linear() => Some((layer, role)),
        _ => None,
    }
}

fn whole(tensor: &SourceTensor, id: usize) -> Piece {
    Piece { source: id, rows: 0..tensor.matrix().0, turn: Turn::None, unscaled: false }
}

fn encoded(tensor: &SourceTensor, id: usize, scheme: Scheme, shared: Vec<usize>) -> Result<OutputTensor> {
    let Scheme { codec, layout, rounding } = scheme;
    let stem = tensor.name.strip_suffix("weight").unwrap_or(&tensor.name);
    let mut output = OutputTensor {
        names: vec![tensor.name.clone()],
        shape: tensor.shape.clone(),
        type_name: codec.name().to_owned(),
        codec,
        layout,
        rounding,
        pieces: vec![whole(tensor, id)],
        scale_sources: if codec.tensor_scale(1.0).is_some() { shared } else { Vec::new() },
        rule: None,
        importance: None,
        is_weight: true,
        content: None,
        placements: Vec::new(),
    };
    output.names = output.stored()?.iter().map(|stored| format!("{stem}{}", stored.suffix)).collect();
    Ok(output)
}

/// A tensor in the source's own precision; FP8 becomes BF16.
fn kept(tensor: &SourceTensor, id: usize) -> Result<OutputTensor> {
    let (name, rounding) = match tensor.dtype {
        Dtype::F32 => ("F32", Rounding::Exact),
        Dtype::F16 => ("F16", Rounding::Exact),
        _ => ("BF16", Rounding::Bf16),
    };
    plain(tensor.name.clone(), tensor, id, name, rounding)
}

fn plain(
    name: String,
    tensor: &SourceTensor,
    id: usize,
    codec_name: &str,
    rounding: Rounding,
) -> Result<OutputTensor> {
    let codec = codec::find(codec_name).ok_or_else(|| Error::Unsupported {
        what: format!("tensor {}: codec {codec_name}", tensor.name),
        hint: "it is not built in".into(),
    })?;
    Ok(OutputTensor {
        names: vec![name],
        shape: tensor.shape.clone(),
        type_name: codec.name().to_owned(),
        codec,
        layout: ROW_MAJOR,
        rounding,
        pieces: vec![whole(tensor, id)],
        scale_sources: Vec::new(),
        rule: None,
        importance: None,
        is_weight: true,
        content: None,
        placements: Vec::new(),
    })
}

/// An FP8 weight and its block scales as the source has them; scales that are exponents become F32.
fn carried_over(source: &Checkpoint, id: usize, scale_name: &str) -> Result<Vec<OutputTensor>> {
    let tensor = &source.tensors()[id];
    let mut weight = plain(tensor.name.clone(), tensor, id, tensor.dtype.name(), Rounding::Exact)?;
    weight.pieces[0].unscaled = true;
    let Some(scale) = tensor.scale() else { return Ok(vec![weight]) };
    let stored = &source.tensors()[scale.tensor];
    let codec_name = match stored.dtype {
        Dtype::BF16 | Dtype::F16 => stored.dtype.name(),
        _ => "F32",
    };
    let scales = plain(scale_name.to_owned(), stored, scale.tensor, codec_name, Rounding::Exact)?;
    Ok(vec![weight, OutputTensor { is_weight: false, ..scales }])
}

/// config.json: the source's own with another quantization.
fn config(source: &Checkpoint, quantization_config: Value) -> Sidecar {
    let mut config = source.config().clone();
    if let Some(entries) = config.as_object_mut() {
        entries.remove("quantization_config");
        // Where the text model is a part of another, it may be said there.
        if let Some(text) = entries.get_mut("text_config").and_then(Value::as_object_mut) {
            text.remove("quantization_config");
        }
        entries.insert("quantization_config".into(), quantization_config);
    }
    Sidecar { name: "config.json".into(), bytes: json_file(&config) }
}

/// JSON as `transformers` writes it: two spaces, a newline at the end.
pub(super) fn json_file(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
