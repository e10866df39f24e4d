//! The reference forward pass on the fixture, against what transformers and llama-perplexity computed.

use std::path::{Path, PathBuf};

use requant::checkpoint::Checkpoint;
use requant::evaluate::{self, Bos, Perplexity, Windows};
use requant::model::{self, Choice, Observer, Storage, Unobserved};
use requant::opened::{self, Opened};
use requant::source::LocalDirectory;
use requant_formats::Dtype;
use serde_json::Value;

use crate::maker;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(Box::new(LocalDirectory::open(path).unwrap())).unwrap()
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("goldens/forward").join(name)).unwrap()).unwrap()
}

fn windows(checkpoint: &Checkpoint, bos: Bos) -> Windows {
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    Windows::new(&opened::tokenizer(checkpoint.source()).unwrap(), &text, 512, bos).unwrap()
}

/// As the goldens have it: BOS in place of each window's first token, the text not moved by one.
fn golden_windows(checkpoint: &Checkpoint, key: &str) -> Windows {
    let mut windows = windows(checkpoint, Bos::Never);
    if key == "with_bos" {
        windows.tokens.iter_mut().step_by(512).for_each(|first| *first = 0);
    }
    windows
}

/// Keeps the sorted choices of every token, per layer.
#[derive(Default)]
struct Routing(Vec<(usize, Vec<Vec<usize>>)>);

impl Observer for Routing {
    fn layer(&mut self, layer: usize, _: usize, choices: Option<&[Vec<Choice>]>) {
        let Some(choices) = choices else { return };
        let sorted = choices.iter().map(|token| {
            let mut experts: Vec<usize> = token.iter().map(|choice| choice.expert).collect();
            experts.sort_unstable();
            experts
        });
        self.0.push((layer, sorted.collect()));
    }
}

#[test]
fn logits_and_routing_equal_those_of_transformers() {
    let checkpoint = open(&fixtures().join("tiny-deepseek-v3"));
    let window = golden_windows(&checkpoint, "with_bos").tokens[..512].to_vec();
    let ids = golden("heldout.json")["first_window"]["ids"].clone();
    assert_eq!(serde_json::to_value(&window).unwrap(), ids);

    let mut routing = Routing::default();
    let hidden = model::forward(&checkpoint, &window, 512, &Storage::Memory, &mut routing).unwrap();
    let expected = golden("routing.json");
    assert_eq!(routing.0.len(), expected.as_object().unwrap().len());
    for (layer, choices) in routing.0 {
        assert_eq!(serde_json::to_value(choices).unwrap(), expected[layer.to_string()], "layer {layer}");
    }

    let positions: Vec<usize> = (15..512).step_by(16).collect();
    let logits = model::logits(&checkpoint, &hidden, &positions).unwrap();
    let worst = worst_difference(&logits, "logits.f32");
    println!("largest difference of a logit: {worst:e}");
    assert!(worst < 1e-3, "{worst}");
}

fn worst_difference(logits: &[f32], golden: &str) -> f32 {
    let bytes = std::fs::read(fixtures().join("goldens/forward").join(golden)).unwrap();
    let expected: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(expected.len(), logits.len());
    logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn deepseek_v2_logits_and_routing_equal_those_of_transformers() {
    for name in ["deepseek-v2-greedy", "deepseek-v2-groups"] {
        let model = Opened::open(&fixtures().join("goldens/forward").join(name)).unwrap();
        let store = model.store().unwrap();
        let ids: Vec<u32> = serde_json::from_value(golden(&format!("{name}/ids.json"))).unwrap();
        let mut routing = Routing::default();
        let hidden = model::forward(store, &ids, ids.len(), &Storage::Memory, &mut routing).unwrap();
        let expected = golden(&format!("{name}/routing.json"));
        assert_eq!(routing.0.len(), 2);
        for (layer, choices) in routing.0 {
            assert_eq!(serde_json::to_value(choices).unwrap(), expected[layer.to_string()], "{name} {layer}");
        }
        let positions: Vec<usize> = (0..ids.len()).collect();
        let logits = model::logits(store, &hidden, &positions).unwrap();
        let worst = worst_difference(&logits, &format!("{name}/logits.f32"));
        println!("{name}: largest difference of a logit: {worst:e}");
        assert!(worst < 1e-4, "{worst}");
    }
}

/// The reference writes five decimals.
#[test]
fn the_prediction_layer_equals_that_of_transformers() {
    let model = Opened::open(&fixtures().join("tiny-deepseek-v3")).unwrap();
    let ids: Vec<u32> =
        serde_json::from_value(golden("heldout.json")["first_window"]["ids"].clone()).unwrap();
    let windows = Windows::from_tokens(ids, 512);
    let request = evaluate::Request {
        model: model.store().unwrap(),
        original: None,
        windows: &windows,
        memory_bytes: None,
        scratch: None,
    };
    let prediction = evaluate::measure(&request, &mut Unobserved).unwrap().prediction.unwrap();
    let golden = golden("mtp.json");
    let expected: Vec<f64> = serde_json::from_value(golden["nll"].clone()).unwrap();
    let expected = &expected[256..];
    assert_eq!(prediction.perplexity.losses.len(), expected.len());
    let differences = prediction.perplexity.losses.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f64::max);
    println!("largest difference of a loss: {worst:e}");
    assert!(worst < 1e-4, "{worst}");
    let agreed = golden["top1_agreement_second_half"].as_f64().unwrap();
    assert!((prediction.top1_agreement - agreed).abs() < 1e-6, "{} {agreed}", prediction.top1_agreement);
}

#[test]
fn perplexity_equals_that_of_transformers_and_of_llama_perplexity() {
    let checkpoint = open(&fixtures().join("tiny-deepseek-v3"));
    let golden = golden("heldout.json");
    for key in ["with_bos", "without_bos"] {
        let windows = golden_windows(&checkpoint, key);
        let measured = evaluate::perplexity(&checkpoint, &windows, &mut Unobserved).unwrap();
        let expected = golden[key]["perplexity_second_half"].as_f64().unwrap();
        let relative = (measured.perplexity / expected - 1.0).abs();
        println!("{key}: {} +/- {}, {expected}: {relative:e}", measured.perplexity, measured.error);
        assert!(relative < 1e-4, "{key}: {} {expected}", measured.perplexity);
        if key == "without_bos" {
            // The tokenizer adds no BOS, so this is what llama-perplexity measures on the F32 GGUF:
            // "Final estimate: PPL = 58.1277 +/- 1.18301" (fixtures/README.md).
            assert_eq!(windows, self::windows(&checkpoint, Bos::Auto));
            assert!((measured.perplexity / 58.1277 - 1.0).abs() < 1e-3, "{}", measured.perplexity);
            assert!((measured.error / 1.18301 - 1.0).abs() < 1e-3, "{}", measured.error);
        }
    }
}

fn noise_tokens(count: usize) -> Windows {
    let tokens = (0..count as u32).map(|i| i * 7919 % 320).collect();
    Windows::from_tokens(tokens, 48)
}

fn measure(checkpoint: &maker::Checkpoint, threads: usize) -> Result<Perplexity, requant::Error> {
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let checkpoint = open(dir.path());
    pool.install(|| evaluate::perplexity(&checkpoint, &noise_tokens(48 * 12), &mut Unobserved))
}

#[test]
fn every_bit_is_the_same_at_any_thread_count() {
    let checkpoint = maker::checkpoint(maker::Size::default(), maker::Storage::Fp8(Dtype::F8_E4M3));
    let one = measure(&checkpoint, 1).unwrap();
    for threads in [2, 5] {
        assert_eq!(measure(&checkpoint, threads).unwrap(), one);
    }
}

#[test]
fn windows_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    maker::checkpoint(maker::Size::default(), maker::Storage::Plain(Dtype::BF16)).write(dir.path());
    let checkpoint = open(dir.path());
    let all = noise_tokens(48 * 3);
    let together = evaluate::perplexity(&checkpoint, &all, &mut Unobserved).unwrap();
    let mut apart = Vec::new();
    for tokens in all.tokens.chunks(48) {
        let one = Windows::from_tokens(tokens.to_vec(), 48);
        apart.extend(evaluate::perplexity(&checkpoint, &one, &mut Unobserved).unwrap().losses);
    }
    for (a, b) in together.losses.iter().zip(&apart) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn the_first_product_that_is_not_finite_names_layer_and_tensor() {
    let mut checkpoint = maker::checkpoint(maker::Size::default(), maker::Storage::Plain(Dtype::F32));
    let name = "model.layers.1.self_attn.q_a_proj.weight";
    for (name, large) in [("model.layers.1.input_layernorm.weight", 1e6f32), (name, 3e38)] {
        for value in checkpoint.tensor(name).bytes.chunks_exact_mut(4) {
            value.copy_from_slice(&large.to_le_bytes());
        }
    }
    let error = measure(&checkpoint, 2).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("layer 1"), "{error}");
}

#[test]
fn unusable_input_is_named_before_anything_is_computed() {
    let path = fixtures().join("tiny-deepseek-v3");
    let checkpoint = open(&path);
    let tokenizer = opened::tokenizer(checkpoint.source()).unwrap();
    let error = Windows::new(&tokenizer, "too short", 512, Bos::Auto).unwrap_err().to_string();
    assert!(error.contains("fewer than one window of 512"), "{error}");
    let error = Windows::new(&tokenizer, "too short", 2, Bos::Auto).unwrap_err().to_string();
    assert!(error.contains("context of 2"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    maker::checkpoint(maker::Size::default(), maker::Storage::Plain(Dtype::F32)).write(dir.path());
    let checkpoint = open(dir.path());
    let error = opened::tokenizer(checkpoint.source()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("not found"), "{error}");
    let strange = Windows::from_tokens(vec![9999; 48], 48);
    let error = evaluate::perplexity(&checkpoint, &strange, &mut Unobserved).unwrap_err().to_string();
    assert!(error.contains("token 9999"), "{error}");
}
