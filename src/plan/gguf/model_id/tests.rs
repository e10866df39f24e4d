//! Names and what llama.cpp's gguf-py reads off them; the cases of its own tests and ours, each
//! checked against it.

use super::*;

/// Id, weights, then: name, organization, base name, fine-tune, version, size.
const CASES: &[(&str, u64, [Option<&str>; 6])] = &[
    (
        "DeepSeek-V3-0324",
        671_026_419_200,
        [Some("DeepSeek-V3-0324"), None, Some("DeepSeek"), None, Some("V3-0324"), None],
    ),
    (
        "deepseek-ai/DeepSeek-V3",
        671_026_419_200,
        [Some("DeepSeek-V3"), Some("deepseek-ai"), Some("DeepSeek"), None, Some("V3"), None],
    ),
    ("DeepSeek-R1", 671_026_419_200, [Some("DeepSeek-R1"), None, None, None, None, None]),
    (
        "DeepSeek-V3.1-Terminus",
        671_026_419_200,
        [Some("DeepSeek-V3.1-Terminus"), None, None, None, None, None],
    ),
    (
        "DeepSeek-R1-0528-Qwen3-8B",
        8_000_000_000,
        [Some("DeepSeek-R1-0528-Qwen3-8B"), None, Some("DeepSeek-R1-0528-Qwen3"), None, None, Some("8B")],
    ),
    (
        "Mixtral-8x7B-Instruct-v0.1",
        46_000_000_000,
        [
            Some("Mixtral-8x7B-Instruct-v0.1"),
            None,
            Some("Mixtral"),
            Some("Instruct"),
            Some("v0.1"),
            Some("8x7B"),
        ],
    ),
    (
        "mistralai/Mixtral-8x7B-v0.1",
        0,
        [Some("Mixtral-8x7B-v0.1"), Some("mistralai"), Some("Mixtral"), None, Some("v0.1"), Some("8x7B")],
    ),
    (
        "meta-llama/Llama-2-7b-hf",
        7_000_000_000,
        [Some("Llama-2-7b-hf"), Some("meta-llama"), Some("Llama-2"), Some("hf"), None, Some("7B")],
    ),
    (
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        14_315_784_192,
        [
            Some("Qwen1.5-MoE-A2.7B-Chat"),
            Some("Qwen"),
            Some("Qwen1.5-MoE"),
            Some("Chat"),
            None,
            Some("A2.7B"),
        ],
    ),
    (
        "bigscience/bloom-7b1",
        7_000_000_000,
        [Some("bloom-7b1"), Some("bigscience"), Some("bloom"), None, None, Some("7.1B")],
    ),
    (
        "bigscience/bloom-7b1-petals",
        0,
        [Some("bloom-7b1-petals"), Some("bigscience"), Some("bloom"), Some("petals"), None, Some("7.1B")],
    ),
    (
        "Meta-Llama-3-8B-128k-Instruct",
        8_000_000_000,
        [
            Some("Meta-Llama-3-8B-128k-Instruct"),
            None,
            Some("Meta-Llama-3"),
            Some("128k-Instruct"),
            None,
            Some("8B"),
        ],
    ),
    (
        "NousResearch/Meta-Llama-3-8B",
        0,
        [Some("Meta-Llama-3-8B"), Some("NousResearch"), Some("Meta-Llama-3"), None, None, Some("8B")],
    ),
    (
        "gpt2-small-7B",
        7_000_000_000,
        [Some("gpt2-small-7B"), None, Some("gpt2-small"), None, None, Some("7B")],
    ),
    ("t5-small", 0, [Some("t5-small"), None, Some("t5"), None, None, Some("small")]),
    ("My sentence name", 5, [Some("My sentence name"), None, None, None, None, None]),
    ("./models", 5, [Some("models"), None, None, None, None, None]),
    ("../x", 5, [Some("x"), None, None, None, None, None]),
    ("my_model", 1_000_000, [Some("my_model"), None, None, None, None, None]),
    ("model-BF16", 1_000_000, [Some("model-BF16"), None, None, None, None, None]),
    (
        "model-q4_k_m-gguf",
        1_000_000,
        [Some("model-q4_k_m-gguf"), None, Some("model"), Some("gguf"), None, None],
    ),
    (
        "Foo--Bar-1.5_5B-iter2",
        5_000_000_000,
        [Some("Foo--Bar-1.5_5B-iter2"), None, Some("Foo-Bar"), Some("1.5_5B"), Some("iter2"), None],
    ),
    (
        "a-XXL-v1.2.3-lora",
        0,
        [Some("a-XXL-v1.2.3-lora"), None, Some("a"), Some("lora"), Some("v1.2.3"), Some("XXL")],
    ),
    ("7B-chat", 7_000_000_000, [Some("7B-chat"), None, None, Some("7B-chat"), None, None]),
    ("", 1, [Some(""), None, None, None, None, None]),
    (
        "tiny-moe-8x7B-Instruct-v0.1",
        5_000_000,
        [
            Some("tiny-moe-8x7B-Instruct-v0.1"),
            None,
            Some("tiny-moe"),
            Some("Instruct"),
            Some("v0.1"),
            Some("8x7B"),
        ],
    ),
    (
        "Acme-Dense-ish-1.5B-chat",
        2_000_000,
        [Some("Acme-Dense-ish-1.5B-chat"), None, Some("Acme-Dense-ish"), Some("1.5b-chat"), None, None],
    ),
    ("-v2-", 3, [Some("-v2-"), None, None, None, Some("v2"), None]),
    (
        "Kimi-K2-Instruct-0905",
        1_000_000_000_000,
        [Some("Kimi-K2-Instruct-0905"), None, Some("Kimi-K2"), Some("Instruct"), Some("0905"), None],
    ),
    ("org/a/b-2B", 2_000_000_000, [Some("a/b-2B"), Some("org"), Some("a/b"), None, None, Some("2B")]),
    (
        "DeepSeek-V3-0324-FP8-Dynamic",
        671_000_000_000,
        [Some("DeepSeek-V3-0324-FP8-Dynamic"), None, None, None, None, None],
    ),
    (
        "model-500M-32K",
        500_000_000,
        [Some("model-500M-32K"), None, Some("model"), Some("32k"), None, Some("500M")],
    ),
    ("x-1T", 1_000_000_000_000, [Some("x-1T"), None, Some("x"), None, None, Some("1T")]),
];

#[test]
fn names_are_read_as_gguf_py_reads_them() {
    for &(id, weights, [name, organization, base_name, fine_tune, version, size_label]) in CASES {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let expected = ModelId {
            name: name.unwrap_or_default().to_owned(),
            organization: own(organization),
            base_name: own(base_name),
            fine_tune: own(fine_tune),
            version: own(version),
            size_label: own(size_label),
        };
        assert_eq!(parse(id, weights), expected, "{id} with {weights} weights");
    }
}

#[test]
fn titles() {
    for (id, expected) in [
        ("DeepSeek-V3-0324", "DeepSeek V3 0324"),
        ("my_model", "My_Model"),
        ("v2-model 7b-x", "v2 Model 7b X"),
        ("deepseek-ai", "Deepseek Ai"),
        ("o'neil-GPT a1b", "O'Neil GPT A1B"),
        ("meta-llama v1.x", "Meta Llama V1.X"),
        (" héllo-wörld ", "Héllo Wörld"),
    ] {
        assert_eq!(title(id), expected);
    }
}
