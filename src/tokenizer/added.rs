//! Tokens that tokenizer_config.json names and tokenizer.json lacks.
//!
//! Source: transformers 4.57 `PreTrainedTokenizerFast.__init__` and
//! `PreTrainedTokenizerBase._from_pretrained`: first what `added_tokens_decoder` lists, by id,
//! then the named special tokens, then the additional ones. The special tokens map counts only
//! without `added_tokens_decoder`, and then wins over tokenizer_config.json.
//!
//! Not followed: without a tokenizer_config.json, 4.57 takes the class's own `<s>`, `</s>` and
//! `<unk>` and appends them to a vocabulary that has never seen them; 5 does not.

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::AddedToken;

use super::{TOKENIZER_CONFIG_FILE, limits};
use crate::error::{Error, Result};

/// The special tokens with a name of their own, in the order in which they are added.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys of lists with more of them: today's name and the older one.
const ADDITIONAL: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// Adds the missing tokens to `tokenizer`.
pub(super) fn add_missing(
    tokenizer: &mut tokenizers::Tokenizer,
    config: &Value,
    special_tokens: Option<&Value>,
) -> Result<()> {
    let mut missing = Vec::new();
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    if let Some(listed) = listed {
        let mut by_id = Vec::new();
        for (id, entry) in listed {
            let id: u32 = id.parse().map_err(|_| invalid("added_tokens_decoder", id))?;
            let token =
                token(entry, false).ok_or_else(|| invalid("added_tokens_decoder", &id.to_string()))?;
            by_id.push((id, token));
        }
        by_id.sort_by_key(|(id, _)| *id);
        let present: HashSet<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        missing.extend(by_id.into_iter().map(|(_, token)| token).filter(|token| !present.contains(token)));
    }

    let overriding = special_tokens.filter(|_| listed.is_none());
    let entry = |key: &str| overriding.and_then(|map| map.get(key)).or_else(|| config.get(key));
    let named = NAMED.iter().filter_map(|key| entry(key));
    let additional = ADDITIONAL.iter().filter_map(|key| entry(key).and_then(Value::as_array)).flatten();
    let mut contents: HashSet<String> = missing.iter().map(|token| token.content.clone()).collect();
    for special in named.chain(additional).filter_map(|entry| token(entry, true)) {
        let is_known = tokenizer.get_added_vocabulary().get_vocab().contains_key(&special.content);
        if !is_known && contents.insert(special.content.clone()) {
            missing.push(special);
        }
    }
    let present = tokenizer.get_added_vocabulary().get_vocab().keys().map(String::as_str);
    limits::check_added(present.chain(missing.iter().map(|token| token.content.as_str())))?;
    let added = tokenizer.add_tokens(missing);
    added.map(|_| ()).map_err(|error| invalid("added_tokens_decoder", &error.to_string()))
}

/// An added token spelled as an object or, when it can only be special, as a string.
fn token(entry: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str| entry.get(key).and_then(Value::as_bool);
    if let Some(text) = entry.as_str() {
        return special.then(|| AddedToken::from(text, true));
    }
    let special = special || flag("special").unwrap_or(false);
    Some(
        AddedToken::from(entry.get("content")?.as_str()?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

fn invalid(key: &str, found: &str) -> Error {
    Error::checkpoint(TOKENIZER_CONFIG_FILE, format!("key {key}: {found} is not a token this version reads"))
}
