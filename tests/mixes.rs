//! What budgets choose from: every type of a family, for models here and on a hub.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use requant::Result;
use requant::artifact::Artifact;
use requant::checkpoint::{Checkpoint, Encoding, TileReader};
use requant::pipeline::{self, Settings};
use requant::plan::budget::{self, Watch};
use requant::plan::{self, Blueprint, Budget, Options, Rule, Rules, TARGETS};
use requant::source::{LocalDirectory, Source, SourceFile};
use test_hub::simulate::{self, Dimensions};

use crate::budget::{described, fit};
use crate::conversion::{Silent, convert, convert_with, model, open, settings};
use crate::served::{ID, Served};

pub(crate) const WATCH: Watch<'static> = Watch { begin: &|_| {}, advance: &|_| {} };

pub(crate) fn rules(texts: &[&str]) -> Options {
    let rules = texts.iter().map(|text| Rule::from_argument(text).unwrap()).collect();
    Options { rules: Rules::new(rules), ..Options::default() }
}

pub(crate) fn of_type(blueprint: &Blueprint, name: &str) -> String {
    let found = blueprint.tensors.iter().find(|tensor| tensor.names[0] == name);
    found.unwrap_or_else(|| panic!("{name}")).type_name.clone()
}

/// Mean over the parameters of what a budget chooses for of the relative squared error.
pub(crate) fn mean_error(report: &pipeline::ErrorReport) -> f64 {
    let chosen = report.tensors.iter().filter(|tensor| {
        !["F32", "BF16"].contains(&&*tensor.type_name)
            && !["output.weight", "lm_head.weight"].contains(&&*tensor.name)
    });
    let (loss, parameters) = chosen.fold((0.0, 0.0), |(loss, parameters), tensor| {
        let weight = tensor.parameters as f64;
        (loss + weight * tensor.relative_error.unwrap().powi(2), parameters + weight)
    });
    loss / parameters
}

/// Every uniform format of a family is a point that a budget of its size can reach or better.
#[test]
fn a_mix_is_at_least_as_good_as_every_uniform_format_of_its_size() {
    let directory = tempfile::tempdir().unwrap();
    // What a budget chooses from: no codebooks, and nothing for models that were trained with two or three values.
    let is_chosen = |name: &str| {
        !["iq1", "iq2", "iq3", "tq"].iter().any(|prefix| name.starts_with(prefix))
            && !matches!(name, "q1_0" | "q2_0")
    };
    let is_float_or_plain = |name: &str| {
        !matches!(name, "f32" | "f16" | "bf16" | "mlx-bf16") && !name.contains("mixed") && is_chosen(name)
    };
    for target in TARGETS.iter().filter(|target| target.family() != "AWQ") {
        for format in target.formats().iter().map(|format| format.name).filter(|name| is_float_or_plain(name))
        {
            let source = open(&model()).unwrap();
            let uniform = plan::blueprint(&source, format, &Options::default()).unwrap();
            // A mix is told of in the configuration, module by module in MLX's.
            let told = if uniform.is_directory { 12_000 } else { 0 };
            let size = uniform.len_bytes() + told;
            let fitted = fit(format, &Options::default(), Budget::Bytes(size), 2).unwrap();
            assert!(fitted.blueprint.len_bytes() <= size, "{format}");
            let settings = Settings { error_report: true, ..settings(format, 2) };
            let output = directory.path().join(format);
            let outcome = convert_with(&model(), &settings, &Options::default(), &output, &Silent).unwrap();
            let uniform = mean_error(&outcome.manifest.error_report.unwrap());
            assert!(fitted.mean_error <= 1.02 * uniform, "{format}: {} {uniform}", fitted.mean_error);
        }
    }
}

/// Float types are chosen where they are the best for their bits, beside integers, and the result can be read.
#[test]
fn floats_and_integers_are_mixed() {
    let directory = tempfile::tempdir().unwrap();
    for (format, bits, floats) in [
        ("mlx-4bit", 4.35, &["mlx_mxfp4", "mlx_nvfp4"][..]),
        ("mlx-mxfp4", 4.3, &["mlx_mxfp4", "mlx_nvfp4"]),
        ("q4_k_m", 4.35, &["IQ4_XS", "IQ4_NL", "MXFP4", "NVFP4"]),
        ("compressed-tensors-w4a16", 10.3, &["ct_nvfp4", "ct_mxfp4", "F8_E4M3"]),
        ("compressed-tensors-nvfp4", 10.4, &["ct_nvfp4", "ct_mxfp4", "F8_E4M3"]),
    ] {
        let fitted = fit(format, &Options::default(), Budget::BitsPerWeight(bits), 2).unwrap();
        let kinds: BTreeSet<&str> =
            fitted.blueprint.tensors.iter().map(|tensor| tensor.type_name.as_str()).collect();
        assert!(floats.iter().any(|float| kinds.contains(float)), "{format}: {kinds:?}");

        let rules = Rules::from_toml(Path::new("r.toml"), &fitted.rules.to_toml(format)).unwrap();
        let options = Options { rules, ..Options::default() };
        let again = plan::blueprint(&open(&model()).unwrap(), format, &options).unwrap();
        assert_eq!(described(&again), described(&fitted.blueprint), "{format}");
        let name = if format.starts_with('q') { "m.gguf" } else { format };
        let output = directory.path().join(name);
        convert_with(&model(), &settings(format, 2), &options, &output, &Silent).unwrap();
        let found = Artifact::open(&output).unwrap();
        assert_eq!(found.parameters(), fitted.blueprint.parameters(), "{format}");
        let report = crate::comparison::compare(&output, &model(), 1, None);
        let divergence = report.against.unwrap().divergence.mean.value;
        // Q4_K_M has 0.0013 on all of the text.
        assert!((1e-5..0.01).contains(&divergence), "{format}: {divergence}");
    }
}

/// The experts of a layer get one type, and what an engine reads of it does not grow with their number.
#[test]
fn formats_of_compressed_tensors_are_mixed_by_whole_sets() {
    let mut all = BTreeSet::new();
    for (format, bits) in [
        ("compressed-tensors-w4a16", 10.1),
        ("compressed-tensors-w4a16-asym", 10.3),
        ("compressed-tensors-mxfp4", 10.6),
        ("compressed-tensors-fp8-block", 8.6),
    ] {
        let fitted = fit(format, &Options::default(), Budget::BitsPerWeight(bits), 2).unwrap();
        for layer in 1..3 {
            let of_experts: BTreeSet<&str> = (fitted.blueprint.tensors.iter())
                .filter(|tensor| {
                    tensor.is_weight
                        && tensor.names[0].starts_with(&format!("model.layers.{layer}.mlp.experts."))
                })
                .map(|tensor| tensor.type_name.split("_channel").next().unwrap())
                .collect();
            assert_eq!(of_experts.len(), 1, "{format}: {of_experts:?}");
            // vLLM reads no zero points of routed experts.
            assert!(
                format.contains("asym") || !of_experts.iter().any(|name| name.contains("asym")),
                "{of_experts:?}"
            );
        }
        let config = fitted.blueprint.sidecars.iter().find(|sidecar| sidecar.name == "config.json").unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
        let section = &config["quantization_config"];
        assert_eq!(section["format"], "mixed-precision", "{format}");
        for group in section["config_groups"].as_object().unwrap().values() {
            all.insert(group["format"].as_str().unwrap().to_owned());
            assert!(group["targets"].as_array().unwrap().len() < 40, "{format}: {group}");
        }
    }
    assert!(all.len() >= 3, "{all:?}");
    // What is not FP8 has no blocks to carry over.
    let directory = tempfile::tempdir().unwrap();
    let plain = crate::maker::checkpoint(
        crate::maker::Size::default(),
        crate::maker::Storage::Plain(requant_formats::Dtype::BF16),
    );
    plain.write(directory.path());
    let source = open(directory.path()).unwrap();
    let budget = Budget::BitsPerWeight(16.0);
    let fitted = budget::fit(
        &source,
        "compressed-tensors-w4a16",
        &Options::default(),
        budget,
        2,
        &WATCH,
        &AtomicBool::new(false),
    );
    let fitted = fitted.unwrap();
    assert!(fitted.blueprint.tensors.iter().all(|tensor| tensor.type_name != "F8_E4M3"));
}

#[test]
fn rules_name_the_float_types_of_their_family() {
    for (format, rule, name, expected) in [
        ("mlx-4bit", "lm_head=mxfp8", "lm_head.weight", "mlx_mxfp8"),
        ("mlx-mxfp4", "q_a_proj=nvfp4", "model.layers.0.self_attn.q_a_proj.weight", "mlx_nvfp4"),
        ("q4_k_m", "token_embd=mxfp4", "token_embd.weight", "MXFP4"),
        ("q8_0", "output=nvfp4", "output.weight", "NVFP4"),
        (
            "compressed-tensors-w4a16",
            "o_proj=nvfp4",
            "model.layers.0.self_attn.o_proj.weight_packed",
            "ct_nvfp4",
        ),
        ("compressed-tensors-nvfp4", "o_proj=fp8-block", "model.layers.0.self_attn.o_proj.weight", "F8_E4M3"),
    ] {
        let blueprint = plan::blueprint(&open(&model()).unwrap(), format, &rules(&[rule])).unwrap();
        assert_eq!(of_type(&blueprint, name), expected, "{format} {rule}");
    }
}

/// Reads that a plan takes of a hub: few for each layer, whatever its experts.
#[test]
fn experts_by_the_hundreds_take_few_requests() {
    let slice = Dimensions { vocab: 2048, ..Dimensions::slice(1, 2, 256) };
    for (dimensions, format, bits) in [
        (slice.clone(), "gptq-4bit-128g", "4.8"),
        (slice, "q4_k_m", "4.5"),
        (Dimensions::FULL, "compressed-tensors-w4a16", "4.3"),
    ] {
        let tokenizer = model();
        let options = simulate::Options { tokenizer: Some(&tokenizer), hashed: false, progress: &|_, _| () };
        let served = Served::repo(simulate::deepseek_v3(ID, &dimensions, &options).unwrap());
        let plan = served.json(&["plan", ID, "--to", format, "--target-bpw", bits]);
        assert!(plan["bits_per_weight"].as_f64().unwrap() <= bits.parse().unwrap(), "{plan}");
        let requests = served.hub.requests().len();
        // At most eleven kinds of matrices in a layer, three of them experts; 16 runs each and scales, those of a
        // matrix at once; each with a redirection; and the shards' headers.
        let reads = dimensions.layers() * (3 * 16 * 2 + 8 * 17);
        assert!(requests < 2 * reads + 1000, "{format}: {requests}");
        // What names layers does not grow with experts: config.json is kilobytes, the index lists every tensor.
        let recipe = plan["recipe"].as_str().unwrap();
        assert!(recipe.len() < 20_000, "{format}: {}", recipe.len());
    }
}

/// Codes that another format can hold are kept by a conversion, and the choice knows that.
#[test]
fn groups_that_a_type_holds_exactly_have_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("packed");
    convert(&model(), "compressed-tensors-w4a16-g32", 2, &packed).unwrap();
    let source = open(&packed).unwrap();
    for (format, bits, exact) in [("q4_k_m", 5.0, "Q4_0"), ("mlx-4bit", 5.3, "affine4_g32")] {
        let budget = Budget::BitsPerWeight(bits);
        let fitted =
            budget::fit(&source, format, &Options::default(), budget, 2, &WATCH, &AtomicBool::new(false));
        let fitted = fitted.unwrap();
        let tensors = fitted.blueprint.tensors.iter().filter(|tensor| {
            tensor.names[0].contains("exps.weight") || tensor.names[0].contains("switch_mlp")
        });
        for tensor in tensors {
            assert_eq!(tensor.type_name, exact, "{format}: {}", tensor.names[0]);
        }
        let settings = Settings { error_report: true, ..settings(format, 2) };
        let options = Options { rules: fitted.rules.clone(), ..Options::default() };
        let output = directory.path().join(format);
        let outcome = convert_with(&packed, &settings, &options, &output, &Silent).unwrap();
        let real = mean_error(&outcome.manifest.error_report.unwrap());
        assert!((fitted.mean_error / real - 1.0).abs() < 0.05, "{format}: {} {real}", fitted.mean_error);
    }
}

#[test]
fn a_packed_format_is_chosen_on_a_hub_as_from_a_copy() {
    let served = Served::model();
    for (format, bits) in
        [("compressed-tensors-w4a16", "10.3"), ("gptq-4bit-64g", "10.1"), ("mlx-4bit", "4.3")]
    {
        let local =
            fit(format, &Options::default(), Budget::BitsPerWeight(bits.parse().unwrap()), 2).unwrap();
        let arguments = ["--to", format, "--target-bpw", bits, "--save-recipe", format];
        let plan = served.json(&[&["plan", ID][..], &arguments].concat());
        assert_eq!(plan["recipe"].as_str().unwrap(), local.rules.to_toml(format), "{format}");
        let output = format!("{format}-out");
        // Ours would say where the source was.
        let card = if format == "mlx-4bit" { "mlx-lm" } else { "none" };
        served.json(&["convert", ID, "--to", format, "--recipe", format, "-o", &output, "--card", card]);
        let directory = tempfile::tempdir().unwrap();
        let options = Options { rules: local.rules, ..Options::default() };
        let copy = directory.path().join("out");
        let outcome = convert_with(&model(), &settings(format, 2), &options, &copy, &Silent).unwrap();
        let streamed = pipeline::Manifest::read(&pipeline::manifest_path(&served.path(&output))).unwrap();
        assert_eq!(streamed.files, outcome.manifest.files, "{format}");
    }
}

/// Counts reads.
struct Counting(LocalDirectory, Arc<AtomicU64>);

impl Source for Counting {
    fn location(&self) -> String {
        self.0.location()
    }

    fn files(&self) -> &[SourceFile] {
        self.0.files()
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_at(file, offset_bytes, buf)
    }
}

/// What a plan says about the requests it takes follows from these counts.
#[test]
fn reads_are_counted_before_they_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let formats =
        ["compressed-tensors-w4a16-asym", "compressed-tensors-nvfp4", "gptq-4bit-64g", "awq-4bit-64g"];
    for format in formats.into_iter().chain(["fp8"]) {
        let path = if format == "fp8" { model() } else { directory.path().join(format) };
        if format != "fp8" {
            convert(&model(), format, 2, &path).unwrap();
        }
        let count = Arc::new(AtomicU64::new(0));
        let source = Counting(LocalDirectory::open(&path).unwrap(), Arc::clone(&count));
        let checkpoint = Checkpoint::open(Box::new(source)).unwrap();
        for (id, tensor) in
            checkpoint.tensors().iter().enumerate().filter(|(_, tensor)| tensor.role.is_some())
        {
            let (rows, _) = tensor.matrix();
            let (mut reader, mut tile) = (TileReader::default(), Vec::new());
            let wanted = rows / 3..rows / 3 + 1;
            let (expected, held) = checkpoint.reads(id, wanted.clone());
            count.store(0, Ordering::Relaxed);
            reader.read(&checkpoint, id, wanted, &mut tile).unwrap();
            assert_eq!(count.swap(0, Ordering::Relaxed), expected as u64, "{format} {}", tensor.name);
            match tensor.encoding {
                Encoding::Packed(_) => {
                    reader.read(&checkpoint, id, held, &mut tile).unwrap();
                    assert_eq!(count.load(Ordering::Relaxed), 0, "{format} {}", tensor.name);
                }
                Encoding::Scaled(_) => {
                    // Scales of the whole at once: rows need no other read for theirs, and are the same.
                    let (mut every, mut again) = (Vec::new(), Vec::new());
                    reader.read(&checkpoint, id, 0..rows, &mut every).unwrap();
                    reader.hold_scales(&checkpoint, id).unwrap();
                    count.store(0, Ordering::Relaxed);
                    reader.read(&checkpoint, id, rows / 2..rows, &mut again).unwrap();
                    assert_eq!(count.load(Ordering::Relaxed), 1, "{format} {}", tensor.name);
                    assert!(every.ends_with(&again), "{format} {}", tensor.name);
                }
                Encoding::Plain => {}
            }
        }
    }
}
