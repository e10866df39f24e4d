//! Recognizes a byte-level BPE tokenizer by what it does to a fixed text.
//!
//! GGUF names the way a tokenizer cuts text before merging (`tokenizer.ggml.pre`). llama.cpp finds
//! the name from the SHA-256 of the token ids of a probe text, printed as a Python list.
//! Source: llama.cpp `conversion/base.py`, `get_vocab_base_pre`.
//!
//! The ids depend on whether a beginning-of-sequence token comes first, and that on the version
//! of transformers: 4.57, which llama.cpp asks for, obeys `add_bos_token` of a `LlamaTokenizerFast`
//! even when tokenizer.json has no such rule; 5 does not. DeepSeek-V3 is `deepseek-v3` by the
//! first reading and `joyai-llm` by the second (the two names mean the same to llama.cpp). The
//! first is tried first.

use sha2::{Digest, Sha256};

use super::pre_names::PRE_NAMES;
use super::{Tokenizer, special_token};
use crate::error::Result;

/// The probe: scripts, emoji with joiners, digit runs, white space, contractions.
const PROBE: &str = concat!(
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫\u{fe0f} (multiple",
    " emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កា",
    "ន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"",
    "......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, '",
    "D you like some tea? We'Ve a'lL",
);

/// What the probe became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Lower-case hex digest that llama.cpp would report.
    pub sha256: String,
    /// The name it stands for, when it is known.
    pub pre: Option<&'static str>,
}

impl Fingerprint {
    /// Takes the fingerprint of a tokenizer.
    ///
    /// # Errors
    /// When the probe cannot be tokenized.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let plain = look_up(&tokenizer.encode_short(PROBE, true)?);
        let Some((bos, eos)) = forced_ends(tokenizer) else { return Ok(plain) };
        let body = tokenizer.encode_short(PROBE, false)?;
        let ids: Vec<u32> = bos.into_iter().chain(body).chain(eos).collect();
        let forced = look_up(&ids);
        Ok(if forced.pre.is_none() && plain.pre.is_some() { plain } else { forced })
    }
}

/// The ids a `LlamaTokenizerFast` puts at both ends, whatever tokenizer.json says.
fn forced_ends(tokenizer: &Tokenizer) -> Option<(Option<u32>, Option<u32>)> {
    let config = tokenizer.config()?;
    let class = config.get("tokenizer_class")?.as_str()?;
    if class.strip_suffix("Fast").unwrap_or(class) != "LlamaTokenizer" {
        return None;
    }
    let end = |flag: &str, default: bool, key: &str| {
        let wanted = config.get(flag).and_then(|value| value.as_bool()).unwrap_or(default);
        special_token(config, key).filter(|_| wanted).and_then(|token| tokenizer.token_id(token))
    };
    Some((end("add_bos_token", true, "bos_token"), end("add_eos_token", false, "eos_token")))
}

fn look_up(ids: &[u32]) -> Fingerprint {
    // `Vec`'s debug form is Python's: [1, 2, 3].
    let digest = Sha256::digest(format!("{ids:?}").as_bytes());
    let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let pre = PRE_NAMES.iter().find(|row| row.0 == sha256).map(|row| row.1);
    Fingerprint { sha256, pre }
}
