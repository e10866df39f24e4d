//! The pre-tokenizers behind the values of `tokenizer.ggml.pre` in GGUF files with byte-pair vocabularies.
//!
//! A row of [`CUTS`] has the regular expressions that split text, in order, and the other settings that llama.cpp derives
//! from the name. Token ids must equal llama.cpp's, even where its patterns differ from tokenizer.json:
//!
//! - `kimi-k2`, `youtu`, `tiny_aya` and `cohere2moe` do not split a word before a capital letter. `gpt-4o`, `tekken` and
//!   similar split only before ASCII capitals. In `kimi-k2`, combining marks are not part of a word, and Han characters
//!   are recognized by Unicode block.
//! - `afmoe`, `tiny_aya` and `cohere2moe`: white space before a number is split as if a word followed. In `afmoe`
//!   the range of compatibility ideographs begins at U+8C48, with the ideograph that U+F900 is normalized to.
//! - llama.cpp does not know characters added to Unicode after version 15. They count as punctuation or belong to no class.
//!
//! With `whitespace`, llama.cpp aborts at two spaces in a row; here they become byte tokens. With `gemma4`, a run of line
//! ends that is not a token is split into the longest tokens of line ends.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (`llama_vocab::impl::load`).

use super::gguf_patterns as patterns;

/// One pre-tokenizer.
pub(super) struct Cut {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// The regular expressions that split text, applied in order.
    pub(super) patterns: &'static [&'static str],
    /// The units that merges start from.
    pub(super) units: Units,
    /// A piece that is itself a token is not merged (`ignore_merges`).
    pub(super) ignores_merges: bool,
    /// Whether text begins with BOS.
    pub(super) bos: Bos,
    /// Id of BOS when the file states none.
    pub(super) default_bos: Option<u64>,
}

/// The units that merges start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Units {
    /// Bytes, each spelled as a printable character.
    Bytes,
    /// Characters, with byte tokens for characters that are not in the vocabulary.
    Characters,
    /// As `Characters`, with spaces replaced by U+2581.
    VisibleSpaces,
    /// As `VisibleSpaces`; runs of line ends that are tokens are taken whole, without merges.
    VisibleSpacesAndLineEnds,
}

/// Whether text begins with BOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bos {
    /// Only if the file says so.
    Off,
    /// Yes, unless the file says no.
    On,
    /// Always; the file's setting is ignored.
    Always,
}

/// A pre-tokenizer with the most common settings: every piece is merged, no BOS.
const fn cut(names: &'static [&'static str], patterns: &'static [&'static str]) -> Cut {
    Cut { names, patterns, units: Units::Bytes, ignores_merges: false, bos: Bos::Off, default_bos: Some(11) }
}

/// Every pre-tokenizer of llama.cpp.
const CUTS: &[Cut] = &[
    cut(&["default"], patterns::DEFAULT),
    cut(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        patterns::GPT_2,
    ),
    cut(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b", "exaone", "mellum2"],
        patterns::DIGITS,
    ),
    cut(&["falcon"], patterns::FALCON),
    Cut { bos: Bos::On, ..cut(&["chameleon"], patterns::CHAMELEON) },
    cut(&["bloom", "poro-chat", "gpt3-finnish"], patterns::BLOOM),
    cut(&["viking"], patterns::VIKING),
    cut(&["superbpe"], patterns::SUPERBPE),
    Cut {
        ignores_merges: true,
        bos: Bos::On,
        ..cut(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
                "jina-v5-nano",
            ],
            patterns::LLAMA_3,
        )
    },
    cut(&["dbrx", "smaug-bpe"], patterns::LLAMA_3),
    Cut { ignores_merges: true, default_bos: None, ..cut(&["glm4", "glm5"], patterns::LLAMA_3) },
    Cut { default_bos: None, ..cut(&["chatglm-bpe"], patterns::LLAMA_3) },
    cut(&["jais-2"], patterns::JAIS_2),
    Cut { ignores_merges: true, ..cut(&["minicpm5"], patterns::MINICPM_5) },
    cut(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "megrez",
            "stablelm2",
            "f2llmv2",
            "hunyuan",
            "solar-open",
            "grok-2",
            // Theirs says otherwise what comes to the same.
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ],
        patterns::QWEN_2,
    ),
    cut(&["qwen35"], patterns::QWEN_35),
    cut(&["ufakzeka"], patterns::UFAKZEKA),
    cut(&["seed-coder"], patterns::SEED_CODER),
    cut(&["laguna"], patterns::LAGUNA),
    cut(&["exaone-moe"], patterns::EXAONE_MOE),
    Cut { ignores_merges: true, bos: Bos::On, ..cut(&["tekken"], patterns::TEKKEN) },
    cut(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], patterns::GPT_4O),
    Cut { ignores_merges: true, ..cut(&["granite-embed-multi-97m"], patterns::GRANITE_EMBEDDING) },
    cut(&["tiny_aya", "cohere2moe"], patterns::TINY_AYA),
    Cut { ignores_merges: true, ..cut(&["youtu"], patterns::YOUTU) },
    cut(&["kimi-k2"], patterns::KIMI_K2),
    cut(&["deepseek-v3", "joyai-llm", "hunyuan-dense", "hy_v4"], patterns::DEEPSEEK_V3),
    cut(&["deepseek-llm"], patterns::DEEPSEEK_LLM),
    cut(&["deepseek-coder"], patterns::DEEPSEEK_CODER),
    cut(&["spark2_5"], patterns::SPARK_2_5),
    cut(&["afmoe"], patterns::AFMOE),
    Cut {
        units: Units::VisibleSpacesAndLineEnds,
        bos: Bos::Always,
        ..cut(&["gemma4", "granite-embed-multi-311m"], patterns::LINE)
    },
    Cut { units: Units::VisibleSpaces, ..cut(&["sarvam-moe"], patterns::LINE) },
    Cut { units: Units::Characters, ..cut(&["whitespace"], patterns::WHITESPACE) },
];

/// The pre-tokenizer with this name.
pub(super) fn find(name: &str) -> Option<&'static Cut> {
    CUTS.iter().find(|cut| cut.names.contains(&name))
}

/// All names, for messages and tests.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CUTS.iter().flat_map(|cut| cut.names).copied()
}
