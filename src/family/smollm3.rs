//! SmolLM3: Llama with layers between whose queries and keys know no positions.
//!
//! llama.cpp leaves out every fourth, whatever the file was made from.

use super::decoder::{
    self, DEFAULTS, Defaults, check_no_attention_bias, check_no_window, stated_head_lengths, with_attention,
};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Written};
use super::{Attention, Config, Family, NAMING, Naming, Pairing, Spec, llama};
use crate::error::Result;

/// The `smollm3` family.
pub(super) const FAMILY: Family = Family {
    model_type: "smollm3",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    pairing: Pairing::Adjacent,
    still_every: Some(EVERY),
    vocabulary: llama::GGUF.vocabulary,
    keys,
    loadable,
    ..Architecture::plain("smollm3")
};
/// Every so many layers one has no positions.
const EVERY: usize = 4;

const LAYERS_KEY: &str = "no_rope_layers";

fn spec(config: &Config) -> Result<Spec> {
    check_no_attention_bias(config)?;
    if config.flag_or("mlp_bias", false)? {
        return Err(config.invalid("mlp_bias", "true", "false"));
    }
    check_no_window(config, config.flag_or("use_sliding_window", false)?)?;
    let defaults =
        Defaults { model_type: "smollm3", key_value_heads: Some(4), rope_theta: 2e6, tied: true, ..DEFAULTS };
    let spec = decoder::spec(config, &defaults)?;
    let still = still(config, spec.layers)?;
    Ok(with_attention(spec, |attention| attention.still = still))
}

/// Layers without positions: those that have a 0 in the list, or without a list every so many.
fn still(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let Some(list) = config.get(LAYERS_KEY) else {
        let every = config.count_or("no_rope_layer_interval", EVERY as u64)? as usize;
        if every == 0 {
            return Err(config.invalid("no_rope_layer_interval", "0", "more than 0"));
        }
        return Ok((1..=layers).map(|layer| layer.is_multiple_of(every)).collect());
    };
    let entries = list.as_array().filter(|entries| entries.len() >= layers);
    let still = entries.and_then(|entries| {
        let entries = entries.iter().take(layers).map(|entry| entry.as_u64().filter(|&turns| turns <= 1));
        entries.map(|turns| turns.map(|turns| turns == 0)).collect()
    });
    still.ok_or_else(|| config.invalid(LAYERS_KEY, &list.to_string(), &format!("{layers} times 0 or 1")))
}

fn keys(keys: &mut Written) -> Result<()> {
    stated_head_lengths(keys)?;
    llama::own_keys(keys)
}

fn mlx(config: &Config) -> Result<()> {
    llama::mlx_as_llama(config)?;
    let layers = config.dimension("num_hidden_layers")?;
    match config.get(LAYERS_KEY).and_then(|list| list.as_array()) {
        Some(list) if list.len() != layers => {
            let expected = format!("{layers} entries, as mlx-lm wants them");
            Err(config.invalid(LAYERS_KEY, &format!("{} entries", list.len()), &expected))
        }
        _ => Ok(()),
    }
}

fn loadable(spec: &Spec) -> Result<()> {
    let Attention::Grouped(grouped) = &spec.attention else { return Ok(()) };
    let of_llama = GGUF.still(spec.layers);
    match (0..spec.layers).find(|&layer| grouped.is_still(layer) != of_llama[layer]) {
        None => Ok(()),
        Some(layer) => {
            let found = format!("{} for layer {layer}", u8::from(!grouped.is_still(layer)));
            Err(beyond(GGUF.name, LAYERS_KEY, &found, "a 0 for every fourth layer and a 1 for the others"))
        }
    }
}
