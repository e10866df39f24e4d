//! Two models side by side: the table of `llama-perplexity --kl-divergence`, and what is ours alone.

use std::path::Path;

use requant::evaluate::{self, Against, Bos, Report, Request, Windows};
use requant::model::Unobserved;
use requant::weights::Model;
use requant_formats::Dtype;

use crate::conversion::{convert, fixtures, model};
use crate::maker;

fn heldout(model: &Model, windows: usize) -> Windows {
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    Windows::new(&model.tokenizer().unwrap(), &text, 512, Bos::Auto).unwrap().split(windows).swap_remove(0)
}

fn compare(result: &Path, original: &Path, windows: usize, memory_bytes: Option<u64>) -> Report {
    let (result, original) = (Model::open(result).unwrap(), Model::open(original).unwrap());
    let windows = heldout(&original, windows);
    let request =
        Request { model: result.store(), original: Some(original.store()), windows: &windows, memory_bytes };
    evaluate::measure(&request, &mut Unobserved).unwrap()
}

/// llama-perplexity's mean KL divergence on the same files and text (fixtures/README.md). It multiplies with
/// 8-bit activations, whose error adds to that of the weights and is most of what Q8_0 has; so ours are
/// smaller, and nearer the coarser the weights are.
#[test]
fn divergences_are_those_of_llama_perplexity_less_its_8_bit_activations() {
    let directory = tempfile::tempdir().unwrap();
    let mut before = 0.0;
    for (format, kld, same_top, nearness) in [
        ("q6_k", 0.000331, 0.9858, 0.6),
        ("q4_k_m", 0.001402, 0.9681, 0.94),
        ("q4_0", 0.001905, 0.9585, 0.95),
    ] {
        let file = directory.path().join(format!("{format}.gguf"));
        convert(&model(), format, 2, &file).unwrap();
        let report = compare(&file, &model(), 56, None);
        let Against { perplexity, divergence, layers } = report.against.unwrap();
        println!("{format}: {:.6} ({kld})", divergence.mean.value);
        assert!((perplexity.perplexity / 58.1277 - 1.0).abs() < 1e-5);
        assert!(
            (nearness * kld..kld * 1.02).contains(&divergence.mean.value),
            "{format}: {:?}",
            divergence.mean
        );
        assert!(
            (divergence.top1_agreement.value - same_top).abs() < 0.005,
            "{:?}",
            divergence.top1_agreement
        );
        assert!(
            (divergence.ratio.value * perplexity.perplexity / report.perplexity.perplexity - 1.0).abs()
                < 1e-9
        );
        assert!(before < divergence.mean.value);
        before = divergence.mean.value;
        assert!(divergence.percentile(0.5) < divergence.percentile(0.9));

        assert_eq!(layers.len(), 3);
        assert!(layers.windows(2).all(|pair| pair[0].relative_error < pair[1].relative_error));
        assert!(layers.iter().all(|layer| layer.cosine > 0.99 && layer.cosine <= 1.0));
        assert!(layers[0].experts.is_empty() && layers[0].routing_agreement.is_none());
        for layer in &layers[1..] {
            assert_eq!(layer.experts.iter().map(|expert| expert.tokens).sum::<u64>(), 56 * 512 * 4);
            assert_eq!(layer.experts.iter().map(|expert| expert.original_tokens).sum::<u64>(), 56 * 512 * 4);
        }
    }
}

#[test]
fn a_model_is_no_distance_from_its_f32_copy() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "f32", 2, &file).unwrap();
    let report = compare(&file, &model(), 2, None);
    let against = report.against.unwrap();
    assert_eq!(against.perplexity, report.perplexity);
    assert_eq!(against.divergence.max(), 0.0);
    assert_eq!(against.divergence.top1_agreement.value, 1.0);
    for layer in &against.layers {
        assert_eq!(layer.relative_error, 0.0);
        assert!((layer.cosine - 1.0).abs() < 1e-12);
        assert!(layer.experts.iter().all(|expert| expert.agreement.is_none_or(|share| share == 1.0)));
    }
}

/// One matrix is broken on purpose: its layer is the first with an error, the layer before has none, and
/// the routing that came before the matrix is the same.
#[test]
fn a_broken_tensor_shows_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (whole, broken) = (copy("whole"), copy("broken"));
    let size = maker::Size { layers: 3, ..maker::Size::default() };
    let mut checkpoint = maker::checkpoint(size, maker::Storage::Plain(Dtype::F32));
    checkpoint.write(&whole);
    for value in
        checkpoint.tensor("model.layers.1.mlp.shared_experts.down_proj.weight").bytes.chunks_exact_mut(4)
    {
        value.copy_from_slice(&0.5f32.to_le_bytes());
    }
    checkpoint.write(&broken);
    let (result, original) = (Model::open(&broken).unwrap(), Model::open(&whole).unwrap());
    let tokens = (0..48 * 8).map(|i: u32| i * 7919 % 320).collect();
    let windows = Windows::from_tokens(tokens, 48);
    let request = Request {
        model: result.store(),
        original: Some(original.store()),
        windows: &windows,
        memory_bytes: None,
    };
    let layers = evaluate::measure(&request, &mut Unobserved).unwrap().against.unwrap().layers;
    assert_eq!(layers[0].relative_error, 0.0);
    assert!(layers[1].relative_error > 1e-3, "{}", layers[1].relative_error);
    assert_eq!(layers[1].routing_agreement, Some(1.0));
    assert!(layers[2].relative_error > 1e-3, "{}", layers[2].relative_error);
}

/// Windows do not see each other, so passes only change where blocks of tokens begin: what is left is the
/// order of sums, a few units in the last place of a logit.
#[test]
fn less_memory_means_more_passes_and_the_same_result() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "q4_0", 2, &file).unwrap();
    let spec = Model::open(&model()).unwrap().store().spec().clone();
    let memory = requant::model::peak_ram_bytes(&spec, 2 * 512, 2);
    let one = compare(&file, &model(), 5, None);
    let many = compare(&file, &model(), 5, Some(memory));
    assert_eq!((one.passes, many.passes), (1, 3));
    assert!((one.perplexity.perplexity / many.perplexity.perplexity - 1.0).abs() < 1e-6);
    let (one, many) = (one.against.unwrap(), many.against.unwrap());
    assert!((one.divergence.mean.value / many.divergence.mean.value - 1.0).abs() < 1e-4);
    for (one, many) in one.layers.iter().zip(&many.layers) {
        assert!((one.relative_error / many.relative_error - 1.0).abs() < 1e-4);
    }

    let model = Model::open(&file).unwrap();
    let windows = heldout(&model, 1);
    let request =
        Request { model: model.store(), original: None, windows: &windows, memory_bytes: Some(1 << 20) };
    let error = evaluate::measure(&request, &mut Unobserved).unwrap_err().to_string();
    assert!(error.contains("--memory") && error.contains("one window of 512"), "{error}");
}

/// The layer was trained to 52.9 on all held-out text, BOS first, all positions (fixtures/README.md); on the
/// second half of every window it is near that.
#[test]
fn the_prediction_layer_is_measured_where_there_is_one() {
    let source = Model::open(&model()).unwrap();
    let windows = heldout(&source, 56);
    let request = Request { model: source.store(), original: None, windows: &windows, memory_bytes: None };
    let report = evaluate::measure(&request, &mut Unobserved).unwrap();
    let prediction = report.prediction.unwrap();
    println!("{:.3} {:.4}", prediction.perplexity.perplexity, prediction.top1_agreement);
    assert_eq!(prediction.perplexity.losses.len(), 56 * 254);
    assert!((44.0..56.0).contains(&prediction.perplexity.perplexity), "{}", prediction.perplexity.perplexity);
    // Chance would be far below.
    assert!(prediction.top1_agreement > 0.5, "{}", prediction.top1_agreement);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "q4_0", 2, &file).unwrap();
    assert!(compare(&file, &model(), 1, None).prediction.is_none());
}

#[test]
fn models_that_do_not_belong_together_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    maker::checkpoint(maker::Size::default(), maker::Storage::Plain(Dtype::BF16)).write(directory.path());
    let (other, original) = (Model::open(directory.path()).unwrap(), Model::open(&model()).unwrap());
    let windows = heldout(&original, 1);
    let request = Request {
        model: other.store(),
        original: Some(original.store()),
        windows: &windows,
        memory_bytes: None,
    };
    let error = evaluate::measure(&request, &mut Unobserved).unwrap_err().to_string();
    assert!(error.contains("number of layers 2 of the model, 3 of the original"), "{error}");
}
