//! What the names mean that GGUF files give the tokenizers of their byte-pair vocabularies.
//!
//! A row of [`CUTS`] is a set of patterns, applied one after the other, and whatever else llama.cpp concludes from a
//! name. Ids are to be those of llama.cpp, also where its patterns are not those of tokenizer.json:
//!
//! - `kimi-k2`, `youtu`, `tiny_aya` and `cohere2moe` do not cut before capitals, `gpt-4o`, `tekken` and their kin before
//!   those of ASCII only; in `kimi-k2` combining marks are no part of words, and Han goes by blocks.
//! - `afmoe`, `tiny_aya` and `cohere2moe`: white space before a number is cut as if it were followed by a word. In `afmoe`
//!   the range of compatibility ideographs begins at U+8C48, with the ideograph that U+F900 is normalized to.
//! - Characters that Unicode got after version 15 are none there, and fall to punctuation or to nothing.
//!
//! Where `whitespace` finds two spaces in a row llama.cpp aborts; here they are tokens of bytes. A run of line ends that
//! is no token of its own is, under `gemma4`, cut into the longest that are.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (`llama_vocab::impl::load`).

use super::gguf_patterns as patterns;

/// A way to cut.
pub(super) struct Cut {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// What is cut out, pattern after pattern.
    pub(super) patterns: &'static [&'static str],
    /// What tokens are made of.
    pub(super) units: Units,
    /// A piece that is a token is one, whatever merges say.
    pub(super) ignores_merges: bool,
    /// Whether text begins with BOS.
    pub(super) bos: Bos,
    /// BOS where the file does not name it.
    pub(super) default_bos: Option<u64>,
}

/// What tokens are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Units {
    /// Bytes, each spelled as a printable character.
    Bytes,
    /// Characters; bytes for those that no token has.
    Characters,
    /// The same, spaces made visible.
    VisibleSpaces,
    /// The same, and line ends that are tokens are so without merges.
    VisibleSpacesAndLineEnds,
}

/// Whether text begins with BOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bos {
    /// When the file says so.
    Off,
    /// Unless the file says otherwise.
    On,
    /// Whatever the file says.
    Always,
}

/// One that merges every piece and adds no BOS.
const fn cut(names: &'static [&'static str], patterns: &'static [&'static str]) -> Cut {
    Cut { names, patterns, units: Units::Bytes, ignores_merges: false, bos: Bos::Off, default_bos: Some(11) }
}

/// Every way to cut that llama.cpp knows.
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

/// The way of this name.
pub(super) fn find(name: &str) -> Option<&'static Cut> {
    CUTS.iter().find(|cut| cut.names.contains(&name))
}

/// All names, for messages and tests.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CUTS.iter().flat_map(|cut| cut.names).copied()
}
