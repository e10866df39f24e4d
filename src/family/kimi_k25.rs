//! Kimi-K2.5 to K2.7: Kimi-K2 as a part of a model that sees images, its experts in compressed-tensors' `pack-quantized`. The text
//! model is under `text_config`, the tensors of what sees are beside it.
//!
//! Source: config.json of moonshotai/Kimi-K2.5; transformers `models/kimi_k25`; llama.cpp `conversion/deepseek.py`; mlx-lm
//! `models/kimi_k25.py`.

use std::borrow::Cow;

use serde_json::Value;

use super::deepseek::{self, Defaults};
use super::{Checkpoints, Config, ExpertChoice, Family, Naming, Scoring};
use crate::error::Result;

/// The `kimi_k25` family.
pub(super) const FAMILY: Family = Family {
    model_type: DEFAULTS.model_type,
    checkpoint: Some(Checkpoints {
        text,
        mlx,
        whole: Some("KimiK25ForConditionalGeneration"),
        aside: &[
            ("vision_tower.", VISION),
            ("vision_model.", VISION),
            ("mm_projector.", VISION),
            ("multi_modal_projector.", VISION),
        ],
        ..deepseek::checkpoints(|config| deepseek::spec(config, &DEFAULTS))
    }),
    gguf: &deepseek::GGUF,
    naming: Naming {
        outer: "language_model.",
        root: "language_model.model.",
        mlx_outer: "language_model.",
        mlx_keeps_codes: true,
        ..deepseek::NAMES
    },
    renamed: None,
};

const DEFAULTS: Defaults = Defaults {
    model_type: "kimi_k25",
    scoring: Scoring::Sigmoid,
    choice: ExpertChoice::GroupsByTwoBest,
    normalize_top: true,
};

const VISION: &str = "what sees images";

/// The text model's section, and what stands beside it about all of the model.
fn text(config: &Value) -> Cow<'_, Value> {
    let Some(Value::Object(section)) = config.get("text_config") else { return Cow::Borrowed(config) };
    let mut text = section.clone();
    for key in ["architectures", "tie_word_embeddings", "quantization_config"] {
        if let Some(value) = config.get(key) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    Cow::Owned(text.into())
}

fn mlx(config: &Config) -> Result<()> {
    let Some(section) = config.section("text_config") else { return Err(config.missing("text_config")) };
    deepseek::mlx(&section)
}
