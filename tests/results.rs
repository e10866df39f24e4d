//! Perplexity of finished results: GGUF files, split sets and MLX directories, through the same forward pass.

use std::path::Path;

use requant::Result;
use requant::evaluate::{self, Bos, Perplexity, Windows};
use requant::imatrix::Imatrix;
use requant::model::Unobserved;
use requant::opened::Opened;
use requant::plan::{Options, Rule, Rules};
use requant_formats::Dtype;

use crate::conversion::{Silent, convert, convert_with, fixtures, model, settings};
use crate::maker;

/// As `requant perplexity PATH --text heldout.txt`, first `windows` windows only.
pub(crate) fn measure(path: &Path, windows: usize) -> Result<Perplexity> {
    let model = Opened::open(path)?;
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let all = Windows::new(&model.tokenizer()?, &text, 512, Bos::Auto)?;
    let cut = Windows::from_tokens(all.tokens[..windows * 512].to_vec(), 512);
    evaluate::perplexity(model.store().unwrap(), &cut, &mut Unobserved)
}

fn difference(a: &Perplexity, b: &Perplexity) -> f64 {
    assert_eq!(a.losses.len(), b.losses.len());
    a.losses.iter().zip(&b.losses).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn f32_results_measure_exactly_what_their_source_does() {
    let source = measure(&model(), 2).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let one = directory.path().join("one.gguf");
    convert(&model(), "f32", 2, &one).unwrap();
    assert_eq!(measure(&one, 2).unwrap(), source);

    let set = directory.path().join("set.gguf");
    let options =
        Options { output_name: "set.gguf".into(), split_max_bytes: Some(4_000_000), ..Options::default() };
    convert_with(&model(), &settings("f32", 2), &options, &set, &Silent).unwrap();
    let first = crate::conversion::names(directory.path())
        .into_iter()
        .find(|name| name.contains("-00001-of-") && name.ends_with(".gguf"))
        .unwrap();
    let first = directory.path().join(first);
    assert_eq!(measure(&first, 2).unwrap(), source);

    std::fs::remove_file(directory.path().join(first.to_string_lossy().replace("-00001-", "-00002-")))
        .unwrap();
    let error = measure(&first, 1).unwrap_err().to_string();
    assert!(error.contains("-00002-of-") && error.contains("not found"), "{error}");
}

/// What a format needs: an importance matrix if it gets better by one, and in q1_0 another type for short rows.
fn options(format: &str) -> Options {
    let is_of_codebooks = ["iq1", "iq2", "iq3"].iter().any(|prefix| format.starts_with(prefix));
    let path = fixtures().join("goldens/imatrix/imatrix.gguf");
    let imatrix = is_of_codebooks.then(|| Imatrix::open(&path).unwrap().into());
    let rule = "attn_k_b|attn_q_b|ffn_down_(exps|shexp)=q4_0";
    let rules = (format == "q1_0").then(|| Rule::from_argument(rule).unwrap());
    Options { imatrix, rules: Rules::new(rules.into_iter().collect()), ..Options::default() }
}

/// Every type decodes to what was encoded: its losses stay near those of the source, the coarser the less.
#[test]
fn every_target_is_read_back() {
    let source = measure(&model(), 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut count = 0;
    for target in requant::plan::TARGETS {
        for format in target.formats() {
            let output = directory.path().join(format!("m-{count}.gguf"));
            let options = options(format.name);
            convert_with(&model(), &settings(format.name, 2), &options, &output, &Silent).unwrap();
            let measured = measure(&output, 1).unwrap();
            let ratio = (measured.perplexity / source.perplexity).ln().abs();
            let bound = match format.name {
                "f32" => 0.0,
                name if name.starts_with("mlx-2bit") || name.starts_with("mlx-mixed-2") => 0.1,
                // Weights that were trained with more than two or three values.
                "tq1_0" | "tq2_0" | "q2_0" | "q1_0" => 0.2,
                name if name.starts_with("mlx-3bit") || name.starts_with("mlx-mixed-3") => 0.05,
                _ => 0.03,
            };
            println!("{}: {ratio:.5}, worst loss {:.5}", format.name, difference(&measured, &source));
            assert!(ratio <= bound, "{}: {} {}", format.name, measured.perplexity, source.perplexity);
            count += 1;
        }
    }
    assert!(count >= 32, "{count}");
}

#[test]
fn a_damaged_result_is_named_before_anything_is_computed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "q4_0", 2, &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let failing = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error =
            Opened::open(&path).and_then(Opened::evaluable).and_then(|model| model.tokenizer().map(|_| ()));
        error.expect_err(name).to_string()
    };
    let error = failing("cut.gguf", &bytes[..bytes.len() - 100]);
    assert!(
        error.contains("cut.gguf") && error.contains("output.weight") || error.contains("tensor"),
        "{error}"
    );
    let error = failing("head.gguf", &bytes[..1000]);
    assert!(error.contains("head.gguf"), "{error}");

    // Same lengths, so that nothing else moves.
    let with = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut changed = bytes.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        changed
    };
    for (from, to, named) in [
        ("deepseek2", "deepseek9", "general.architecture \"deepseek9\""),
        ("deepseek-v3", "deepseek-v9", "tokenizer.ggml.pre \"deepseek-v9\""),
        ("tokenizer.ggml.model", "tokenizer.ggml.mudel", "tokenizer.ggml.model"),
        ("blk.1.attn_k_b.weight", "blk.1.attn_x_b.weight", "blk.1.attn_k_b.weight"),
        ("deepseek2.expert_count", "deepseek2.expert_caunt", "deepseek2.expert_count"),
    ] {
        let error = failing("changed.gguf", &with(from, to));
        assert!(error.contains(named), "{from}: {error}");
    }
}

#[test]
fn an_mlx_quantization_that_nobody_knows_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m");
    convert(&model(), "mlx-nvfp4", 2, &output).unwrap();
    let config = std::fs::read_to_string(output.join("config.json")).unwrap();
    for (from, to, named) in [
        ("\"mode\": \"nvfp4\"", "\"mode\": \"nvfp9\"", "quantization mode nvfp9"),
        ("\"group_size\": 16", "\"group_size\": 32", "nvfp4 of 4 bits in groups of 32"),
        ("\"mode\": \"nvfp4\"", "\"mode\": \"affine\"", "affine of 4 bits in groups of 16"),
        ("\"bits\": 4", "\"bits\": true", "quantization bits true"),
        ("\"bits\": 4", "\"bits\": 4, \"global_scale\": true", "nvfp4 with a global_scale"),
    ] {
        std::fs::write(output.join("config.json"), config.replace(from, to)).unwrap();
        let error = Opened::open(&output).and_then(Opened::evaluable).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("model.safetensors: tensor "), "{error}");
        assert!(error.contains("nvfp4 (4 bits, groups of 16)"), "{error}");
    }
    // Absent numbers are the mode's own, as for mlx-lm.
    let sparse = config.replace("\"group_size\": 16", "\"group_size\": null").replace("\"bits\": 4,", "");
    assert_ne!(sparse, config);
    std::fs::write(output.join("config.json"), &config).unwrap();
    let expected = measure(&output, 1).unwrap();
    std::fs::write(output.join("config.json"), sparse).unwrap();
    assert_eq!(measure(&output, 1).unwrap(), expected);
}

/// A directory as older versions of mlx-lm, and its model of DeepSeek-V2, have it: `kv_b_proj` in one piece, no
/// index, and nothing about quantization in config.json.
#[test]
fn an_mlx_directory_is_known_by_the_names_of_its_tensors() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, mlx] = ["plain", "mlx"].map(|name| directory.path().join(name));
    let size = maker::Size::default();
    let mut checkpoint = maker::checkpoint(size, maker::Storage::Plain(Dtype::BF16));
    checkpoint.tensors.retain(|tensor| !tensor.name.starts_with("model.layers.2."));
    checkpoint.indexed = false;
    for path in [&plain, &mlx] {
        std::fs::create_dir(path).unwrap();
    }
    checkpoint.write(&plain);

    let (experts, mut tensors): (Vec<_>, Vec<_>) =
        checkpoint.tensors.drain(..).partition(|tensor| tensor.name.contains(".experts."));
    for part in ["gate_proj", "up_proj", "down_proj"] {
        let of_part: Vec<_> = experts.iter().filter(|tensor| tensor.name.contains(part)).collect();
        let mut stack = of_part[0].clone();
        stack.name = format!("model.layers.1.mlp.switch_mlp.{part}.weight");
        stack.shape.insert(0, of_part.len());
        stack.bytes = of_part.iter().flat_map(|tensor| tensor.bytes.clone()).collect();
        tensors.push(stack);
    }
    checkpoint.tensors = tensors;
    checkpoint.write(&mlx);
    let windows = Windows::from_tokens((0..48 * 8).map(|i: u32| i * 7919 % 320).collect(), 48);
    let [plain, mlx] = [plain, mlx].map(|path| {
        let model = Opened::open(&path).unwrap();
        evaluate::perplexity(model.store().unwrap(), &windows, &mut Unobserved).unwrap()
    });
    assert_eq!(plain, mlx);
}
