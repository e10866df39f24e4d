//! The hyper-parameters of a model, whichever of config.json and GGUF keys they were read from.

use super::Role;
use crate::error::{Error, Result};

mod attention;
mod by_layer;
mod wavelengths;

pub use attention::{
    Attention, Divisors, Grouped, Heads, Latent, Pairing, Rotary, Scaling, Sections, Sliding, Temperature,
    Yarn,
};
pub use by_layer::ByLayer;
pub use wavelengths::Wavelengths;

/// The resolved hyper-parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// `model_type` of config.json, or `general.architecture` of a GGUF.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers, multi-token prediction not counted.
    pub layers: usize,
    /// Multi-token prediction layers that follow them.
    pub mtp_layers: usize,
    /// Whether all of their tensors have to be there: copies of a checkpoint often lack them.
    pub mtp_presence: Presence,
    /// How tokens look at each other.
    pub attention: Attention,
    /// Rotary positions, of the layers without a sliding window if there are others.
    pub rope: Rotary,
    /// Feed-forward blocks.
    pub ffn: FeedForward,
    /// Token embedding and output head.
    pub embedding: Embedding,
    /// RMS norms.
    pub norms: Norms,
}

/// Most layers of a model, predicting ones included.
const MAX_LAYERS: usize = 10_000;
/// Most routed experts of a layer.
const MAX_EXPERTS: usize = 65_536;
/// Most routed experts of all layers together; Kimi-K2 has 23,040.
const MAX_ALL_EXPERTS: usize = 1 << 18;

impl Spec {
    /// Refuses a model whose list of tensors would take gigabytes: ten times the largest that exists has fewer.
    ///
    /// # Errors
    /// Too many layers, experts, or experts in all layers; `file` is for the message.
    pub(crate) fn check_size(&self, file: &str) -> Result<()> {
        let layers = self.layers.saturating_add(self.mtp_layers);
        let experts = self.ffn.moe.as_ref().map_or(0, |moe| moe.experts);
        let all_experts = layers.saturating_mul(experts);
        if layers <= MAX_LAYERS && experts <= MAX_EXPERTS && all_experts <= MAX_ALL_EXPERTS {
            return Ok(());
        }
        let message = format!(
            "found {layers} layers with {experts} experts each, expected at most {MAX_LAYERS} layers, {MAX_EXPERTS} \
             experts in a layer and {MAX_ALL_EXPERTS} in all"
        );
        Err(Error::checkpoint(file, message))
    }
}

/// Whether a model has what not every model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No.
    Never,
    /// Layer by layer: where its weights are.
    Perhaps,
    /// Yes.
    Always,
}

impl Presence {
    /// [`Presence::Always`] if `yes`, else [`Presence::Never`].
    pub fn certain(yes: bool) -> Self {
        if yes { Self::Always } else { Self::Never }
    }
}

/// Feed-forward blocks: dense in leading layers, a mixture of experts behind them.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedForward {
    /// What blocks do to their gates.
    pub activation: Activation,
    /// Dense blocks.
    pub dense: Dense,
    /// The mixture of experts, in models that have one.
    pub moe: Option<Moe>,
}

/// Dense feed-forward blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Leading layers that have one; all of them in a model without experts.
    pub layers: usize,
    /// Width.
    pub width: ByLayer<usize>,
    /// Biases of their matrices.
    pub biases: Presence,
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Routed experts.
    pub experts: usize,
    /// Experts chosen per token.
    pub per_token: ByLayer<usize>,
    /// Width of one expert.
    pub width: ByLayer<usize>,
    /// Who chooses them.
    pub router: Router,
    /// Experts that every token goes to.
    pub shared: Option<Shared>,
    /// Biases of the router's logits and of the matrices of experts.
    pub biases: Presence,
}

/// Shared experts, side by side in one feed-forward block.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    /// Their number.
    pub experts: usize,
    /// Width of all of them together.
    pub width: ByLayer<usize>,
    /// Whether a sigmoid of its own weighs what they say.
    pub gate: bool,
}

/// How experts are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// How logits become scores.
    pub scoring: Scoring,
    /// Which experts can be chosen.
    pub choice: ExpertChoice,
    /// Groups the experts are divided into.
    pub groups: usize,
    /// Groups that can be chosen from.
    pub top_groups: usize,
    /// A correction bias on scores, which counts for the choice and not for the weight.
    pub bias: Presence,
    /// Whether the chosen experts' weights are normalized to sum 1.
    pub normalize: bool,
    /// Factor on the routed experts' sum.
    pub scale: f64,
}

/// Token embedding and output head.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Vocabulary size.
    pub vocab: usize,
    /// Whether the output head is the token embedding.
    pub tied: bool,
    /// Bias of the output head.
    pub output_bias: Presence,
    /// Factor on embeddings.
    pub scale: f64,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f64>,
}

/// RMS norms.
#[derive(Debug, Clone, PartialEq)]
pub struct Norms {
    /// Epsilon of all of them.
    pub eps: f64,
    /// Whether what attention and feed-forward blocks say is normed before it is added.
    pub post: bool,
    /// Whether stored weights are what is to be added to 1.
    pub from_one: bool,
}

/// What a feed-forward block does to its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The Gaussian error unit in its form with tanh.
    GeluTanh,
    /// `x / (1 + exp(-1.702 x))` of a gate of at most 7, times one more than what is beside it, of at most 7 in magnitude.
    Clamped,
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

impl Spec {
    /// A model without experts and what else few models have; feed-forward blocks have no width yet, norms no epsilon.
    pub(super) fn plain(model_type: &str, layers: usize, attention: Attention, rope: Rotary) -> Self {
        Self {
            model_type: model_type.to_owned(),
            hidden: 0,
            layers,
            mtp_layers: 0,
            mtp_presence: Presence::Perhaps,
            attention,
            rope,
            ffn: FeedForward {
                activation: Activation::Silu,
                dense: Dense { layers, width: ByLayer::all(0), biases: Presence::Never },
                moe: None,
            },
            embedding: Embedding {
                vocab: 0,
                tied: false,
                output_bias: Presence::Never,
                scale: 1.0,
                logit_cap: None,
            },
            norms: Norms { eps: 0.0, post: false, from_one: false },
        }
    }

    /// The mixture of experts of layer `layer`; `None` where it has a dense block.
    pub fn moe(&self, layer: usize) -> Option<&Moe> {
        self.ffn.moe.as_ref().filter(|_| layer >= self.ffn.dense.layers)
    }

    /// Routed experts of a layer that has some.
    pub fn experts(&self) -> usize {
        self.ffn.moe.as_ref().map_or(0, |moe| moe.experts)
    }

    /// Adds 1 to stored weights where the model does so: what it multiplies with.
    pub(crate) fn raise(&self, role: Role, weights: &mut [f32]) {
        if self.norms.from_one && role.is_norm() {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
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

    /// Query heads of the first layer, and keys that they look at: latent attention has one key for all.
    pub fn heads(&self) -> Heads {
        match &self.attention {
            Attention::Latent(latent) => Heads { query: latent.heads, key_value: 1 },
            Attention::Grouped(grouped) => *grouped.heads.of(0),
        }
    }
}

impl Router {
    /// A softmax over all experts, its weights as they are.
    pub(super) fn softmax() -> Self {
        Self {
            scoring: Scoring::Softmax,
            choice: ExpertChoice::Ungrouped,
            groups: 1,
            top_groups: 1,
            bias: Presence::Never,
            normalize: false,
            scale: 1.0,
        }
    }
}

impl Moe {
    /// Width of the shared experts in layer `layer`, 0 without any.
    pub fn shared_width(&self, layer: usize) -> usize {
        self.shared.as_ref().map_or(0, |shared| *shared.width.of(layer))
    }
}
