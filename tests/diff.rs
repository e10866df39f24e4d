//! Two models tensor by tensor.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use requant::artifact::Artifact;
use serde_json::Value;

use crate::conversion::{convert, model};
use crate::maker::{self, Size, Storage};
use crate::served::text;

fn requant(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

fn diff(a: &Path, b: &Path, options: &[&str]) -> Value {
    let output =
        requant(&[&["diff", a.to_str().unwrap(), b.to_str().unwrap(), "--json", "-q"], options].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap()
}

fn names(side: &Value) -> Vec<&str> {
    list(side, "names").iter().map(|name| name.as_str().unwrap()).collect()
}

/// What the error report of a conversion says, worked out from both ends: only the order of the sums differs.
#[test]
fn a_result_against_its_source_has_the_errors_of_its_report() {
    let directory = tempfile::tempdir().unwrap();
    let model = model();
    for (to, name) in [("q4_k_m", "m.gguf"), ("mlx-4bit", "m")] {
        let output = directory.path().join(name);
        let done = requant(&[
            "convert",
            model.to_str().unwrap(),
            "--to",
            to,
            "-o",
            output.to_str().unwrap(),
            "--error-report",
            "--json",
            "-q",
        ]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        let reported = list(&report["error_report"], "tensors");
        let found = diff(&output, &model, &[]);
        let mut compared = 0;
        for pair in list(&found, "tensors") {
            let [name] = names(&pair["a"])[..] else { continue };
            let stem = |name: &str| name.trim_end_matches(".weight").to_owned();
            let of_name = reported.iter().find(|tensor| stem(tensor["name"].as_str().unwrap()) == stem(name));
            let Some(of_name) = of_name else { panic!("{name} is not in the report") };
            let (here, there) = (&pair["relative_error"], &of_name["relative_error"]);
            let (here, there) = (here.as_f64().unwrap(), there.as_f64().unwrap());
            assert!((here - there).abs() <= 1e-9 * there, "{name}: {here} {there}");
            assert_eq!(pair["parameters"], of_name["parameters"], "{name}");
            compared += 1;
        }
        assert!(compared > 40, "{compared}");
        assert!(
            found["relative_error"].as_f64().unwrap() > 0.01 && found["cosine"].as_f64().unwrap() > 0.9,
            "{found}"
        );
        // Nothing is left out: every byte of both is in a pair, or in what one of them has alone.
        for (side, only, path) in [("a", "only_a", &output), ("b", "only_b", &model)] {
            let paired = list(&found, "tensors").iter().map(|pair| &pair[side]);
            let alone = list(&found, only).iter();
            let bytes: u64 = paired.chain(alone).map(|side| side["bytes"].as_u64().unwrap()).sum();
            assert_eq!(bytes, Artifact::open(path).unwrap().tensor_bytes(), "{to} {side}");
            assert_eq!(found[side]["bytes"], bytes);
        }
        assert_eq!(list(&found, "only_a").len(), 0, "{:?}", list(&found, "only_a"));
        // The prediction layer, which neither format has.
        let alone: BTreeSet<&str> = list(&found, "only_b").iter().flat_map(names).collect();
        assert!(
            !alone.is_empty() && alone.iter().all(|name| name.starts_with("model.layers.3.")),
            "{alone:?}"
        );
        // A stack of experts is held against the experts.
        let stack = list(&found, "tensors").iter().find(|pair| list(&pair["b"], "names").len() > 8).unwrap();
        assert_eq!(names(&stack["a"]).len(), 1);
        assert!(names(&stack["b"])[0].contains("experts"));
    }
}

#[test]
fn a_result_against_another_shows_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let model = model();
    let [a, b, mlx] = ["a.gguf", "b.gguf", "mlx"].map(|name| directory.path().join(name));
    convert(&model, "q4_0", 1, &a).unwrap();
    convert(&model, "q8_0", 1, &b).unwrap();
    convert(&model, "mlx-8bit", 1, &mlx).unwrap();
    let same = diff(&a, &a, &[]);
    assert_eq!(same["relative_error"], 0.0);
    assert_eq!(same["cosine"], 1.0);
    for pair in list(&same, "tensors") {
        assert_eq!(pair["a"], pair["b"]);
        assert_eq!(pair["relative_error"], 0.0);
    }
    let other = diff(&a, &b, &[]);
    assert_eq!(list(&other, "tensors").len(), list(&same, "tensors").len());
    for pair in list(&other, "tensors") {
        let is_changed = pair["a"]["types"] != pair["b"]["types"];
        assert_eq!(is_changed, pair["relative_error"] != 0.0, "{pair}");
    }
    // Without weights the same pairs, and no errors; however many threads.
    let headers = diff(&a, &b, &["--headers"]);
    for (with, without) in list(&other, "tensors").iter().zip(list(&headers, "tensors")) {
        assert_eq!(
            (&with["a"], &with["b"], &with["parameters"]),
            (&without["a"], &without["b"], &without["parameters"])
        );
        assert!(without["relative_error"].is_null() && without["cosine"].is_null());
    }
    assert!(headers["relative_error"].is_null());
    assert_eq!(diff(&a, &b, &["--threads", "1"]), other);
    // Two eight-bit formats are close, in whatever container.
    let close = diff(&mlx, &b, &[]);
    assert!(close["relative_error"].as_f64().unwrap() < 0.02, "{}", close["relative_error"]);
    let page = requant(&["diff", a.to_str().unwrap(), b.to_str().unwrap(), "-q"]);
    let page = text(&page.stdout);
    assert!(
        page.contains("Q4_0") && page.contains("Q8_0") && page.contains("all together: relative error"),
        "{page}"
    );
    let all = text(&requant(&["diff", a.to_str().unwrap(), b.to_str().unwrap(), "-q", "--all"]).stdout);
    assert!(all.contains("output_norm.weight") && !page.contains("output_norm.weight"), "{all}");
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let model = model();
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    maker::checkpoint(Size::default(), Storage::Plain(requant_formats::Dtype::BF16)).write(&other);
    let refused = |a: &str, b: &str, words: &[&str]| {
        let output = requant(&["diff", a, b, "-q"]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(output.stdout.is_empty());
    };
    let model = model.to_str().unwrap();
    refused(model, other.to_str().unwrap(), &["cannot be compared"]);
    refused(model, "no/where.gguf", &["no/where.gguf"]);
    refused(model, "org/name", &["org/name", "fetch"]);
}

/// `inspect PATH TENSOR`, against the weights as the library reads them.
#[test]
fn inspect_shows_what_the_weights_of_a_tensor_are_like() {
    let directory = tempfile::tempdir().unwrap();
    let model = model();
    let file = directory.path().join("m.gguf");
    convert(&model, "f32", 1, &file).unwrap();
    let inspect = |path: &Path, name: &str| -> Value {
        let output = requant(&["inspect", path.to_str().unwrap(), name, "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // The bytes of the file are the weights.
    let of_file = inspect(&file, "output_norm.weight");
    let opened = requant::opened::Opened::open(&file).unwrap();
    let store = opened.store().unwrap();
    let weight = store.weight(requant::family::Role::OutputNorm).unwrap();
    let mut weights = vec![0.0; weight.cols];
    store.read_rows(&weight, 0..1, &mut weights).unwrap();
    assert_eq!(of_file["elements"], weights.len());
    let least = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(of_file["minimum"].as_f64().unwrap() as f32, least);
    assert_eq!(of_file["maximum"].as_f64().unwrap() as f32, greatest);
    let mean = weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() / weights.len() as f64;
    assert!((of_file["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    let bins = list(&of_file, "histogram");
    let count = |bin: &Value| bin["count"].as_u64().unwrap();
    assert_eq!(bins.iter().map(count).sum::<u64>(), weights.len() as u64);
    let within = |bin: &Value| {
        let (from, to) = (bin["from"].as_f64().unwrap(), bin["to"].as_f64().unwrap());
        weights.iter().filter(|&&weight| f64::from(weight) >= from && f64::from(weight) < to).count() as u64
    };
    assert_eq!(within(&bins[3]), count(&bins[3]));
    // The same weights by another name, and a stack with all experts of a layer.
    let mut of_checkpoint = inspect(&model, "model.norm.weight");
    assert_eq!(of_checkpoint["tensors"][0]["name"], "model.norm.weight");
    of_checkpoint["tensors"] = of_file["tensors"].clone();
    assert_eq!(of_checkpoint, of_file);
    let stack = inspect(&file, "blk.1.ffn_down_exps.weight");
    let shape: u64 = list(&stack["tensors"][0], "shape").iter().map(|len| len.as_u64().unwrap()).product();
    assert_eq!(stack["elements"], shape);

    let page = requant(&["inspect", file.to_str().unwrap(), "output_norm.weight"]);
    assert!(
        text(&page.stdout).contains("standard deviation") && text(&page.stdout).contains("###"),
        "{}",
        text(&page.stdout)
    );
    let unknown = requant(&["inspect", file.to_str().unwrap(), "output_nrom.weight"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("output_norm.weight"), "{}", text(&unknown.stderr));
    let on_hub = requant(&["inspect", "org/name", "output_norm.weight"]);
    assert_eq!(on_hub.status.code(), Some(1));
    assert!(text(&on_hub.stderr).contains("requant fetch"), "{}", text(&on_hub.stderr));
}
