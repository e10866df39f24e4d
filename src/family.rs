//! What a model family is, once: its hyper-parameters in config.json and in GGUF keys, its tensors, what each ecosystem calls
//! them and how it arranges them, what llama.cpp, mlx-lm and serving engines make of it.
//!
//! No I/O. A family is one file in `family/`, thin over the blocks in `family/block/`, and one line in [`FAMILIES`]. Whoever
//! reads or writes a model asks here and knows no family by name.

use std::borrow::Cow;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::small::{brief, shown};

mod block;
mod config;
mod decoder;
mod deepseek;
mod deepseek_v2;
mod deepseek_v3;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3_text;
mod gguf;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt_oss;
mod kimi_k2;
mod kimi_k25;
mod llama;
mod minimax_m2;
mod mistral;
mod mixtral;
mod olmoe;
mod phi3;
mod place;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod role;
mod seed_oss;
mod spec;
mod tensors;

pub use block::Fused;
pub use config::Config;
pub use gguf::{Architecture, Contents, Size, Vocabulary, architecture_of};
pub use place::{Ecosystem, Output, Part, Place, Turn, outputs};
pub use role::{Ffn, LayerRole, Role};
pub use spec::{
    Activation, Attention, ByLayer, Dense, Divisors, Embedding, ExpertChoice, FeedForward, Grouped, Heads,
    Latent, Moe, Norms, Pairing, Presence, Rotary, Router, Scaling, Scoring, Sections, Shared, Sliding, Spec,
    Temperature, Wavelengths, Yarn,
};
pub use tensors::{Computed, Tensor};

use block::moe::{self, MoeNames};
use tensors::Names;

/// Every family this version knows. Help, messages and documentation iterate it.
pub const FAMILIES: &[&Family] = &[
    &deepseek_v3::FAMILY,
    &deepseek_v2::FAMILY,
    &kimi_k2::FAMILY,
    &kimi_k25::FAMILY,
    &glm4_moe_lite::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen2::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &seed_oss::FAMILY,
    &phi3::FAMILY,
    &gemma2::FAMILY,
    &gemma3_text::FAMILY,
    &gemma3::FAMILY,
    &glm4_moe::FAMILY,
    &olmoe::FAMILY,
    &minimax_m2::FAMILY,
    &gpt_oss::FAMILY,
];

/// A model family.
pub struct Family {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// How checkpoints are read; `None` where only GGUF files are.
    pub checkpoint: Option<Checkpoints>,
    /// What llama.cpp takes it for.
    pub gguf: &'static Architecture,
    naming: Naming,
    /// The same with what else its tensors are called in checkpoints.
    renamed: Option<&'static Family>,
}

/// How the checkpoints of a family are read and converted.
pub struct Checkpoints {
    /// Reads and checks the hyper-parameters.
    spec: fn(&Config) -> Result<Spec>,
    /// Refuses what can be evaluated and not converted.
    convertible: fn(&Spec) -> Result<()>,
    /// Refuses what mlx-lm's model could not be built from.
    mlx: fn(&Config) -> Result<()>,
    /// Whether serving engines read it quantized otherwise than the hub has it.
    is_packable: bool,
    /// Matrices of experts that are stacked.
    stacks: &'static [Stack],
    /// Whether mlx-lm's model takes a tied output head from the embedding; else it wants a copy.
    mlx_ties_head: bool,
    /// config.json of the text model, where that is a part of another.
    text: fn(&Value) -> Cow<Value>,
    /// Class of the whole model, where the text model is a part of another.
    whole: Option<&'static str>,
    /// What the names of tensors beside the text model begin with, and what they are.
    aside: &'static [(&'static str, &'static str)],
}

/// Matrices of all experts of a layer in one tensor, and their biases in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stack {
    /// What it is called behind `experts.`.
    pub name: &'static str,
    /// What the matrices would be called on their own; where there are several, their rows come in turns.
    pub matrices: &'static [&'static str],
}

/// The usual: checkpoints of nothing but a text model.
const CHECKPOINTS: Checkpoints = Checkpoints {
    spec: |config| Err(config.missing("model_type")),
    convertible: |_| Ok(()),
    mlx: |_| Ok(()),
    is_packable: true,
    stacks: &[],
    mlx_ties_head: true,
    text: |config| Cow::Borrowed(config),
    whole: None,
    aside: &[],
};

/// What a family calls otherwise than most.
#[derive(Debug, Clone, Copy)]
struct Naming {
    /// What stands before everything in checkpoints.
    outer: &'static str,
    /// What stands before everything but the output head.
    root: &'static str,
    /// What stands before everything in MLX models.
    mlx_outer: &'static str,
    /// The norm before the feed-forward block.
    ffn_norm: Names,
    /// Whether llama.cpp has gate and up projection of a dense block in one matrix, which it calls the latter.
    gate_is_in_up: bool,
    /// Whether llama.cpp reads gate and up projection of experts in one stack too.
    merges_experts: bool,
    moe: MoeNames,
    mlx: MlxOrder,
    /// What mlx-lm does with the router when it quantizes.
    mlx_router: MlxRouter,
    /// Whether mlx-lm splits the matrix of latent attention that makes keys and values.
    mlx_splits_key_value: bool,
    /// Whether mlx-lm carries over what a checkpoint has in codes of 4 bits, whatever the other weights become.
    mlx_keeps_codes: bool,
}

/// What mlx-lm does with a router when it quantizes a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlxRouter {
    /// It stays as it is: its module cannot be quantized.
    Kept,
    /// As with any other linear layer.
    Quantized,
    /// 8 bits in groups of 64, whatever the others get; a recipe that mixes widths counts before that.
    EightBits,
}

/// In which order mlx-lm's modules hold what a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MlxOrder {
    /// The norms before the feed-forward block, not behind it.
    norms_first: bool,
    /// The norm behind attention as the last of four, not before those of the feed-forward block.
    post_attention_last: bool,
    /// The down projection of a dense block, or of shared experts, before the up projection, not behind it.
    down_before_up: bool,
    /// The router before the experts, not behind them.
    router_first: bool,
    /// The norm behind the layers before them.
    output_norm_first: bool,
}

/// The most common names.
const NAMING: Naming = Naming {
    outer: "",
    root: "model.",
    mlx_outer: "",
    ffn_norm: Names::new("post_attention_layernorm.weight", "ffn_norm.weight"),
    gate_is_in_up: false,
    merges_experts: false,
    moe: moe::NAMES,
    mlx: MlxOrder {
        norms_first: false,
        post_attention_last: false,
        down_before_up: false,
        router_first: false,
        output_norm_first: false,
    },
    mlx_router: MlxRouter::Kept,
    mlx_splits_key_value: true,
    mlx_keeps_codes: false,
};

/// A tensor that a family's checkpoint contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Full name in the checkpoint.
    pub name: String,
    /// Shape, outermost dimension first, as safetensors states it.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// False for what copies of a checkpoint often lack.
    pub required: bool,
}

impl Family {
    /// Reads and checks the hyper-parameters of a checkpoint.
    ///
    /// # Errors
    /// Names the key of config.json that is missing or out of range.
    pub fn spec(&self, config: &Config) -> Result<Spec> {
        let checkpoints = self.checkpoints()?;
        check_head(config, checkpoints.whole)?;
        (checkpoints.spec)(config)
    }

    /// config.json of the text model: all of it but where that is a part of another model.
    pub fn text<'a>(&self, config: &'a Value) -> Cow<'a, Value> {
        self.checkpoint.as_ref().map_or(Cow::Borrowed(config), |checkpoint| (checkpoint.text)(config))
    }

    /// The same family, or itself with other names where `is_there` knows these and not its own.
    pub fn named(&'static self, is_there: impl Fn(&str) -> bool) -> &'static Self {
        let marks = |family: &Self| is_there(&format!("{}embed_tokens.weight", family.naming.root));
        self.renamed.filter(|renamed| !marks(self) && marks(renamed)).unwrap_or(self)
    }

    /// What a tensor of this name is, beside the text model.
    pub fn aside(&self, name: &str) -> Option<&'static str> {
        let found = self.checkpoint.as_ref()?.aside.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.map(|(_, what)| *what)
    }

    /// Refuses a model that can be evaluated and not converted.
    ///
    /// # Errors
    /// Says why.
    pub fn check_convertible(&self, spec: &Spec) -> Result<()> {
        (self.checkpoints()?.convertible)(spec)
    }

    /// Whether serving engines read its checkpoints quantized otherwise than the hub has them.
    pub fn is_packable(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.is_packable)
    }

    /// Matrices of experts that are stacked in checkpoints.
    pub fn stacks(&self) -> &'static [Stack] {
        self.checkpoint.as_ref().map_or(&[], |checkpoint| checkpoint.stacks)
    }

    /// Refuses what mlx-lm's model could not be built from.
    ///
    /// # Errors
    /// Names the key of config.json.
    pub fn check_mlx(&self, config: &Config) -> Result<()> {
        (self.checkpoints()?.mlx)(config)
    }

    /// Whether an MLX model of these hyper-parameters has an output head of its own.
    pub fn mlx_has_head(&self, spec: &Spec) -> bool {
        let ties = self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.mlx_ties_head);
        !(ties && spec.embedding.tied)
    }

    /// What mlx-lm does with the router when it quantizes a model.
    pub fn mlx_router(&self) -> MlxRouter {
        self.naming.mlx_router
    }

    /// Whether mlx-lm carries over what a checkpoint has in codes of 4 bits, whatever the other weights become.
    pub fn mlx_keeps_codes(&self) -> bool {
        self.naming.mlx_keeps_codes
    }

    /// Every tensor that a model with these hyper-parameters has or may have, in the order in which modules hold them.
    pub fn tensors(&self, spec: &Spec) -> Vec<Tensor> {
        tensors::tensors(self, spec)
    }

    /// The tensor of a GGUF file that follows from the hyper-parameters, if there is one.
    pub fn computed(&self, spec: &Spec) -> Option<Computed> {
        tensors::computed(spec)
    }

    /// Every tensor that a checkpoint with these hyper-parameters holds.
    pub fn expected(&self, spec: &Spec) -> Vec<Expected> {
        let of_tensor = |tensor: Tensor| match tensor.places(Ecosystem::Hf) {
            [Place::Whole(name), ..] => Some(Expected {
                name: name.clone(),
                required: tensor.presence == Presence::Always,
                role: tensor.role,
                shape: tensor.shape,
            }),
            _ => None,
        };
        self.tensors(spec).into_iter().filter_map(of_tensor).collect()
    }

    /// What stands before the number of a layer in the names of checkpoints.
    pub fn layers_prefix(&self) -> String {
        format!("{}layers.", self.naming.root)
    }

    /// The set of matrices that serving engines fuse with the one with this role; `None` when it is on its own.
    pub fn fused(&self, spec: &Spec, role: LayerRole) -> Option<Fused> {
        block::fused(self, spec, role)
    }

    fn checkpoints(&self) -> Result<&Checkpoints> {
        self.checkpoint.as_ref().ok_or_else(|| unknown(self.model_type))
    }
}

/// Finds the family of a parsed config.json.
///
/// # Errors
/// [`Error::Unsupported`] naming the families there are.
pub fn find(config: &Value) -> Result<&'static Family> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
    let found = FAMILIES.iter().find(|family| family.model_type == model_type && family.checkpoint.is_some());
    found.copied().ok_or_else(|| unknown(model_type))
}

/// Finds the family of GGUF files of an architecture: the first of those that llama.cpp takes for it.
pub fn of_architecture(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.gguf.name == name)
}

/// The architectures of GGUF files of all families.
pub fn architectures() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for name in FAMILIES.iter().map(|family| family.gguf.name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether only MLX models have tensors whose names contain one of these: they are what tells a model that says nothing
/// else.
pub const MLX_MARKS: [&str; 2] = [".self_attn.embed_q.", ".switch_mlp."];

/// Refuses models that do something else with what the layers say than to predict the next token: classifiers, embedding
/// models. They have the model type of those that they were trained from.
fn check_head(config: &Config, whole: Option<&str>) -> Result<()> {
    let architectures = config.get("architectures").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is_known = |name: &str| name.ends_with("ForCausalLM") || whole == Some(name);
    match architectures.iter().find(|name| !name.as_str().is_some_and(is_known)) {
        None => Ok(()),
        Some(other) => Err(Error::Unsupported {
            what: format!("config.json: architectures {}", brief(&other.to_string())),
            hint: "this version reads models that predict the next token, `...ForCausalLM`, with their output head"
                .into(),
        }),
    }
}

fn unknown(model_type: &str) -> Error {
    let known = FAMILIES.iter().filter(|family| family.checkpoint.is_some()).map(|family| family.model_type);
    Error::Unsupported {
        what: format!("config.json: model_type {}", shown(model_type)),
        hint: format!("this version reads {}", known.collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests;
