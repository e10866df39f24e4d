//! How the tokens of a layer look at each other: latent attention or grouped queries, and the rotary positions of both.

use super::{ByLayer, Presence, Wavelengths};

/// Attention of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Attention {
    /// Keys and values expanded from a latent.
    Latent(Latent),
    /// Keys and values shared by groups of query heads.
    Grouped(Grouped),
}

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Heads of a layer.
    pub heads: usize,
    /// Rank of the query projection, when it is factored.
    pub q_lora: Option<usize>,
    /// Rank of the key-value projection.
    pub kv_lora: usize,
    /// Per-head key width without position.
    pub nope_dim: usize,
    /// Per-head value width.
    pub v_dim: usize,
    /// What far positions do to queries.
    pub temperature: Option<Temperature>,
}

/// Temperature of queries by position (Llama 4, Mistral Large 3): the factor `ln(floor(position / length) + 1) * scale + 1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Temperature {
    /// How much it grows.
    pub scale: f64,
    /// Positions of one step, more than 0.
    pub length: u64,
}

impl Temperature {
    /// Factor on the queries at `position`.
    pub fn factor(&self, position: usize) -> f32 {
        let steps = position as u64 / self.length;
        ((steps as f64 + 1.0).ln() * self.scale + 1.0) as f32
    }
}

/// Grouped-query attention (arXiv 2305.13245).
#[derive(Debug, Clone, PartialEq)]
pub struct Grouped {
    /// Heads of every layer.
    pub heads: ByLayer<Heads>,
    /// Width of a head of queries or keys.
    pub key_dim: usize,
    /// Width of a head of values.
    pub value_dim: usize,
    /// Factor on the products of queries and keys.
    pub score_scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub score_cap: Option<f64>,
    /// Layers in which a token sees the nearest ones only.
    pub sliding: Option<Sliding>,
    /// Norms of queries and keys.
    pub head_norms: Presence,
    /// Whether these go over all heads of a token together, not over each.
    pub whole_norms: bool,
    /// A score of each head for no token at all, which takes a part of the softmax.
    pub sinks: Presence,
    /// Biases of the projections of queries, keys and values.
    pub biases: Presence,
    /// Bias of the output projection.
    pub output_bias: Presence,
}

/// Heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub query: usize,
    /// Of keys and values, a divisor of those.
    pub key_value: usize,
}

/// Sliding windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Sliding {
    /// Tokens that a token sees, itself included.
    pub window: usize,
    /// Whether a layer slides; layers beyond the last entry do not.
    pub layers: Vec<bool>,
    /// Rotary positions of these layers.
    pub rope: Box<Rotary>,
}

impl Grouped {
    /// Tokens that a token of layer `layer` sees, itself included; `None` for all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let sliding = self.sliding.as_ref()?;
        sliding.layers.get(layer).copied().unwrap_or(false).then_some(sliding.window)
    }
}

/// Which columns of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `2i` and `2i + 1`.
    Adjacent,
    /// `i` and `i + dim / 2`.
    Halves,
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Columns of a head that turn; the others stay as they are.
    pub dim: usize,
    /// Which of them turn together.
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub theta: f64,
    /// Extension to longer contexts.
    pub scaling: Option<Scaling>,
    /// Factor on sine and cosine beside that of `scaling`.
    pub amplitude: f64,
    /// Where divisors of single frequencies come from.
    pub divisors: Divisors,
    /// Which pairs follow which dimension of a position, for models that see images too.
    pub sections: Option<Sections>,
}

impl Rotary {
    /// YaRN's parameters, when that is the extension.
    pub fn yarn(&self) -> Option<&Yarn> {
        match &self.scaling {
            Some(Scaling::Yarn(yarn)) => Some(yarn),
            Some(Scaling::Linear(_)) | None => None,
        }
    }
}

/// M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1): pairs turn by time, height, width or a fourth dimension, in sections that
/// follow each other and then begin anew. A token of a text has the same position in the first three and 0 in the fourth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sections(pub [usize; 4]);

impl Sections {
    /// Whether pair `pair` of a token of a text turns.
    pub fn turns(&self, pair: usize) -> bool {
        let [time, height, width, fourth] = self.0;
        let moving = time + height + width;
        pair % (moving + fourth).max(1) < moving
    }
}

/// Extension of rotary positions to longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// All frequencies divided by this factor.
    Linear(f64),
    /// Frequencies divided by how often they turn.
    Yarn(Yarn),
}

/// YaRN parameters of `rope_scaling`.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Context extension factor.
    pub factor: f64,
    /// Context length of the original training.
    pub original_context: u64,
    /// Rotations above which a dimension is not interpolated.
    pub beta_fast: f64,
    /// Rotations below which a dimension is fully interpolated.
    pub beta_slow: f64,
    /// Attention factor numerator.
    pub mscale: f64,
    /// Attention factor denominator.
    pub mscale_all_dim: f64,
    /// Whether the range of pairs between the two ends at whole numbers.
    pub truncate: bool,
}

impl Yarn {
    /// Factor on sine and cosine.
    pub fn amplitude(&self) -> f64 {
        if self.mscale != 0.0 && self.mscale_all_dim != 0.0 {
            self.attention_scale(self.mscale) / self.attention_scale(self.mscale_all_dim)
        } else {
            self.attention_scale(1.0)
        }
    }

    /// `0.1 mscale ln(factor) + 1`, or 1 where nothing is extended.
    pub fn attention_scale(&self, mscale: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 }
    }
}

/// Divisors of single frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divisors {
    /// None.
    Absent,
    /// Stored with the weights, one for each pair.
    Always,
    /// Llama 3: worked out from how far a pair turns, one for each pair.
    ByWavelength(Wavelengths),
    /// Stored with the weights, LongRoPE (arXiv 2402.13753): those of contexts beyond `original_context`, and others up to it.
    ByContext {
        /// Context length of the original training.
        original_context: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_the_first_positions_are_left_alone_and_later_ones_grow_in_steps() {
        let temperature = Temperature { scale: 0.5, length: 8 };
        let expected = |steps: f32| 1.0 + 0.5 * steps.ln();
        for (position, steps) in [(0, 1.0), (7, 1.0), (8, 2.0), (15, 2.0), (16, 3.0), (511, 64.0)] {
            assert!((temperature.factor(position) - expected(steps)).abs() < 1e-6, "{position}");
        }
    }
}
