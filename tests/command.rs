//! The command line as scripts see it: exit codes, streams, JSON keys.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::conversion::{convert, model, names};

fn requant(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = requant(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn plan_states_what_convert_then_writes() {
    let directory = tempfile::tempdir().unwrap();
    for (format, name) in [
        ("q4_k_m", "m.gguf"),
        ("Q8_0", "n.gguf"),
        ("mlx-4bit", "m"),
        ("mlx-bf16", "n"),
        ("mlx-nvfp4", "f"),
        ("mlx-mixed-3-6", "x"),
    ] {
        let model = model();
        let output = directory.path().join(name);
        let plan = json(&["plan", path(&model), "--to", format, "--json"]);
        let run = json(&["convert", path(&model), "--to", format, "-o", path(&output), "--json", "--quiet"]);

        assert_eq!(run["output"], path(&output));
        assert_eq!(run["tensors"], plan["tensors_out"]);
        assert_eq!(run["bytes_out"], plan["bytes_out"]);
        assert_eq!(run["bits_per_weight"], plan["bits_per_weight"]);
        assert!(run["seconds"].as_f64().unwrap() > 0.0);
        assert!(run["peak_rss_bytes"].as_u64().unwrap() <= plan["peak_ram_bytes"].as_u64().unwrap());
        let read = run["bytes_in"].as_u64().unwrap();
        assert_eq!(read + plan["dropped"]["bytes"].as_u64().unwrap(), plan["bytes_in"].as_u64().unwrap());

        let on_disk: u64 = if output.is_dir() {
            // What follows from the result, its digests too, has no length before.
            let planned = |name: &String| !["requant.manifest.json", "README.md"].contains(&name.as_str());
            let files = names(&output).into_iter().filter(planned);
            files.map(|name| output.join(name).metadata().unwrap().len()).sum()
        } else {
            output.metadata().unwrap().len()
        };
        assert_eq!(plan["bytes_out"], on_disk, "{format}");

        let types = plan["types"].as_object().unwrap();
        let sum = |key: &str| types.values().map(|totals| totals[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!(plan["parameters"], sum("parameters"));
        assert_eq!(plan["tensors_out"], sum("tensors"));
        let bits = 8.0 * sum("bytes") as f64 / sum("parameters") as f64;
        assert!((plan["bits_per_weight"].as_f64().unwrap() - bits).abs() < 1e-9);
        assert_eq!(plan["tensors_in"], 383);
        assert!(plan["dropped"]["tensors"].as_u64().unwrap() > 0);
        assert!(plan["peak_disk_bytes"].as_u64().unwrap() >= on_disk);

        let inspected = json(&["inspect", path(&output), "--json"]);
        assert_eq!(inspected["parameters"], plan["parameters"]);
        assert_eq!(inspected["bits_per_weight"], plan["bits_per_weight"]);
        assert_eq!(inspected["types"], plan["types"], "{format}");
        assert_eq!(json(&["verify", path(&output), "--json"])["ok"], true);
    }
}

#[test]
fn plan_says_that_the_prediction_layer_is_dropped() {
    for format in ["q4_k_m", "mlx-4bit"] {
        let output = requant(&["plan", path(&model()), "--to", format]);
        let text = text(&output.stdout);
        assert!(text.contains("dropped") && text.contains("prediction"), "{text}");
    }
}

#[test]
fn inspect_reads_a_checkpoint() {
    let value = json(&["inspect", path(&model()), "--json"]);
    assert_eq!(value["container"], "safetensors");
    assert_eq!(value["metadata"]["model_type"], "deepseek_v3");
    assert_eq!(value["types"]["F8_E4M3"]["bytes"], value["types"]["F8_E4M3"]["parameters"]);
    let output = requant(&["inspect", path(&model())]);
    assert!(text(&output.stdout).contains("bits per weight"));
}

#[test]
fn exit_codes_and_streams() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let (model, output) = (model(), path(&output));

    let usage = requant(&["convert", path(&model)]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(usage.stdout.is_empty() && text(&usage.stderr).contains("--to"));
    assert_eq!(requant(&["plan", path(&model), "--to", "q4_0", "--threads", "0"]).status.code(), Some(2));
    assert_eq!(requant(&["plan", path(&model), "--to", "q4_0", "--memory", "lots"]).status.code(), Some(2));

    let unknown = requant(&["convert", path(&model), "--to", "q9_9", "-o", output]);
    assert_eq!(unknown.status.code(), Some(2));
    let message = text(&unknown.stderr);
    assert!(
        message.contains("q9_9") && message.contains("q4_k_m") && message.contains("mlx-4bit"),
        "{message}"
    );

    let missing = requant(&["plan", "no/such/place", "--to", "q4_0"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no/such/place"));

    for arguments in [&["inspect", "no/such/place"][..], &["perplexity", "no/such/place", "--text", "x"]] {
        let nowhere = requant(arguments);
        assert_eq!(nowhere.status.code(), Some(1));
        assert!(text(&nowhere.stderr).contains("no/such/place"), "{}", text(&nowhere.stderr));
    }

    let tight = requant(&["convert", path(&model), "--to", "q4_0", "-o", output, "--memory", "1M"]);
    assert_eq!(tight.status.code(), Some(1));
    assert!(text(&tight.stderr).contains("--memory"));

    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[test]
fn verify_fails_with_a_line_for_each_problem() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let done = requant(&["convert", path(&model()), "--to", "q4_0", "-o", path(&output)]);
    assert!(done.status.success());
    // Not a terminal: plain lines, no control characters.
    let progress = text(&done.stderr);
    assert!(progress.contains("convert") && !progress.contains('\u{1b}'), "{progress:?}");
    let mut bytes = std::fs::read(&output).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&output, bytes).unwrap();
    let verified = requant(&["verify", path(&output)]);
    assert_eq!(verified.status.code(), Some(1));
    let found = text(&verified.stdout);
    assert!(found.contains("m.gguf: sha256") && found.contains("tensor"), "{found}");
}

#[test]
fn a_split_size_and_a_pre_tokenizer_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let model = model();
    let arguments = ["convert", path(&model), "--to", "q4_0", "-o", path(&output), "--json"];
    let value =
        json(&[&arguments[..], &["--split-max-size", "1M", "--tokenizer-pre", "deepseek-v3"]].concat());
    let files = value["files"].as_array().unwrap();
    assert!(files.len() > 1);
    assert_eq!(names(directory.path()).len(), files.len() + 1);
    let first = directory.path().join(files[0]["name"].as_str().unwrap());
    let inspected = json(&["inspect", path(&first), "--json"]);
    assert_eq!(inspected["files"].as_array().unwrap().len(), files.len());
}

#[test]
fn perplexity_keys_are_a_contract() {
    let directory = tempfile::tempdir().unwrap();
    let (output, heldout_path, ids) =
        (directory.path().join("m.gguf"), directory.path().join("text"), directory.path().join("ids.json"));
    let heldout = std::fs::read_to_string(crate::conversion::fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&heldout_path, &heldout[..6000]).unwrap();
    assert!(
        requant(&["convert", path(&model()), "--to", "q4_0", "-o", path(&output), "-q"]).status.success()
    );
    let model = model();
    let common = ["perplexity", path(&output), "-c", "128", "--json", "--against", path(&model)];
    let value = json(&[&common[..], &["--text", path(&heldout_path), "--tokens", path(&ids), "-q"]].concat());
    for key in ["perplexity", "perplexity_error", "tokens", "windows", "context", "seconds", "peak_rss_bytes"]
    {
        assert!(value[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {value:#}");
    }
    let against = &value["against"];
    let kld = ["median_kld", "mean_kld", "p90_kld", "p95_kld", "p99_kld", "p999_kld", "max_kld"]
        .map(|key| against[key].as_f64().unwrap_or_else(|| panic!("{key}: {against:#}")));
    assert!(kld[2..].is_sorted() && kld[0] < kld[1], "{kld:?}");
    assert!(against["perplexity"].as_f64().unwrap() > 1.0);
    assert!((0.5..=1.0).contains(&against["top1_agreement"].as_f64().unwrap()));
    assert!((0.0..0.1).contains(&against["rms_delta_p"].as_f64().unwrap()));
    for (number, layer) in against["layers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(layer["layer"], number);
        assert!(layer["relative_error"].as_f64().unwrap() > 0.0);
        assert!(layer["cosine"].as_f64().unwrap() > 0.9);
    }

    // The ids it wrote are the text; progress and running estimate are not on stdout.
    let again = requant(&[&common[..], &["--tokens", path(&ids)]].concat());
    let progress = text(&again.stderr);
    assert!(progress.contains("layer 3 of 3") && progress.contains("[2]"), "{progress}");
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&again["perplexity"], &again["against"]), (&value["perplexity"], against));

    for (arguments, status, named) in [
        (vec!["perplexity", path(&output)], 2, "--text"),
        (
            vec!["perplexity", path(&output), "--text", path(&heldout_path), "-c", "4096"],
            1,
            "fewer than one window",
        ),
        (vec!["perplexity", path(&heldout_path), "--text", path(&heldout_path)], 1, "neither a directory"),
        (
            vec!["perplexity", path(&output), "--text", path(&heldout_path), "--stride", "513"],
            1,
            "stride of 513",
        ),
    ] {
        let failed = requant(&arguments);
        assert_eq!(failed.status.code(), Some(status), "{arguments:?}");
        assert!(text(&failed.stderr).contains(named), "{}", text(&failed.stderr));
    }
}

#[test]
fn a_validated_conversion_keeps_what_was_found_and_fails_above_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let heldout = directory.path().join("text");
    let whole = std::fs::read_to_string(crate::conversion::fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&heldout, &whole[..5000]).unwrap();
    let model = model();
    let run = |name: &str, arguments: &[&str]| {
        let output = directory.path().join(name);
        let common =
            ["convert", path(&model), "-o", path(&output), "--validate", path(&heldout), "-q", "--json"];
        let done = requant(&[&common[..], arguments].concat());
        let manifest = std::fs::read(requant::pipeline::manifest_path(&output));
        let manifest: Option<Value> = manifest.ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
        (done, manifest.map(|manifest| manifest["validation"].clone()))
    };
    for (name, arguments) in [
        ("m.gguf", vec!["--to", "q4_0", "--max-kld", "0.1"]),
        ("s.gguf", vec!["--to", "q4_0", "--split-max-size", "1M"]),
        ("m", vec!["--to", "mlx-4bit"]),
    ] {
        let (done, found) = run(name, &arguments);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let printed: Value = serde_json::from_slice(&done.stdout).unwrap();
        let found = found.unwrap();
        assert_eq!(printed["validation"], found);
        assert_eq!(found["passed"], true);
        let kld = found["against"]["mean_kld"].as_f64().unwrap();
        assert!((1e-4..1e-2).contains(&kld), "{name}: {kld}");
        let output = directory.path().join(name);
        assert_eq!(json(&["verify", path(&output), "--json"])["ok"], true);
    }

    let (done, found) = run("bad.gguf", &["--to", "q4_0", "--max-kld", "1e-6"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("above --max-kld 0.000001"), "{}", text(&done.stderr));
    assert_eq!(found.unwrap()["passed"], false);

    // What cannot be measured is known before anything is written.
    std::fs::write(&heldout, "short").unwrap();
    let (done, found) = run("none.gguf", &["--to", "q4_0"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("fewer than one window"), "{}", text(&done.stderr));
    assert!(found.is_none() && !directory.path().join("none.gguf").exists());
}

/// The same vocabulary under another name for how text is cut: what is compared is the weights, on the same tokens.
#[test]
fn a_text_that_the_original_cuts_otherwise_is_measured_and_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "q8_0", 2, &file).unwrap();
    let heldout = crate::conversion::fixtures().join("text/heldout.txt");
    let source = model();
    let measured = |more: &[&str]| {
        let command = ["perplexity", path(&file), "--against", path(&source), "--text", path(&heldout), "-q"];
        let output = requant(&[&command[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let json = |text: String| -> Value { serde_json::from_str(&text).unwrap() };
    let alike = json(measured(&["--json"]));
    assert!(alike["against"]["cut_otherwise"].is_null());
    assert!(!measured(&[]).contains("otherwise"));
    let mut bytes = std::fs::read(&file).unwrap();
    let (from, to) = (b"deepseek-v3", b"modern-bert");
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    std::fs::write(&file, bytes).unwrap();
    let otherwise = json(measured(&["--json"]));
    let first = otherwise["against"]["cut_otherwise"].as_u64().unwrap();
    assert!(first > 0 && first < otherwise["tokens"].as_u64().unwrap());
    let divergence = |value: &Value| value["against"]["mean_kld"].as_f64().unwrap();
    // Of that size still: the windows are other ones, and few tokens make most of it.
    let ratio = divergence(&otherwise) / divergence(&alike);
    assert!((0.5..2.0).contains(&ratio), "{ratio} {otherwise}");
    assert!(measured(&[]).contains(&format!("cuts the text otherwise from token {first} on")));
}

/// A copy of the model whose tokenizer begins every text with BOS, which the model's does not.
fn beginning_with_bos(directory: &Path) {
    std::fs::create_dir(directory).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), directory.join(name)).unwrap();
    }
    let file = directory.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let bos = "<｜begin▁of▁sentence｜>";
    let first = serde_json::json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
    let text = |name: &str| serde_json::json!({ "Sequence": { "id": name, "type_id": 0 } });
    tokenizer["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [first, text("A")],
        "pair": [first, text("A"), text("B")],
        "special_tokens": { bos: { "id": bos, "ids": [0], "tokens": [bos] } },
    });
    std::fs::write(&file, tokenizer.to_string()).unwrap();
}

#[test]
fn two_models_are_measured_on_windows_that_begin_as_the_measured_one_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let with_bos = directory.path().join("with-bos");
    beginning_with_bos(&with_bos);
    // A tokenizer that names no BOS at all.
    let nameless = directory.path().join("nameless");
    std::fs::create_dir(&nameless).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), nameless.join(name)).unwrap();
    }
    std::fs::write(nameless.join("tokenizer_config.json"), "{}").unwrap();
    let file = directory.path().join("m.gguf");
    convert(&model(), "q8_0", 2, &file).unwrap();
    let heldout = directory.path().join("t");
    let whole = std::fs::read_to_string(crate::conversion::fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&heldout, &whole[..1500]).unwrap();
    let measured = |result: &Path, original: Option<&Path>, more: &[&str]| -> (Value, String) {
        let mut arguments = vec!["perplexity", path(result), "--text", path(&heldout), "-c", "64", "-q"];
        arguments.extend(original.into_iter().flat_map(|original| ["--against", path(original)]));
        arguments.extend(more);
        let human = requant(&arguments);
        assert!(human.status.success(), "{arguments:?}: {}", text(&human.stderr));
        (json(&[&arguments[..], &["--json"]].concat()), text(&human.stdout))
    };
    let plain = model();
    for (result, original, bos, otherwise) in [
        (&file, &plain, None, false),
        (&file, &with_bos, None, true),
        (&with_bos, &file, Some(0), true),
        (&with_bos, &nameless, Some(0), true),
        (&nameless, &with_bos, None, true),
        (&with_bos, &with_bos, Some(0), false),
    ] {
        let (value, human) = measured(result, Some(original), &[]);
        assert_eq!(value["bos"], serde_json::json!(bos), "{value}");
        assert_eq!(value["against"]["begins_otherwise"], otherwise);
        assert!(value["against"]["cut_otherwise"].is_null(), "{value}");
        let says = match bos {
            Some(_) => "windows begin with BOS (token 0), as the model's tokenizer has it",
            None => "windows begin without BOS, as the model's tokenizer has it",
        };
        assert_eq!(human.contains(says), otherwise, "{human}");
        // The model's own windows, as without an original.
        assert_eq!(value["perplexity"], measured(result, None, &[]).0["perplexity"]);
    }
    // What is asked for is no difference, and needs no name in the original.
    for (asked, bos) in [("always", Some(0)), ("never", None)] {
        let (value, human) = measured(&file, Some(&nameless), &["--bos", asked]);
        assert_eq!(value["bos"], serde_json::json!(bos));
        assert_eq!(value["against"]["begins_otherwise"], false);
        assert!(!human.contains("windows begin with"), "{human}");
    }

    let output = directory.path().join("v.gguf");
    let validated = json(&[
        "convert",
        path(&with_bos),
        "--to",
        "q8_0",
        "-o",
        path(&output),
        "--validate",
        path(&heldout),
        "--validate-context",
        "64",
        "--json",
        "-q",
    ]);
    assert_eq!(validated["validation"]["bos"], 0, "{validated}");
}

/// What is written is never what is read.
#[test]
fn token_ids_are_not_written_over_what_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    convert(&model(), "q8_0", 2, &at("m.gguf")).unwrap();
    std::fs::write(at("t"), "text").unwrap();
    std::fs::hard_link(at("t"), at("hard")).unwrap();
    std::os::unix::fs::symlink("m.gguf", at("soft")).unwrap();
    let before = std::fs::read(at("m.gguf")).unwrap();
    for name in ["t", "hard", "soft", "m.gguf"] {
        let failed = requant(&[
            "perplexity",
            path(&at("m.gguf")),
            "--text",
            path(&at("t")),
            "--tokens",
            path(&at(name)),
        ]);
        assert_eq!(failed.status.code(), Some(1));
        assert!(text(&failed.stderr).contains("name another file"), "{}", text(&failed.stderr));
    }
    assert_eq!(std::fs::read(at("m.gguf")).unwrap(), before);
    assert_eq!(std::fs::read(at("t")).unwrap(), b"text");
}

#[test]
fn two_vocabularies_that_differ_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), other.join(&name)).unwrap();
    }
    let file = other.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["a"].clone(), vocabulary["b"].clone());
    (vocabulary["a"], vocabulary["b"]) = (b.clone(), a.clone());
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let heldout = crate::conversion::fixtures().join("text/heldout.txt");
    let failed =
        requant(&["perplexity", path(&model()), "--against", path(&other), "--text", path(&heldout)]);
    assert_eq!(failed.status.code(), Some(1));
    let message = text(&failed.stderr);
    // Nothing was computed.
    assert!(message.contains("vocabularies do not match") && !message.contains("layer 1"), "{message}");

    // Token ids instead of a text: the vocabularies themselves are compared.
    let ids = directory.path().join("ids.json");
    std::fs::write(&ids, serde_json::to_string(&vec![7; 600]).unwrap()).unwrap();
    let failed = requant(&["perplexity", path(&model()), "--against", path(&other), "--tokens", path(&ids)]);
    assert_eq!(failed.status.code(), Some(1));
    let message = text(&failed.stderr);
    let first = format!("token {} is", a.as_u64().unwrap().min(b.as_u64().unwrap()));
    assert!(message.contains(&first) && !message.contains("layer 1"), "{message}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_reason_to_panic() {
    for more in [&["--json"][..], &[]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_requant"))
            .args(["inspect", path(&model())])
            .args(more)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), String::new()));
    }
}
