//! Budgets: types chosen tensor by tensor for a size.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};

use requant::Result;
use requant::pipeline::{Manifest, Settings, manifest_path};
use requant::plan::budget::{self, Fitted, Watch};
use requant::plan::{self, Blueprint, Budget, Options, Rule, Rules, summary};

use crate::conversion::{Silent, convert_with, model, open, settings};
use crate::served::{ID, Served};

pub(crate) fn fit(format: &str, options: &Options, budget: Budget, threads: usize) -> Result<Fitted> {
    let source = open(&model()).unwrap();
    let watch = Watch { begin: &|_| {}, advance: &|_| {} };
    budget::fit(&source, format, options, budget, threads, &watch, &AtomicBool::new(false))
}

fn bits(blueprint: &Blueprint) -> f64 {
    summary(&open(&model()).unwrap(), blueprint, 0).bits_per_weight
}

/// Everything about a result that can differ.
pub(crate) fn described(blueprint: &Blueprint) -> String {
    let tensors = blueprint.tensors.iter();
    let tensors: Vec<_> = tensors
        .map(|tensor| (&tensor.names, &tensor.type_name, &tensor.pieces, &tensor.placements))
        .collect();
    format!("{tensors:?} {:?} {:?}", blueprint.files, blueprint.sidecars)
}

#[test]
fn the_result_is_within_its_budget_and_better_the_larger_that_is() {
    for (format, sizes) in [
        ("q4_k_m", [1_900_000, 2_100_000, 2_300_000, 2_305_000, 3_000_000, 4_300_000]),
        ("mlx-4bit", [1_500_000, 1_700_000, 2_300_000, 2_305_000, 3_000_000, 4_300_000]),
    ] {
        let mut last = f64::INFINITY;
        for size in sizes {
            let fitted = fit(format, &Options::default(), Budget::Bytes(size), 2).unwrap();
            let found = fitted.blueprint.len_bytes();
            assert!(found <= size, "{format}: {found} of {size}");
            // What is left is less than the smallest tensors' next step takes.
            assert!(size - found < 40_000 || size == 4_300_000, "{format}: {found} of {size}");
            assert!(fitted.mean_error < last, "{format} {size}: {} after {last}", fitted.mean_error);
            last = fitted.mean_error;
        }
        for wanted in [3.5, 4.3, 4.5, 6.0] {
            let fitted = fit(format, &Options::default(), Budget::BitsPerWeight(wanted), 2).unwrap();
            let found = bits(&fitted.blueprint);
            assert!(found <= wanted && wanted - found < 0.08, "{format}: {found} of {wanted}");
        }
    }
}

#[test]
fn its_recipe_gives_the_same_plan() {
    for (format, budget) in [("Q4_K_M", Budget::BitsPerWeight(4.6)), ("mlx-3bit", Budget::Bytes(2_400_000))] {
        let fitted = fit(format, &Options::default(), budget, 2).unwrap();
        let text = fitted.rules.to_toml(&format.to_lowercase());
        let rules = Rules::from_toml(Path::new("r.toml"), &text).unwrap();
        let source = open(&model()).unwrap();
        let again = plan::blueprint(&source, format, &Options { rules, ..Options::default() }).unwrap();
        assert_eq!(described(&again), described(&fitted.blueprint));
    }
}

/// The packed families: layers that engines fuse get one type, and the result says which is which.
#[test]
fn packed_formats_are_mixed_by_whole_sets() {
    let directory = tempfile::tempdir().unwrap();
    for format in ["compressed-tensors-w4a16", "compressed-tensors-w4a16-asym-g64", "gptq-4bit-128g"] {
        let best = fit(format, &Options::default(), Budget::Bytes(1 << 40), 2).unwrap();
        let mut last = best.mean_error;
        for saved in [1, 40_000, 80_000] {
            let size = best.blueprint.len_bytes() - saved;
            let fitted = fit(format, &Options::default(), Budget::Bytes(size), 2).unwrap();
            assert!(
                fitted.blueprint.len_bytes() <= size,
                "{format}: {} of {size}",
                fitted.blueprint.len_bytes()
            );
            assert!(fitted.mean_error > last, "{format}: {} after {last}", fitted.mean_error);
            last = fitted.mean_error;

            let rules = Rules::from_toml(Path::new("r.toml"), &fitted.rules.to_toml(format)).unwrap();
            // Experts are one expression for each type, not one for each expert.
            assert!(rules.iter().count() < 30, "{format}: {}", rules.iter().count());
            let options = Options { rules, ..Options::default() };
            let again = plan::blueprint(&open(&model()).unwrap(), format, &options).unwrap();
            assert_eq!(described(&again), described(&fitted.blueprint), "{format}");

            let output = directory.path().join(format!("{format}-{saved}"));
            convert_with(&model(), &settings(format, 2), &options, &output, &Silent).unwrap();
            let found: std::collections::BTreeSet<String> = requant::artifact::Artifact::open(&output)
                .unwrap()
                .tensors
                .into_iter()
                .map(|tensor| tensor.type_name)
                .collect();
            let planned = fitted.blueprint.tensors.iter().map(|tensor| tensor.type_name.clone()).collect();
            assert!(found.len() > 3, "{format}: {found:?}");
            if !format.starts_with("compressed") {
                assert_eq!(found, planned, "{format}");
            }
            // And it can be read: every packed module has a type that its tensors show.
            open(&output).unwrap();
        }
    }
    let nothing = fit("awq-4bit-64g", &Options::default(), Budget::BitsPerWeight(5.0), 1).err().unwrap();
    assert!(nothing.to_string().contains("nothing to choose"), "{nothing}");
}

#[test]
fn the_choice_does_not_depend_on_threads_or_runs() {
    let runs = [1, 3, 3]
        .map(|threads| fit("q4_k_m", &Options::default(), Budget::BitsPerWeight(4.4), threads).unwrap());
    assert!(runs.windows(2).all(|pair| pair[0].rules == pair[1].rules));
    assert!(runs.windows(2).all(|pair| pair[0].mean_error.to_bits() == pair[1].mean_error.to_bits()));
}

#[test]
fn a_mix_of_the_same_size_as_a_fixed_one_has_less_error_and_the_measured_error_is_the_real_one() {
    let directory = tempfile::tempdir().unwrap();
    // Mean over the parameters of all tensors that are chosen for of the relative squared error.
    let real = |name: &str, format: &str, options: &Options| -> f64 {
        let settings = Settings { error_report: true, ..settings(format, 2) };
        let outcome =
            convert_with(&model(), &settings, options, &directory.path().join(name), &Silent).unwrap();
        let report = outcome.manifest.error_report.unwrap();
        let quantized = report.tensors.iter().filter(|tensor| {
            !["F32", "BF16"].contains(&&*tensor.type_name)
                && !["output.weight", "lm_head.weight"].contains(&&*tensor.name)
        });
        let (loss, parameters) = quantized.fold((0.0, 0.0), |(loss, parameters), tensor| {
            let weight = tensor.parameters as f64;
            (loss + weight * tensor.relative_error.unwrap().powi(2), parameters + weight)
        });
        loss / parameters
    };
    for format in ["q4_k_m", "q3_k_m", "mlx-4bit"] {
        let source = open(&model()).unwrap();
        let fixed = plan::blueprint(&source, format, &Options::default()).unwrap();
        let fitted = fit(format, &Options::default(), Budget::Bytes(fixed.len_bytes()), 2).unwrap();
        let options = Options { rules: fitted.rules, ..Options::default() };
        let (mixed, fixed) =
            (real(&format!("{format}-mixed"), format, &options), real(format, format, &Options::default()));
        assert!(mixed < fixed, "{format}: {mixed} {fixed}");
        // Up to three quarters of a tensor's rows are not looked at; they are like the others.
        assert!((fitted.mean_error / mixed - 1.0).abs() < 0.02, "{format}: {} {mixed}", fitted.mean_error);
    }
}

#[test]
fn rules_stay_and_gate_and_up_projection_are_alike() {
    let rules = Rules::new(vec![
        Rule::from_argument("^output=q8_0").unwrap(),
        Rule::from_argument("token_embd=q2_k").unwrap(),
    ]);
    let options = Options { rules, ..Options::default() };
    let fitted = fit("q4_k_m", &options, Budget::BitsPerWeight(4.7), 2).unwrap();
    let type_of = |name: &str| {
        let found = fitted.blueprint.tensors.iter().find(|tensor| tensor.names[0] == name);
        found.unwrap_or_else(|| panic!("{name}")).type_name.as_str()
    };
    assert_eq!((type_of("output.weight"), type_of("token_embd.weight")), ("Q8_0", "Q2_K"));
    for (gate, up) in
        [("ffn_gate", "ffn_up"), ("ffn_gate_exps", "ffn_up_exps"), ("ffn_gate_shexp", "ffn_up_shexp")]
    {
        for layer in if gate == "ffn_gate" { 0..1 } else { 1..3 } {
            let full = |name: &str| format!("blk.{layer}.{name}.weight");
            assert_eq!(type_of(&full(gate)), type_of(&full(up)), "{layer} {gate}");
        }
    }
    assert_eq!(fitted.rules.get(0), options.rules.get(0));
}

#[test]
fn too_small_a_budget_is_told_the_least_and_that_is_enough() {
    for format in ["q4_k_m", "mlx-4bit"] {
        let error = fit(format, &Options::default(), Budget::Bytes(1000), 2).err().unwrap().to_string();
        assert!(error.contains("--target-size 1000: too small"), "{error}");
        let words: Vec<&str> = error.split_whitespace().collect();
        let before = |unit: &str| words[words.iter().position(|word| word.starts_with(unit)).unwrap() - 1];
        let least: u64 = before("bytes").parse().unwrap();
        assert_eq!(
            fit(format, &Options::default(), Budget::Bytes(least), 2).unwrap().blueprint.len_bytes(),
            least
        );
        assert!(fit(format, &Options::default(), Budget::Bytes(least - 1), 2).is_err());
        let bits: f64 = before("bits").parse().unwrap();
        assert!(fit(format, &Options::default(), Budget::BitsPerWeight(bits), 2).is_ok());
        let error = fit(format, &Options::default(), Budget::BitsPerWeight(bits - 0.01), 2).err().unwrap();
        assert!(error.to_string().contains(&format!("{least} bytes")), "{error}");
    }
}

#[test]
fn what_leaves_no_choice_is_named() {
    for (format, family) in [("f16", "GGUF"), ("mlx-bf16", "MLX"), ("awq-4bit-64g", "AWQ")] {
        let error =
            fit(format, &Options::default(), Budget::BitsPerWeight(5.0), 1).err().unwrap().to_string();
        assert!(error.contains("nothing to choose") && error.contains(family), "{error}");
    }
    let everything = Rules::new(vec![Rule::from_argument("weight=q4_0").unwrap()]);
    let options = Options { rules: everything, ..Options::default() };
    let error = fit("q4_k_m", &options, Budget::BitsPerWeight(5.0), 1).err().unwrap().to_string();
    assert!(error.contains("nothing to choose"), "{error}");
}

#[test]
fn it_can_be_watched_and_stopped() {
    let source = open(&model()).unwrap();
    let (total, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = Watch {
        begin: &|bytes| total.store(bytes, Ordering::Relaxed),
        advance: &|bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        },
    };
    let run = |stop: bool| {
        let stop = AtomicBool::new(stop);
        budget::fit(&source, "q4_0", &Options::default(), Budget::BitsPerWeight(5.0), 2, &watch, &stop)
    };
    assert!(run(false).is_ok());
    assert_eq!(total.load(Ordering::Relaxed), done.load(Ordering::Relaxed));
    // Between a quarter and all of what is there.
    assert!((1_000_000..5_000_000).contains(&total.load(Ordering::Relaxed)));
    assert!(matches!(run(true), Err(requant::Error::Interrupted)));
}

#[test]
fn a_model_on_a_hub_is_measured_there() {
    let served = Served::model();
    let local = fit("q4_k_m", &Options::default(), Budget::BitsPerWeight(4.5), 2).unwrap();
    let plan = served.run(&["plan", ID, "--to", "q4_k_m", "--target-bpw", "4.5", "--json"]);
    let message = String::from_utf8_lossy(&plan.stderr).into_owned();
    assert!(plan.status.success(), "{message}");
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["recipe"].as_str().unwrap(), local.rules.to_toml("q4_k_m"));

    let output = served.path("m.gguf");
    let name = output.to_str().unwrap();
    let convert = served.run(&["convert", ID, "--to", "q4_k_m", "--target-bpw", "4.5", "-o", name, "--json"]);
    assert!(convert.status.success(), "{}", String::from_utf8_lossy(&convert.stderr));
    let directory = tempfile::tempdir().unwrap();
    let options = Options { rules: local.rules, ..Options::default() };
    let copy = directory.path().join("m.gguf");
    let outcome = convert_with(&model(), &settings("q4_k_m", 2), &options, &copy, &Silent).unwrap();
    // The models' names differ, and with them the files' headers.
    let digests = |manifest: &Manifest| -> Vec<(String, String, String)> {
        let tensors = manifest.tensors.iter();
        tensors.map(|tensor| (tensor.name.clone(), tensor.type_name.clone(), tensor.sha256.clone())).collect()
    };
    let streamed = Manifest::read(&manifest_path(&output)).unwrap();
    assert_eq!(digests(&streamed), digests(&outcome.manifest));
}

#[test]
fn a_mix_of_the_same_size_diverges_less() {
    let directory = tempfile::tempdir().unwrap();
    let divergence = |name: &str, format: &str, options: &Options| -> f64 {
        let output = directory.path().join(format!("{name}.gguf"));
        convert_with(&model(), &settings(format, 2), options, &output, &Silent).unwrap();
        let report = crate::comparison::compare(&output, &model(), 4, None);
        report.against.unwrap().divergence.mean.value
    };
    for format in ["q4_k_m", "q3_k_m"] {
        let source = open(&model()).unwrap();
        let fixed = plan::blueprint(&source, format, &Options::default()).unwrap();
        let fitted = fit(format, &Options::default(), Budget::Bytes(fixed.len_bytes()), 2).unwrap();
        let options = Options { rules: fitted.rules, ..Options::default() };
        let mixed = divergence(&format!("{format}-mixed"), format, &options);
        let fixed = divergence(format, format, &Options::default());
        assert!(mixed < 0.75 * fixed, "{format}: {mixed} {fixed}");
    }
}
