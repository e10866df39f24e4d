//! Model families: what config.json promises, which tensors must be there, what each is for.
//!
//! No I/O. A family is one file in `arch/` and one line in [`ARCHES`].

use serde_json::Value;

use crate::error::{Error, Result};
use crate::small::shown;

mod attention;
mod by_layer;
mod config;
mod deepseek;
mod deepseek_v2;
mod deepseek_v3;
mod kimi_k2;

/// Most layers of a model, predicting ones included.
const MAX_LAYERS: usize = 10_000;
/// Most routed experts of a layer.
const MAX_EXPERTS: usize = 65_536;
/// Most routed experts of all layers together; Kimi-K2 has 23,040.
const MAX_ALL_EXPERTS: usize = 1 << 18;

pub use attention::{
    Attention, Divisors, Grouped, Heads, Latent, Pairing, Rotary, Scaling, Sections, Sliding, Temperature,
    Yarn,
};
pub use by_layer::ByLayer;
pub use config::Config;
pub(crate) use deepseek::expected as latent_tensors;

/// A matrix of a SwiGLU feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ffn {
    /// `gate_proj`: `[intermediate, hidden]`.
    Gate,
    /// `up_proj`: `[intermediate, hidden]`.
    Up,
    /// `down_proj`: `[hidden, intermediate]`.
    Down,
}

impl Ffn {
    /// All three, in the order in which checkpoints name them.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// The name in Hugging Face checkpoints.
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

/// What a tensor inside a decoder layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerRole {
    /// RMS norm before attention: `[hidden]`.
    AttentionNorm,
    /// Query projection without low rank: `[heads * (nope + rope), hidden]`, or `[heads * key, hidden]`.
    Q,
    /// Bias of the query projection: `[heads * key]`.
    QBias,
    /// RMS norm of each query head: `[key]`.
    QNorm,
    /// Key projection: `[kv_heads * key, hidden]`.
    K,
    /// Bias of the key projection: `[kv_heads * key]`.
    KBias,
    /// RMS norm of each key head: `[key]`.
    KNorm,
    /// Value projection: `[kv_heads * v, hidden]`.
    V,
    /// Bias of the value projection: `[kv_heads * v]`.
    VBias,
    /// Query down projection: `[q_lora, hidden]`.
    QA,
    /// RMS norm of the low-rank query: `[q_lora]`.
    QANorm,
    /// Query up projection: `[heads * (nope + rope), q_lora]`.
    QB,
    /// Key-value down projection with the shared RoPE key: `[kv_lora + rope, hidden]`.
    KvA,
    /// RMS norm of the low-rank key-value: `[kv_lora]`.
    KvANorm,
    /// Key-value up projection, heads outermost: `[heads * (nope + v), kv_lora]`.
    KvB,
    /// Attention output: `[hidden, heads * v]`.
    AttentionOutput,
    /// Bias of the attention output: `[hidden]`.
    AttentionOutputBias,
    /// RMS norm of what attention says: `[hidden]`.
    AttentionPostNorm,
    /// RMS norm before the feed-forward block: `[hidden]`.
    FfnNorm,
    /// RMS norm of what the feed-forward block says: `[hidden]`.
    FfnPostNorm,
    /// Dense feed-forward.
    Dense(Ffn),
    /// Bias of a matrix of a dense feed-forward block: as many as it has rows.
    DenseBias(Ffn),
    /// Router: `[experts, hidden]`.
    Router,
    /// Correction bias of the router's choice: `[experts]`.
    RouterBias,
    /// Matrix of routed expert number `.0`.
    Expert(usize, Ffn),
    /// Shared experts, side by side in one feed-forward block.
    Shared(Ffn),
    /// Weighs what the shared experts say: `[1, hidden]`.
    SharedGate,
    /// Multi-token prediction: a copy of the token embedding: `[vocab, hidden]`.
    MtpEmbedding,
    /// Multi-token prediction: norm of the next token's embedding: `[hidden]`.
    MtpEmbeddingNorm,
    /// Multi-token prediction: norm of the hidden state: `[hidden]`.
    MtpHiddenNorm,
    /// Multi-token prediction: joins the two: `[hidden, 2 * hidden]`.
    MtpProjection,
    /// Multi-token prediction: norm before its head: `[hidden]`.
    MtpHeadNorm,
    /// Multi-token prediction: a copy of the output head: `[vocab, hidden]`.
    MtpHead,
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding: `[vocab, hidden]`.
    TokenEmbedding,
    /// Final RMS norm: `[hidden]`.
    OutputNorm,
    /// Output head: `[vocab, hidden]`.
    Output,
    /// Bias of the output head: `[vocab]`.
    OutputBias,
    /// Divisors of rotary frequencies: `[pairs]`.
    RopeDivisors,
    /// Divisors of rotary frequencies in long contexts: `[pairs]`.
    RopeDivisorsLong,
    /// Divisors of rotary frequencies in contexts up to the original one: `[pairs]`.
    RopeDivisorsShort,
    /// A tensor of decoder layer `.0`.
    Layer(usize, LayerRole),
}

/// A tensor that a family's checkpoint contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Full name in the checkpoint.
    pub name: String,
    /// Shape, outermost dimension first, as safetensors states it.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// False for multi-token prediction layers, which copies of a checkpoint often lack.
    pub required: bool,
}

/// What a feed-forward block does to its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The Gaussian error unit in its form with tanh.
    GeluTanh,
}

/// How router logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Each on its own: `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Among all experts.
    Softmax,
    /// They are scores as they are; the weights of the chosen experts are a softmax among these.
    SoftmaxOfChosen,
    /// Each on its own: `sqrt(ln(1 + exp(x)))`.
    SqrtSoftplus,
}

/// Which experts can be chosen: how groups of them are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertChoice {
    /// Those of the best groups by the sum of their two best scores.
    GroupsByTwoBest,
    /// Those of the best groups by their best score.
    GroupsByBest,
    /// All, whatever their group.
    Ungrouped,
}

/// The resolved hyper-parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchSpec {
    /// `model_type` of config.json, or `general.architecture` of a GGUF.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers, multi-token prediction not counted.
    pub layers: usize,
    /// Multi-token prediction layers that follow them.
    pub mtp_layers: usize,
    /// Leading layers with a dense feed-forward block.
    pub dense_layers: usize,
    /// Width of a dense feed-forward block.
    pub dense_intermediate: ByLayer<usize>,
    /// Width of one expert.
    pub expert_intermediate: ByLayer<usize>,
    /// Routed experts.
    pub experts: usize,
    /// Experts chosen per token.
    pub experts_per_token: ByLayer<usize>,
    /// Shared experts.
    pub shared_experts: usize,
    /// Width of all of them side by side.
    pub shared_intermediate: ByLayer<usize>,
    /// Whether a sigmoid of its own weighs what the shared experts say.
    pub shared_gate: bool,
    /// Groups the experts are divided into.
    pub expert_groups: usize,
    /// Groups that can be chosen from.
    pub top_groups: usize,
    /// Factor on the routed experts' sum.
    pub routed_scale: f64,
    /// Whether the chosen experts' weights are normalized to sum 1.
    pub normalize_top: bool,
    /// How router logits become scores.
    pub scoring: Scoring,
    /// Which experts can be chosen.
    pub choice: ExpertChoice,
    /// Whether scores get a correction bias, which counts for the choice and not for the weight.
    pub router_bias: bool,
    /// How tokens look at each other.
    pub attention: Attention,
    /// Rotary positions, of the layers without a sliding window if there are others.
    pub rope: Rotary,
    /// Vocabulary size.
    pub vocab: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Whether the output head is the token embedding.
    pub tied_embeddings: bool,
    /// What feed-forward blocks do to their gates.
    pub activation: Activation,
    /// Whether what attention and feed-forward blocks say is normed before it is added.
    pub post_norms: bool,
    /// Factor on embeddings.
    pub embedding_scale: f64,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f64>,
}

impl ArchSpec {
    /// A model without experts and what else few models have; feed-forward blocks have no width yet, norms no epsilon.
    pub(crate) fn plain(model_type: &str, layers: usize, attention: Attention, rope: Rotary) -> Self {
        Self {
            model_type: model_type.to_owned(),
            hidden: 0,
            layers,
            mtp_layers: 0,
            dense_layers: layers,
            dense_intermediate: ByLayer::all(0),
            expert_intermediate: ByLayer::all(0),
            experts: 0,
            experts_per_token: ByLayer::all(0),
            shared_experts: 0,
            shared_intermediate: ByLayer::all(0),
            shared_gate: false,
            expert_groups: 1,
            top_groups: 1,
            routed_scale: 1.0,
            normalize_top: false,
            scoring: Scoring::Softmax,
            choice: ExpertChoice::Ungrouped,
            router_bias: false,
            attention,
            rope,
            vocab: 0,
            norm_eps: 0.0,
            tied_embeddings: false,
            activation: Activation::Silu,
            post_norms: false,
            embedding_scale: 1.0,
            logit_cap: None,
        }
    }

    /// Refuses a model whose list of tensors would take gigabytes: ten times the largest that exists has fewer.
    ///
    /// # Errors
    /// Too many layers, experts, or experts in all layers; `file` is for the message.
    pub(crate) fn check_size(&self, file: &str) -> Result<()> {
        let layers = self.layers.saturating_add(self.mtp_layers);
        let all_experts = layers.saturating_mul(self.experts);
        if layers <= MAX_LAYERS && self.experts <= MAX_EXPERTS && all_experts <= MAX_ALL_EXPERTS {
            return Ok(());
        }
        let message = format!(
            "found {layers} layers with {} experts each, expected at most {MAX_LAYERS} layers, {MAX_EXPERTS} experts in \
             a layer and {MAX_ALL_EXPERTS} in all",
            self.experts
        );
        Err(Error::checkpoint(file, message))
    }

    /// Whether layer `layer` has a mixture of experts rather than a dense block.
    pub fn is_moe(&self, layer: usize) -> bool {
        self.experts > 0 && layer >= self.dense_layers
    }

    /// Its latent attention.
    ///
    /// # Errors
    /// When it has another kind.
    pub fn latent(&self) -> Result<&Latent> {
        match &self.attention {
            Attention::Latent(latent) => Ok(latent),
            Attention::Grouped(_) => Err(Error::Unsupported {
                what: format!("grouped-query attention of {}", self.model_type),
                hint: "models with latent attention can be written in this format".into(),
            }),
        }
    }
}

/// A model family.
pub trait Architecture: Sync {
    /// Value of `model_type` in config.json.
    fn model_type(&self) -> &'static str;
    /// Reads and checks the hyper-parameters.
    ///
    /// # Errors
    /// Names the key of config.json that is missing or out of range.
    fn spec(&self, config: &Config) -> Result<ArchSpec>;
    /// Every tensor that a checkpoint with these hyper-parameters holds.
    fn expected(&self, spec: &ArchSpec) -> Vec<Expected>;
}

/// Every family this version reads.
pub const ARCHES: &[&dyn Architecture] =
    &[&deepseek_v3::DeepseekV3, &deepseek_v2::DeepseekV2, &kimi_k2::KimiK2];

/// Finds the family of a parsed config.json.
///
/// # Errors
/// [`Error::Unsupported`] naming the families there are.
pub fn find(config: &Value) -> Result<&'static dyn Architecture> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
    ARCHES.iter().copied().find(|arch| arch.model_type() == model_type).ok_or_else(|| Error::Unsupported {
        what: format!("config.json: model_type {}", shown(model_type)),
        hint: format!(
            "this version reads {}",
            ARCHES.iter().map(|arch| arch.model_type()).collect::<Vec<_>>().join(", ")
        ),
    })
}
