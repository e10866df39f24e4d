//! Gemma 3 that sees images: the text model is under `text_config`, the tensors of what sees are beside it. Every target but those that keep the
//! names of the checkpoint leaves these out.
//!
//! transformers 4.52 to 4.57 saved such models with other names.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::decoder;
use super::gemma::beyond_mlx;
use super::{CHECKPOINTS, Checkpoints, Config, Family, NAMING, Naming, gemma3_text};
use crate::error::Result;

/// The `gemma3` family.
pub(super) const FAMILY: Family = Family { renamed: Some(&RENAMED), ..PLAIN };

const PLAIN: Family = Family {
    model_type: "gemma3",
    checkpoint: Some(CHECKPOINT),
    gguf: &gemma3_text::GGUF,
    naming: Naming { outer: "language_model.", root: "language_model.model.", ..NAMES },
    renamed: None,
};

const RENAMED: Family = Family { naming: Naming { root: "model.language_model.", ..NAMES }, ..PLAIN };

const NAMES: Naming = Naming { mlx: decoder::MLX, mlx_outer: "language_model.", ..NAMING };

const CHECKPOINT: Checkpoints = Checkpoints {
    spec: |config| gemma3_text::spec(config, "gemma3"),
    mlx,
    text,
    whole: Some("Gemma3ForConditionalGeneration"),
    aside: &[
        ("vision_tower.", VISION),
        ("multi_modal_projector.", VISION),
        ("model.vision_tower.", VISION),
        ("model.multi_modal_projector.", VISION),
    ],
    ..CHECKPOINTS
};

const VISION: &str = "what sees images";

/// The text model's section with transformers' defaults, which published models rely on, and what stands beside it.
fn text(config: &Value) -> Cow<'_, Value> {
    let Some(Value::Object(section)) = config.get("text_config") else { return Cow::Borrowed(config) };
    let mut text = json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072,
    });
    if let Some(text) = text.as_object_mut() {
        text.extend(section.iter().map(|(key, value)| (key.clone(), value.clone())));
        for key in ["architectures", "tie_word_embeddings"] {
            if let Some(value) = config.get(key) {
                text.insert(key.to_owned(), value.clone());
            }
        }
    }
    Cow::Owned(text)
}

/// mlx-lm has other defaults than transformers for some keys of the section, and the vocabulary beside it.
fn mlx(config: &Config) -> Result<()> {
    let Some(section) = config.section("text_config") else { return Err(config.missing("text_config")) };
    decoder::check_mlx_keys(&section, &["hidden_size", "num_hidden_layers", "intermediate_size"])?;
    let whole = text(config.value());
    let spec = gemma3_text::spec(&Config::new(&whole), "gemma3")?;
    let vocab = config.count_or("vocab_size", 262_208)?;
    if vocab != spec.embedding.vocab as u64 {
        let limit = format!("that of text_config beside it, {}", spec.embedding.vocab);
        return Err(beyond_mlx("vocab_size", &vocab.to_string(), &limit));
    }
    gemma3_text::own_mlx(&section, &spec)
}
