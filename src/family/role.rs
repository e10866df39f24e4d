//! What a tensor is for, whatever an ecosystem calls it.

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

    /// Its shape in a block of this width.
    pub(super) fn shape(self, hidden: usize, width: usize) -> [usize; 2] {
        match self {
            Self::Gate | Self::Up => [width, hidden],
            Self::Down => [hidden, width],
        }
    }

    /// The one of three that belongs to it, in the order of [`Ffn::ALL`].
    pub(super) fn of<T: Copy>(self, three: [T; 3]) -> T {
        let [gate, up, down] = three;
        match self {
            Self::Gate => gate,
            Self::Up => up,
            Self::Down => down,
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
    /// RMS norm of each query head: `[key]`, or of all together: `[heads * key]`.
    QNorm,
    /// Key projection: `[kv_heads * key, hidden]`.
    K,
    /// Bias of the key projection: `[kv_heads * key]`.
    KBias,
    /// RMS norm of each key head: `[key]`, or of all together: `[kv_heads * key]`.
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
    /// Score of each head for no token at all: `[heads]`.
    Sinks,
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
    /// Bias of the router's logits: `[experts]`.
    RouterLogitBias,
    /// Correction bias of the router's choice: `[experts]`.
    RouterBias,
    /// Matrix of routed expert number `.0`.
    Expert(usize, Ffn),
    /// Bias of a matrix of routed expert number `.0`: as many as it has rows.
    ExpertBias(usize, Ffn),
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

impl LayerRole {
    /// Whether it is the weight of a linear layer, which formats quantize. Routers are none: they stay as they are.
    pub fn is_linear(self) -> bool {
        match self {
            Self::Q
            | Self::QA
            | Self::QB
            | Self::K
            | Self::V
            | Self::KvA
            | Self::KvB
            | Self::AttentionOutput
            | Self::Dense(_)
            | Self::Expert(..)
            | Self::Shared(_) => true,
            Self::AttentionNorm
            | Self::QBias
            | Self::QNorm
            | Self::QANorm
            | Self::KBias
            | Self::KNorm
            | Self::KvANorm
            | Self::VBias
            | Self::Sinks
            | Self::AttentionOutputBias
            | Self::AttentionPostNorm
            | Self::FfnNorm
            | Self::FfnPostNorm
            | Self::DenseBias(_)
            | Self::SharedGate
            | Self::Router
            | Self::RouterLogitBias
            | Self::RouterBias
            | Self::ExpertBias(..)
            | Self::MtpEmbedding
            | Self::MtpEmbeddingNorm
            | Self::MtpHiddenNorm
            | Self::MtpProjection
            | Self::MtpHeadNorm
            | Self::MtpHead => false,
        }
    }

    /// Which of the three matrices of a feed-forward block it is.
    pub fn ffn(self) -> Option<Ffn> {
        match self {
            Self::Expert(_, ffn) | Self::Shared(ffn) | Self::Dense(ffn) => Some(ffn),
            _ => None,
        }
    }
}

impl Role {
    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        use LayerRole::{
            AttentionNorm, AttentionPostNorm, FfnNorm, FfnPostNorm, KNorm, KvANorm, MtpEmbeddingNorm,
            MtpHeadNorm, MtpHiddenNorm, QANorm, QNorm,
        };
        let own = match self {
            Self::OutputNorm => return true,
            Self::Layer(_, own) => own,
            _ => return false,
        };
        matches!(
            own,
            AttentionNorm
                | AttentionPostNorm
                | FfnNorm
                | FfnPostNorm
                | QNorm
                | KNorm
                | QANorm
                | KvANorm
                | MtpEmbeddingNorm
                | MtpHiddenNorm
                | MtpHeadNorm
        )
    }

    /// Whether an engine could take the tensor for a linear layer's weight, so that it must be told where one is not
    /// quantized.
    pub fn is_module(self) -> bool {
        match self {
            Self::Output => true,
            Self::Layer(_, role) => {
                role.is_linear()
                    || matches!(
                        role,
                        LayerRole::Router
                            | LayerRole::SharedGate
                            | LayerRole::MtpProjection
                            | LayerRole::MtpHead
                    )
            }
            _ => false,
        }
    }
}
