//! The plan: everything about the result that follows from headers alone.
//!
//! A [`Target`] turns a checkpoint and a format name into a [`Blueprint`]: every output tensor
//! with the codec that writes it and the pieces of source tensors it is made of, and every
//! output file with its exact header and size. Jobs follow from a blueprint mechanically.
//! Nothing here reads a tensor's data.

use std::ops::Range;
use std::sync::Arc;

use requant_formats::layout::{Layout, Matrix, ROW_MAJOR, Runs, StoredTensor};
use requant_formats::{Codec, codec};

use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};
use crate::family::Turn;
use crate::imatrix::Imatrix;
use crate::opened::Opened;

mod awq;
pub mod budget;
mod carried;
mod compressed_tensors;
mod format;
mod gguf;
mod gptq;
mod hf;
mod jobs;
mod mlx;
mod pieces;
mod python_json;
mod rules;
mod schedule;
mod shares;
mod summary;

pub use budget::{Budget, Choices};
pub use format::{Format, ImportanceUse, find as find_format, nearest as nearest_formats};
pub(crate) use gguf::{front_matter, general_metadata};
pub use jobs::{Job, jobs, output_rows, whole_bands};
pub use rules::{Choice, Pattern, Rule, Rules, numbered};
pub use schedule::{Schedule, Step, schedule};
pub use shares::{MAX_SHARES, ShareTotals, TOLERANCE, files_of, share_totals, shares, source_bytes};
pub use summary::{DroppedTotals, Summary, TypeTotals, files_read, summary};

/// Precision in which weights are handed to the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// f32, as decoded: what llama.cpp quantizes from.
    Exact,
    /// Rounded to bfloat16 first: what mlx-lm quantizes from.
    Bf16,
    /// Rounded to IEEE half first.
    F16,
    /// Rounded to bfloat16 and then to IEEE half: a bfloat16 checkpoint that is loaded as half.
    Bf16ThenF16,
}

impl Rounding {
    /// Gives weights the precision that the encoder is to see.
    pub fn apply(self, weights: &mut [f32]) {
        match self {
            Self::Exact => {}
            Self::Bf16 => codec::round_to_bf16(weights),
            Self::F16 => codec::round_to_f16(weights),
            Self::Bf16ThenF16 => {
                codec::round_to_bf16(weights);
                codec::round_to_f16(weights);
            }
        }
    }
}

/// Rows of a source tensor that become rows of an output tensor.
///
/// The source counts as a matrix `[rows, cols]`: leading dimensions are folded, a vector is
/// one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Position in [`crate::checkpoint::Catalogue::tensors`].
    pub source: usize,
    /// Source rows.
    pub rows: Range<usize>,
    /// What is done to them.
    pub turn: Turn,
    /// Whether stored numbers are taken without their scales: for results that keep both.
    pub unscaled: bool,
}

/// One part of an output tensor, placed: where in which file its rows begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Position in [`Blueprint::files`].
    pub file: usize,
    /// Absolute offset in that file.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
}

/// Where the importance of a tensor's columns stands.
#[derive(Debug, Clone)]
pub struct Importance {
    /// The file.
    pub imatrix: Arc<Imatrix>,
    /// The tensor's name in it.
    pub name: String,
}

/// One tensor of the result.
#[derive(Clone)]
pub struct OutputTensor {
    /// Name of each stored tensor, in the order of [`OutputTensor::stored`].
    pub names: Vec<String>,
    /// Logical shape, outermost dimension first (before packing).
    pub shape: Vec<usize>,
    /// Type name for people and manifests: `Q4_K`, `BF16`, `affine4_g64`.
    pub type_name: String,
    /// What encodes it.
    pub codec: &'static dyn Codec,
    /// How the codec's parts are arranged in stored tensors.
    pub layout: &'static dyn Layout,
    /// Precision before encoding.
    pub rounding: Rounding,
    /// Source pieces; their rows one after the other are the rows of this tensor.
    pub pieces: Vec<Piece>,
    /// Source tensors whose largest magnitude sets [`Codec::tensor_scale`]: the tensor's own and those it
    /// shares the factor with. Empty for codecs without one.
    pub scale_sources: Vec<usize>,
    /// What it holds, byte for byte, when that follows from headers alone; it has no pieces then.
    pub content: Option<Vec<u8>>,
    /// Where each stored tensor goes, in the order of [`OutputTensor::stored`].
    pub placements: Vec<Placement>,
    /// The rule of [`Options::rules`] that gave it its type, if one did.
    pub rule: Option<usize>,
    /// How much an error in each column matters, where the codec weighs errors.
    pub importance: Option<Importance>,
    /// Whether its elements are weights of the model: scales that are carried over beside theirs are not.
    pub is_weight: bool,
}

impl OutputTensor {
    /// Elements of the tensor.
    pub fn len_elems(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Weights of the model in it.
    pub fn parameters(&self) -> u64 {
        if self.is_weight { self.len_elems() } else { 0 }
    }

    /// Bytes in its files.
    pub fn stored_bytes(&self) -> u64 {
        self.placements.iter().map(|placement| placement.len_bytes).sum()
    }

    /// Length of a row: the innermost dimension.
    pub fn row_len_elems(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of each matrix: a tensor of three dimensions is a stack of them.
    pub fn matrix_rows(&self) -> usize {
        match self.shape.as_slice() {
            [.., rows, _] => (*rows).max(1),
            _ => 1,
        }
    }

    /// What its layout works on.
    pub fn matrix(&self, tensor_scale: f32) -> Matrix<'_> {
        Matrix { shape: &self.shape, codec: self.codec, tensor_scale }
    }

    /// Whether `piece` of it is stored in `source` just as it is to be written: its bytes are copied then,
    /// which loses nothing, where decoding and encoding again might.
    pub fn copies(&self, piece: &Piece, source: &SourceTensor) -> bool {
        let is_row_major = self.layout.name() == ROW_MAJOR.name();
        let is_changed = !piece.turn.is_none() || piece.unscaled || self.rounding != Rounding::Exact;
        let same_codec = source.row_major().is_some_and(|codec| codec.name() == self.codec.name());
        is_row_major && same_codec && !is_changed
    }

    /// The tensors of the container that hold it.
    ///
    /// # Errors
    /// When its layout cannot store such a matrix.
    pub fn stored(&self) -> Result<Vec<StoredTensor>> {
        let name = self.names.first().map_or("", String::as_str);
        self.layout.tensors(self.matrix(1.0)).map_err(Error::format(name))
    }

    /// Where `rows` output rows lie: for each stored tensor its place and the runs within.
    pub fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (Placement, Runs)> {
        let matrix = self.matrix(1.0);
        let placements = self.placements.iter().enumerate();
        placements
            .map(move |(number, &placement)| (placement, self.layout.runs(matrix, number, rows.clone())))
    }
}

/// One file with tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Name inside the output directory; empty when the output is this one file.
    pub name: String,
    /// Everything before the first tensor.
    pub header: Vec<u8>,
    /// Total length, padding included. Bytes that no tensor covers are zero.
    pub len_bytes: u64,
}

/// A small file without tensors, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Name inside the output directory.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// Source tensors that the target leaves out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Positions in [`crate::checkpoint::Catalogue::tensors`].
    pub tensors: Vec<usize>,
    /// One line for people: `"multi-token prediction layer 61: llama.cpp does not read it"`.
    pub reason: String,
}

/// A result, down to the byte range of every tensor.
#[derive(Clone)]
pub struct Blueprint {
    /// Whether the output path is a directory that holds `files` and `sidecars`.
    pub is_directory: bool,
    /// Output tensors in file order.
    pub tensors: Vec<OutputTensor>,
    /// Files with tensors.
    pub files: Vec<OutputFile>,
    /// Small files. Only for directories.
    pub sidecars: Vec<Sidecar>,
    /// What is left out.
    pub dropped: Vec<Dropped>,
    /// Linear layers that are not quantized, as regular expressions for their names, where the result's own
    /// configuration has to state them.
    pub kept: Vec<String>,
}

impl Blueprint {
    /// Bytes of all files together.
    pub fn len_bytes(&self) -> u64 {
        let files = self.files.iter().map(|file| file.len_bytes);
        let sidecars = self.sidecars.iter().map(|sidecar| sidecar.bytes.len() as u64);
        files.chain(sidecars).sum()
    }

    /// Weights of the model in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(OutputTensor::parameters).sum()
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(OutputTensor::stored_bytes).sum()
    }
}

/// Choices beside the format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Output file name without directories, for formats that name splits after it.
    pub output_name: String,
    /// `tokenizer.ggml.pre` for a tokenizer that is not recognized.
    pub tokenizer_pre: Option<String>,
    /// Largest split of a GGUF output.
    pub split_max_bytes: Option<u64>,
    /// Tensors that get another type than the format gives them.
    pub rules: Rules,
    /// Whether tensors of a GGUF source that are quantized already may be quantized to other types.
    pub allow_requantize: bool,
    /// How much an error in each column of each tensor matters: for GGUF.
    pub imatrix: Option<Arc<Imatrix>>,
    /// Whether README.md is left to whoever seals a directory; an MLX directory has mlx-lm's otherwise.
    pub leaves_card: bool,
    /// Whether a budget may choose a type for the output head.
    pub choose_head: bool,
}

/// A family of output formats: GGUF, MLX, GPTQ.
pub trait Target: Sync {
    /// What it is called in messages: `"GGUF"`.
    fn family(&self) -> &'static str;

    /// Names of the types that a rule may give.
    fn types(&self) -> Vec<&'static str>;

    /// Its formats.
    fn formats(&self) -> &'static [Format];

    /// Those of them that people use most, the first of them most of all.
    fn usual(&self) -> &'static [&'static str];

    /// Bits per weight of the type that most matrices get, scales included; of floats those of one.
    fn bits_per_weight(&self, format: &Format) -> f64;

    /// Programs that read the result.
    fn readers(&self, format: &Format) -> &'static [&'static str];

    /// What an importance matrix does for it.
    fn importance(&self, _: &Format) -> ImportanceUse {
        ImportanceUse::Unused
    }

    /// Whether a result is a directory; else it is a file, or a few.
    fn is_directory(&self) -> bool {
        true
    }

    /// Whether a result is another quantization of the checkpoint for serving engines, with the names that it has.
    fn is_packing(&self) -> bool {
        false
    }

    /// Whether it can be made of a GGUF file; of a checkpoint every result can.
    fn takes_gguf(&self) -> bool {
        false
    }

    /// Whether errors can be weighed with an importance matrix.
    fn weighs_errors(&self) -> bool {
        false
    }

    /// Works out the result for one of [`Target::formats`].
    ///
    /// # Errors
    /// Everything that makes the conversion impossible, before any tensor is read.
    fn blueprint(&self, format: &Format, source: &Opened, options: &Options) -> Result<Blueprint>;

    /// Tensors of a blueprint of this format whose type a [`Budget`] may choose, and from what; none for a family
    /// that has nothing to choose.
    ///
    /// # Errors
    /// As [`Target::blueprint`].
    fn choices(&self, _: &Format, _: &Opened, _: &Options, _: &Blueprint) -> Result<Vec<Choices>> {
        Ok(Vec::new())
    }
}

/// Every family. `--help` and error messages iterate it.
pub const TARGETS: &[&dyn Target] = &[
    &gguf::GgufTarget,
    &mlx::MlxTarget,
    &compressed_tensors::CompressedTensorsTarget,
    &gptq::GptqTarget,
    &awq::AwqTarget,
];

/// Works out the result of converting `source` to `format`.
///
/// # Errors
/// [`Error::Usage`] with the nearest names when `format` is not one of them; else as [`Target::blueprint`].
pub fn blueprint(source: &Opened, format: &str, options: &Options) -> Result<Blueprint> {
    if let Some(checkpoint) = source.checkpoint() {
        checkpoint.family().check_convertible(checkpoint.spec())?;
    }
    let (target, format) = find_format(format)?;
    options.rules.check_format(format.name)?;
    if let Some(imatrix) = options.imatrix.as_ref().filter(|_| !target.weighs_errors()) {
        return Err(Error::Unsupported {
            what: format!("{}: an importance matrix for {}", imatrix.path().display(), format.name),
            hint: "only GGUF types weigh errors by importance; leave --imatrix out".into(),
        });
    }
    let mut blueprint = target.blueprint(format, source, options)?;
    if let Some(checkpoint) = source.checkpoint() {
        account(checkpoint, &mut blueprint)?;
    }
    Ok(blueprint)
}

/// The checkpoint that a source is: all that most formats are made of.
///
/// # Errors
/// When it is something else.
fn checkpoint_of<'a>(source: &'a Opened, format: &Format) -> Result<&'a Checkpoint> {
    source.checkpoint().ok_or_else(|| match source.gguf() {
        Some(model) => Error::Unsupported {
            what: format!("{}: making {} of a GGUF file", model.path().display(), format.name),
            hint: "a GGUF file becomes another GGUF type only; convert the checkpoint it was made from"
                .into(),
        },
        None => Error::Unsupported {
            what: format!("{}: making {} of an MLX model", source.source().location(), format.name),
            hint: "convert the checkpoint that it was made from".into(),
        },
    })
}

/// Whether a result of `format` is a directory.
///
/// # Errors
/// [`Error::Usage`] with the nearest names when `format` is not one of them.
pub fn is_directory(format: &str) -> Result<bool> {
    Ok(find_format(format)?.0.is_directory())
}

/// Holds a blueprint against the checkpoint: every weight is used or dropped with a reason, and
/// scales share the fate of their weights.
fn account(source: &Checkpoint, blueprint: &mut Blueprint) -> Result<()> {
    let mut accounted = vec![false; source.tensors().len()];
    for piece in blueprint.tensors.iter().flat_map(|tensor| &tensor.pieces) {
        accounted[piece.source] = true;
    }
    for dropped in &mut blueprint.dropped {
        let scales: Vec<usize> = dropped
            .tensors
            .iter()
            .flat_map(|&id| source.tensors()[id].companions().iter().copied())
            .collect();
        dropped.tensors.extend(scales);
        dropped.tensors.sort_unstable();
        dropped.tensors.dedup();
        dropped.tensors.iter().for_each(|&id| accounted[id] = true);
    }
    for (id, tensor) in source.tensors().iter().enumerate() {
        if tensor.role.is_some() && !accounted[id] {
            return Err(Error::Unsupported {
                what: format!("tensor {}", tensor.name),
                hint: "this format has no place for it, and leaving it out would lose it without a word"
                    .into(),
            });
        }
    }
    Ok(())
}
