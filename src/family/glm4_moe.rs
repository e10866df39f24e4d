//! GLM-4.5 to 4.7: experts behind some dense layers, and a prediction layer.

use super::gguf::{Architecture, Experts};
use super::{Family, NAMING, Names, Naming, Presence};

/// The `glm4_moe` family.
pub(super) const FAMILY: Family = Family {
    model_type: "glm4_moe",
    checkpoint: None,
    gguf: &GGUF,
    naming: Naming { ffn_norm: FFN_NORM, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    experts: Experts::Biased,
    head_norms: Presence::Perhaps,
    has_sections: true,
    ..Architecture::plain("glm4moe")
};

const FFN_NORM: Names = Names::new("post_attention_layernorm.weight", "post_attention_norm.weight");
