//! Mistral: what llama.cpp takes for Llama, with a window that slides in the first version.
//!
//! Neither llama.cpp nor mlx-lm has that window for it, and both compute something else on longer texts.

use super::decoder::{self, DEFAULTS, Defaults, with_attention};
use super::gguf::Architecture;
use super::gguf::write::beyond;
use super::{Attention, Config, Family, NAMING, Naming, Sliding, Spec, llama};
use crate::error::Result;

/// The `mistral` family.
pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture { loadable, ..llama::GGUF };
/// What a config.json without the key means; with a null, no window slides.
const WINDOW: u64 = 4096;

fn spec(config: &Config) -> Result<Spec> {
    let defaults = Defaults { model_type: "mistral", key_value_heads: Some(8), ..DEFAULTS };
    let spec = decoder::spec(config, &defaults)?;
    let Some(window) = window(config)? else { return Ok(spec) };
    let (layers, rope) = (spec.layers, Box::new(spec.rope.clone()));
    let sliding = Sliding { window, layers: vec![true; layers], rope };
    Ok(with_attention(spec, |attention| attention.sliding = Some(sliding)))
}

fn window(config: &Config) -> Result<Option<usize>> {
    if config.is_null("sliding_window") {
        return Ok(None);
    }
    match config.count_or("sliding_window", WINDOW)? as usize {
        0 => Err(config.invalid("sliding_window", "0", "null, or more than 0")),
        window => Ok(Some(window)),
    }
}

fn mlx(config: &Config) -> Result<()> {
    llama::mlx_as_llama(config)?;
    match window(config)? {
        None => Ok(()),
        Some(window) => {
            let expected = "null: mlx-lm's model has no window for this family";
            Err(config.invalid("sliding_window", &window.to_string(), expected))
        }
    }
}

fn loadable(spec: &Spec) -> Result<()> {
    match &spec.attention {
        Attention::Grouped(grouped) if grouped.sliding.is_some() => {
            let window = grouped.window(0).unwrap_or_default().to_string();
            let limit = "a sliding_window of null: of this family it shows every token all before it";
            Err(beyond(GGUF.name, "sliding_window", &window, limit))
        }
        _ => Ok(()),
    }
}
