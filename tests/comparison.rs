//! Two models side by side: the table of `llama-perplexity --kl-divergence`, and what is ours alone.

use std::path::Path;

use requant::checkpoint::TileReader;
use requant::evaluate::{self, Against, Bos, Report, Request, Windows};
use requant::model::{Storage, Unobserved, Workload, peak_ram_bytes, scratch_bytes};
use requant::opened::Opened;
use requant_formats::Dtype;

use crate::conversion::{convert, fixtures, model};
use crate::maker;

pub(crate) fn heldout(model: &Opened, windows: usize) -> Windows {
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let all = Windows::new(&model.tokenizer().unwrap(), &text, 512, Bos::Auto).unwrap();
    Windows::from_tokens(all.tokens[..windows * 512].to_vec(), 512)
}

/// What `perplexity --against` measures on the first `windows` windows of the held-out text.
pub(crate) fn compare(result: &Path, original: &Path, windows: usize, memory_bytes: Option<u64>) -> Report {
    let (result, original) = (Opened::open(result).unwrap(), Opened::open(original).unwrap());
    let windows = heldout(&original, windows);
    let request = Request {
        model: result.store().unwrap(),
        original: Some(original.store().unwrap()),
        windows: &windows,
        memory_bytes,
        scratch: None,
    };
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
        let Against { perplexity, divergence, layers, .. } = report.against.unwrap();
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

/// The BF16 copy that cast scripts make of an FP8 checkpoint: `fp8 * scale` in f32, rounded to the nearest.
fn bf16_cast(from: &Path, to: &Path) {
    let source = crate::conversion::open(from).unwrap();
    let mut config = source.checkpoint().unwrap().config().clone();
    config.as_object_mut().unwrap().remove("quantization_config");
    let mut tensors = Vec::new();
    let mut values = Vec::new();
    for (id, tensor) in source.tensors().iter().enumerate().filter(|(_, tensor)| tensor.role.is_some()) {
        TileReader::default().read(&source, id, 0..tensor.matrix().0, &mut values).unwrap();
        let (dtype, bytes) = if tensor.dtype == Dtype::F32 {
            (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        } else {
            let rounded = values.iter().map(|&value| half::bf16::from_f32(value));
            (Dtype::BF16, rounded.flat_map(half::bf16::to_le_bytes).collect())
        };
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        tensors.push(maker::Tensor { name, dtype, shape, bytes, shard: 0 });
    }
    maker::Checkpoint { config, tensors, indexed: true, extra_index: Vec::new() }.write(to);
    maker::copy_tokenizer(to);
}

/// Rounding a weight to BF16 moves it by up to 2^-9 of itself, by 2^-9 / sqrt(3) = 0.0011 in the root mean square.
/// Q8_0 moves weights of a normal distribution by about 0.006 (a block of 32 reaches to 2.5 standard deviations or so,
/// and 2.5 / 127 / sqrt(12) = 0.0057). Divergence grows with the square, so where no choice of experts was a near tie
/// that of Q8_0 is 27 times as large: the median tells, and 10 leaves room for how blocks are filled. The mean is of
/// the few tokens whose near tie went the other way; there are fewer of them.
#[test]
fn an_fp8_checkpoint_and_its_bf16_cast_measure_the_same_to_rounding() {
    let directory = tempfile::tempdir().unwrap();
    let [cast, coarse] = ["cast", "q8_0.gguf"].map(|name| directory.path().join(name));
    std::fs::create_dir(&cast).unwrap();
    bf16_cast(&model(), &cast);
    convert(&model(), "q8_0", 2, &coarse).unwrap();
    let [fine, coarse] = [cast, coarse].map(|path| compare(&path, &model(), 20, None).against.unwrap());
    let medians = [&fine, &coarse].map(|against| against.divergence.percentile(0.5));
    let means = [&fine, &coarse].map(|against| against.divergence.mean.value);
    println!("medians {medians:?}, means {means:?}, ratio {:?}", fine.divergence.ratio);
    assert!(medians[0] > 0.0 && 10.0 * medians[0] < medians[1], "{medians:?}");
    assert!(means[0] < means[1], "{means:?}");
    let ratio = fine.divergence.ratio;
    assert!((ratio.value - 1.0).abs() < 4.0 * ratio.error && ratio.error < 2e-4, "{ratio:?}");
    for (fine, coarse) in fine.layers.iter().zip(&coarse.layers) {
        println!("layer {}: {:.6} {:.6}", fine.layer, fine.relative_error, coarse.relative_error);
        assert!(
            fine.relative_error < coarse.relative_error,
            "{} {}",
            fine.relative_error,
            coarse.relative_error
        );
        assert!(fine.routing_agreement.is_none_or(|share| share > 0.999), "{:?}", fine.routing_agreement);
    }
    assert!(fine.prediction.unwrap().divergence.percentile(0.5) < medians[1]);
}

/// With scales that are powers of two nothing is rounded at all.
#[test]
fn a_bf16_cast_of_power_of_two_scales_is_exact() {
    let directory = tempfile::tempdir().unwrap();
    let [fp8, cast] = ["fp8", "cast"].map(|name| directory.path().join(name));
    for path in [&fp8, &cast] {
        std::fs::create_dir(path).unwrap();
    }
    maker::checkpoint(maker::Size::default(), maker::Storage::Fp8Exponents(Dtype::F8_E4M3)).write(&fp8);
    bf16_cast(&fp8, &cast);
    let windows = Windows::from_tokens((0..48 * 8).map(|i: u32| i * 7919 % 320).collect(), 48);
    let [fp8, cast] = [fp8, cast].map(|path| {
        let model = Opened::open(&path).unwrap();
        let request = Request {
            model: model.store().unwrap(),
            original: None,
            windows: &windows,
            memory_bytes: None,
            scratch: None,
        };
        evaluate::measure(&request, &mut Unobserved).unwrap()
    });
    assert!(fp8 == cast);
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
    let (result, original) = (Opened::open(&broken).unwrap(), Opened::open(&whole).unwrap());
    let tokens = (0..48 * 8).map(|i: u32| i * 7919 % 320).collect();
    let windows = Windows::from_tokens(tokens, 48);
    let request = Request {
        model: result.store().unwrap(),
        original: Some(original.store().unwrap()),
        windows: &windows,
        memory_bytes: None,
        scratch: None,
    };
    let layers = evaluate::measure(&request, &mut Unobserved).unwrap().against.unwrap().layers;
    assert_eq!(layers[0].relative_error, 0.0);
    assert!(layers[1].relative_error > 1e-3, "{}", layers[1].relative_error);
    assert_eq!(layers[1].routing_agreement, Some(1.0));
    assert!(layers[2].relative_error > 1e-3, "{}", layers[2].relative_error);
}

/// Where states are kept changes no bit of what is measured; memory that will not do is an error before a weight is
/// read, and so is a directory for scratch files that is not there.
#[test]
fn less_memory_means_scratch_files_and_the_same_result() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "q4_0", 2, &file).unwrap();
    let (source, result) = (Opened::open(&model()).unwrap(), Opened::open(&file).unwrap());
    let windows = heldout(&source, 56);
    let tokens = 56 * 512;
    for (store, original) in
        [(source.store().unwrap(), None), (result.store().unwrap(), Some(source.store().unwrap()))]
    {
        let predictions = usize::from(original.is_none());
        let models = 1 + usize::from(original.is_some());
        let load = Workload { tokens, context: 512, scored: 56 * 255, models, predictions };
        let scratch = Storage::Scratch(directory.path().to_owned());
        let least = peak_ram_bytes(store.spec(), &load, &scratch);
        let [mut memory, mut disk] = [None, Some(least)].map(|memory_bytes| {
            let scratch = Some(directory.path());
            let request = Request { model: store, original, windows: &windows, memory_bytes, scratch };
            evaluate::measure(&request, &mut Unobserved).unwrap()
        });
        assert!(least < peak_ram_bytes(store.spec(), &load, &Storage::Memory));
        assert_eq!((memory.scratch_bytes, disk.scratch_bytes), (0, scratch_bytes(store.spec(), &load)));
        assert!(memory.prediction.is_some() == original.is_none());
        (memory.scratch_bytes, disk.scratch_bytes) = (0, 0);
        assert!(memory == disk);
        let refused = |memory_bytes, scratch| {
            let request = Request { model: store, original, windows: &windows, memory_bytes, scratch };
            evaluate::measure(&request, &mut Unobserved).unwrap_err().to_string()
        };
        let error = refused(Some(least - 1), None);
        assert!(error.contains("--memory") && error.contains("56 windows of 512"), "{error}");
        let error = refused(Some(least), Some(Path::new("/not/there")));
        assert!(error.contains("/not/there") && error.contains("scratch file"), "{error}");
    }
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 2, "the model and its manifest");
}

/// The layer was trained to 52.9 on all held-out text, BOS first, all positions (fixtures/README.md); on the
/// second half of every window it is near that.
#[test]
fn the_prediction_layer_is_measured_where_there_is_one() {
    let source = Opened::open(&model()).unwrap();
    let windows = heldout(&source, 56);
    let request = Request {
        model: source.store().unwrap(),
        original: None,
        windows: &windows,
        memory_bytes: None,
        scratch: None,
    };
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
    let report = compare(&file, &model(), 1, None);
    assert!(report.prediction.is_none() && report.against.unwrap().prediction.is_none());
    // The other way round it is measured, but there is nothing to compare it with.
    let report = compare(&model(), &file, 1, None);
    assert!(report.prediction.is_some() && report.against.unwrap().prediction.is_none());
}

/// Damage that only the prediction layer has shows there, and nowhere else.
#[test]
fn two_prediction_layers_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    let [whole, broken] = ["whole", "broken"].map(|name| directory.path().join(name));
    let mut checkpoint = maker::checkpoint(maker::Size::default(), maker::Storage::Plain(Dtype::F32));
    for path in [&whole, &broken] {
        std::fs::create_dir(path).unwrap();
        checkpoint.write(path);
        let projection = checkpoint.tensor("model.layers.2.eh_proj.weight");
        projection.bytes.chunks_exact_mut(8).for_each(|pair| pair[..4].fill(0));
    }
    let (result, original) = (Opened::open(&broken).unwrap(), Opened::open(&whole).unwrap());
    let windows = Windows::from_tokens((0..48 * 8).map(|i: u32| i * 7919 % 320).collect(), 48);
    let measure = |model: &Opened, original: Option<&Opened>| {
        let original = original.map(|model| model.store().unwrap());
        let request = Request {
            model: model.store().unwrap(),
            original,
            windows: &windows,
            memory_bytes: None,
            scratch: None,
        };
        evaluate::measure(&request, &mut Unobserved).unwrap()
    };
    let report = measure(&result, Some(&original));
    let against = report.against.unwrap();
    assert_eq!(against.divergence.max(), 0.0);
    let compared = against.prediction.unwrap();
    // Weights of noise make nearly flat predictions; without damage they would be the same to the bit (below).
    assert!(compared.divergence.mean.value > 1e-5, "{:?}", compared.divergence.mean);
    // Each side is what it is alone.
    assert_eq!(report.prediction, measure(&result, None).prediction);
    assert_eq!(Some(compared.original), measure(&original, None).prediction);
    let same = measure(&original, Some(&original)).against.unwrap().prediction.unwrap();
    assert_eq!((same.divergence.max(), same.divergence.top1_agreement.value), (0.0, 1.0));
}

#[test]
fn models_that_do_not_belong_together_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    maker::checkpoint(maker::Size::default(), maker::Storage::Plain(Dtype::BF16)).write(directory.path());
    let (other, original) = (Opened::open(directory.path()).unwrap(), Opened::open(&model()).unwrap());
    let windows = heldout(&original, 1);
    let request = Request {
        model: other.store().unwrap(),
        original: Some(original.store().unwrap()),
        windows: &windows,
        memory_bytes: None,
        scratch: None,
    };
    let error = evaluate::measure(&request, &mut Unobserved).unwrap_err().to_string();
    assert!(error.contains("number of layers 2 of the model, 3 of the original"), "{error}");
}
