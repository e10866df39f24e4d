//! Which tokens of a GGUF are looked for in text before it is cut, and what they take of the white space around.
//!
//! The file has a type for each token, but llama.cpp overrules it by what a token looks like, and knows what is stripped
//! by names of models. Tokens of control are found only where special tokens are parsed, which llama-perplexity does not.
//!
//! Of overlapping tokens the one that begins first is found here, the longest one there.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (`llama_vocab::impl::load`, `tokenizer_st_partition`).

use requant_formats::container::gguf::{Metadata, Value};

/// A token that is a part of text as any other.
pub(super) const NORMAL: i32 = 1;
/// What stands for what no token has.
pub(super) const UNKNOWN: i32 = 2;
/// One that has a meaning to the model only.
pub(super) const CONTROL: i32 = 3;
/// One that is never cut.
pub(super) const USER_DEFINED: i32 = 4;
/// A row without a token.
pub(super) const UNUSED: i32 = 5;

/// Tokens that end something.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Tokens for code to be filled in, with the keys that name them instead.
const FILL_IN: &[(&[&str], &[&str])] = &[
    (
        &["fim_pre_token_id", "prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["fim_suf_token_id", "suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["fim_mid_token_id", "middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    (&["fim_pad_token_id"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (&["fim_rep_token_id"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (&["fim_sep_token_id"], &["<|file_sep|>"]),
];
/// Tokens of channels, which show in text.
const CHANNELS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// What the names in a file say about its tokens.
pub(super) struct Marks<'a> {
    controls: Vec<&'a str>,
    /// `<|end|>` ends a part of an answer only.
    end_is_text: bool,
    /// `</s>` has no meaning.
    s_is_text: bool,
    name: String,
    pre: &'a str,
}

/// How a token is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// Where special tokens are parsed only.
    pub(super) is_control: bool,
    /// It takes the white space before it.
    pub(super) strips_left: bool,
    /// It takes the white space behind it.
    pub(super) strips_right: bool,
}

impl<'a> Marks<'a> {
    /// Those of a file with these tokens.
    pub(super) fn new(metadata: &'a Metadata, tokens: &[String]) -> Self {
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
        let named = |keys: &[&str]| {
            keys.iter().any(|key| {
                let id = metadata.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_u64);
                id.is_some_and(|id| id < tokens.len() as u64)
            })
        };
        let fill_in = FILL_IN.iter().filter(|(keys, _)| !named(keys)).flat_map(|(_, texts)| *texts);
        let has = |text: &str| tokens.iter().any(|token| token == text);
        let calls = has("<|call|>") || has("<|calls|>");
        Self {
            controls: ENDS.iter().chain(fill_in).copied().collect(),
            end_is_text: calls && (has("<|return|>") || has("<|flush|>")),
            s_is_text: has("<|tool_response>") || has("<|plamo:eos|>"),
            name: text("general.name").to_lowercase(),
            pre: text("tokenizer.ggml.pre"),
        }
    }

    /// How `token` of a type is found; `None` when it is a token like others.
    pub(super) fn of(&self, token: &str, kind: i32) -> Option<Mark> {
        let shows = CHANNELS.contains(&token) || token == "<|end|>" && self.end_is_text;
        let is_plain = token == "</s>" && self.s_is_text;
        let is_control = !shows && (matches!(kind, CONTROL | UNKNOWN) || self.controls.contains(&token));
        if is_plain || !(shows || is_control || kind == USER_DEFINED) {
            return None;
        }
        let is_phi_3 = self.name.contains("phi-3") || self.name.contains("phi3");
        let strips_left = match token {
            "<mask>" => {
                ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|name| self.pre.contains(name))
            }
            "[MASK]" => self.name.contains("modern-bert"),
            _ => false,
        };
        let strips_right = is_phi_3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
        Some(Mark { is_control, strips_left, strips_right })
    }
}
