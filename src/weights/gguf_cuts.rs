//! How byte-level tokenizers cut text before merging, by the names that GGUF files give that.
//!
//! A row of [`CUTS`] is a set of patterns, applied one after the other, with the names that mean it. Patterns are those of
//! llama.cpp, whose ids are to be had; where it spells out a pattern of tokenizer.json that its regular expressions lack,
//! the two cut alike but for rare letters.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe`, `llama_vocab::impl::load`).

/// A way to cut.
pub(super) struct Cut {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// What is cut out, pattern after pattern.
    pub(super) patterns: &'static [&'static str],
    /// A piece that is a token is one, whatever merges say.
    pub(super) ignores_merges: bool,
    /// Whether text begins with BOS where the file does not say.
    pub(super) adds_bos: bool,
}

const DEEPSEEK_V3: &[&str] = &[
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];
const DEEPSEEK_LLM: &[&str] = &[
    "[\r\n]",
    "\\s?[\
     A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\
     \u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\
     \u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\
     \u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\
     \u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\
     \u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\
     \u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\
     \u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\
     \u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\
     \u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\
     \u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\
     \u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\
     \u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\
     \u{1e900}-\u{1e943}]+",
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    "\\p{N}+",
];

const DEEPSEEK_CODER: &[&str] = &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
const LLAMA_3: &[&str] = &[
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const QWEN_2: &[&str] = &[
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const GPT_2: &[&str] = &[WORDS];
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const DIGITS: &[&str] = &[r"\p{N}", WORDS];
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"];
const TEKKEN: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const GPT_4O: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// One that merges every piece and adds no BOS.
const fn cut(names: &'static [&'static str], patterns: &'static [&'static str]) -> Cut {
    Cut { names, patterns, ignores_merges: false, adds_bos: false }
}

/// Every way to cut that is known.
const CUTS: &[Cut] = &[
    cut(&["deepseek-v3", "joyai-llm"], DEEPSEEK_V3),
    cut(&["deepseek-llm"], DEEPSEEK_LLM),
    cut(&["deepseek-coder"], DEEPSEEK_CODER),
    Cut {
        ignores_merges: true,
        adds_bos: true,
        ..cut(&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"], LLAMA_3)
    },
    cut(&["dbrx", "smaug-bpe"], LLAMA_3),
    Cut { ignores_merges: true, ..cut(&["glm4", "glm5"], LLAMA_3) },
    cut(&["chatglm-bpe"], LLAMA_3),
    cut(&["qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2"], QWEN_2),
    cut(&["gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo"], GPT_2),
    cut(&["smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"], DIGITS),
    cut(&["default"], DEFAULT),
    Cut { ignores_merges: true, adds_bos: true, ..cut(&["tekken"], TEKKEN) },
    cut(&["gpt-4o", "llama4"], GPT_4O),
];

/// The way of this name.
pub(super) fn find(name: &str) -> Option<&'static Cut> {
    CUTS.iter().find(|cut| cut.names.contains(&name))
}

/// All names, for messages and tests.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CUTS.iter().flat_map(|cut| cut.names).copied()
}
