//! Rules: the fixture with types of its own for some tensors, against `llama-quantize --tensor-type` and mlx-lm
//! with a `quant_predicate`; and everything that is wrong with a rule.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use requant::imatrix::Imatrix;
use requant::pipeline::{self, Settings};
use requant::plan::{self, Choice, Options, Pattern, Rule, Rules};
use serde_json::Value;

use crate::conversion::{Silent, convert_with, fixtures, model, names, open, settings, sha256};
use crate::faults::StopAfter;
use crate::served::{ID, Served};

fn golden(name: &str) -> Vec<Value> {
    let bytes = std::fs::read(fixtures().join("goldens/rules").join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Rules as the command line takes them.
fn arguments(texts: &[&str]) -> Options {
    let rules = texts.iter().map(|text| Rule::from_argument(text).unwrap()).collect();
    Options { rules: Rules::new(rules), ..Options::default() }
}

fn recipe(text: &str) -> Options {
    Options { rules: Rules::from_toml(Path::new("r.toml"), text).unwrap(), ..Options::default() }
}

/// Type and rule of each output tensor.
fn types(format: &str, options: &Options) -> Vec<(String, String, Option<usize>)> {
    let source = open(&model()).unwrap();
    let blueprint = plan::blueprint(&source, format, options).unwrap();
    let tensors = blueprint.tensors.into_iter();
    tensors.map(|tensor| (tensor.names[0].clone(), tensor.type_name, tensor.rule)).collect()
}

#[test]
fn gguf_files_equal_those_of_llama_quantize() {
    let cases = golden("gguf.json");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let format = case["to"].as_str().unwrap();
        let texts: Vec<&str> =
            case["tensor_type"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("model.gguf");
        convert_with(&model(), &settings(format, 2), &arguments(&texts), &output, &Silent).unwrap();
        let bytes = std::fs::read(&output).unwrap();
        assert_eq!(bytes.len() as u64, case["size"].as_u64().unwrap(), "{format} {texts:?}");
        assert_eq!(sha256(&bytes), case["sha256"].as_str().unwrap(), "{format} {texts:?}");
    }
}

#[test]
fn mlx_directories_equal_those_of_mlx_lm() {
    let cases = golden("mlx.json");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let format = case["to"].as_str().unwrap();
        let rules = case["rules"].as_array().unwrap().iter().map(|rule| {
            let choice = match rule[1].as_array() {
                None => Choice::Ignore,
                Some(parameters) => Choice::Type {
                    name: format!("{}bit", parameters[0]),
                    group_size: parameters[1].as_u64().map(|len| len as usize),
                },
            };
            Rule { target: Pattern::new(rule[0].as_str().unwrap()).unwrap(), choice, origin: "golden".into() }
        });
        let options = Options { rules: Rules::new(rules.collect()), ..Options::default() };
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        convert_with(&model(), &settings(format, 2), &options, &output, &Silent).unwrap();
        for (name, expected) in case["files"].as_object().unwrap() {
            let bytes = std::fs::read(output.join(name)).unwrap();
            assert_eq!(bytes.len() as u64, expected[0].as_u64().unwrap(), "{format} {name}");
            assert_eq!(sha256(&bytes), expected[1].as_str().unwrap(), "{format} {name}");
        }
    }
}

#[test]
fn names_of_the_result_come_before_those_of_the_source() {
    let given = |text: &str| -> Vec<String> {
        let types = types("q4_k_m", &arguments(&[text]));
        types.into_iter().filter(|(_, _, rule)| rule.is_some()).map(|(name, _, _)| name).collect()
    };
    // Found in kv_b_proj too, which is also what attn_k_b is made of.
    assert_eq!(given("v_b=q8_0"), [0, 1, 2].map(|layer| format!("blk.{layer}.attn_v_b.weight")));
    assert_eq!(given(r"0\.self_attn\.kv_b_proj=q8_0"), ["blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"]);
    assert_eq!(given(r"layers\.1\.mlp\.experts\.\d+\.up=q8_0"), ["blk.1.ffn_up_exps.weight"]);
    // Norms are matched and left alone.
    assert_eq!(
        given(r"layers\.1\.post_attention|layers\.1\.self_attn\.o_proj=q8_0"),
        ["blk.1.attn_output.weight"]
    );
}

#[test]
fn the_first_rule_counts_and_a_later_one_may_be_left_with_nothing() {
    let types = types(
        "q4_k_m",
        &arguments(&[r"blk\.1\.ffn_down=q5_0", "ffn_down_exps=q8_0", r"blk\.1\.ffn_down_exps=q4_0"]),
    );
    let find = |wanted: &str| types.iter().find(|(name, _, _)| name == wanted).unwrap();
    assert_eq!(find("blk.1.ffn_down_exps.weight").1, "Q5_0");
    assert_eq!(find("blk.1.ffn_down_exps.weight").2, Some(0));
    assert_eq!(find("blk.2.ffn_down_exps.weight").1, "Q8_0");
    assert!(types.iter().all(|(_, _, rule)| *rule != Some(2)));
}

#[test]
fn ignored_tensors_stay_floats() {
    let text = "[[rule]]\ntarget = '(ffn_up_exps|switch_mlp.up|mlp.experts)'\nignore = true\n";
    for (format, name, expected) in [
        ("q4_k_m", "blk.1.ffn_up_exps.weight", "F32"),
        ("mlx-4bit", "model.layers.1.mlp.switch_mlp.up_proj.weight", "BF16"),
        ("compressed-tensors-fp8-block", "model.layers.1.mlp.experts.3.up_proj.weight", "BF16"),
    ] {
        let types = types(format, &recipe(text));
        let found = types.iter().find(|(found, _, _)| found == name).unwrap();
        assert_eq!((found.1.as_str(), found.2), (expected, Some(0)), "{format}");
    }
}

#[test]
fn what_is_wrong_with_a_rule_is_named() {
    let refused = |format: &str, options: &Options| {
        let source = open(&model()).unwrap();
        plan::blueprint(&source, format, options).err().unwrap_or_else(|| panic!("{format}")).to_string()
    };
    for (format, rule, named) in [
        ("q4_k_m", "nothing=q6_k", &["'nothing=q6_k'", "no tensor of the result"][..]),
        ("q4_k_m", "norm=q6_k", &["never quantized", "output_norm.weight"]),
        ("q4_k_m", r"layers\.3\.=q6_k", &["no tensor of the result", "left out"]),
        ("q4_k_m", r"experts\.3\.=q6_k", &["a part of what blk.1.ffn_down_exps.weight", "1 of 16"]),
        ("q4_k_m", "ffn=q7_k", &["\"q7_k\" is no type of GGUF", "Q6_K"]),
        ("q4_k_m", "ffn=i8", &["no type of GGUF"]),
        ("q4_k_m", "ffn_up=iq2_xxs", &["blk.0.ffn_up.weight", "IQ2_XXS", "requant calibrate", "--imatrix"]),
        ("q4_k_m", "ffn=6bit", &["is a type of MLX, not of GGUF"]),
        ("mlx-4bit", "proj=q6_k", &["is a type of GGUF, not of MLX", "6bit-g32"]),
        ("mlx-4bit", "q_b_proj=4bit-g128", &["groups of 128", "rows of 192", "q_b_proj"]),
        ("mlx-4bit", "lm_head=f32", &["lm_head", "is bf16, not f32"]),
        ("mlx-4bit", "layernorm=6bit", &["never quantized"]),
        ("f16", "ffn=q6_k", &["f16 quantizes nothing"]),
        ("mlx-bf16", "proj=6bit", &["mlx-bf16 quantizes nothing"]),
    ] {
        let error = refused(format, &arguments(&[rule]));
        assert!(named.iter().all(|part| error.contains(part)), "{format} {rule}: {error}");
    }
    for (format, text, named) in [
        ("q4_0", "to = 'q4_k_m'\n[[rule]]\ntarget = 'ffn'\ntype = 'q6_k'", &["q4_k_m", "q4_0"][..]),
        (
            "q4_0",
            "[[rule]]\ntarget = 'ffn'\ntype = 'q6_k'\ngroup_size = 32",
            &["r.toml, line 1", "group_size 32", "256"],
        ),
        (
            "mlx-4bit",
            "[[rule]]\ntarget = 'proj'\ntype = '4bit'\ngroup_size = 16",
            &["r.toml, line 1", "groups of 16"],
        ),
        (
            "mlx-4bit",
            "[[rule]]\ntarget = 'proj'\ntype = '4bit-g32'\ngroup_size = 64",
            &["no 4bit-g32 with groups of 64"],
        ),
        ("mlx-4bit", "[[rule]]\ntarget = 'lm_head'\ntype = 'bf16'\ngroup_size = 64", &["bf16 has no groups"]),
    ] {
        let error = refused(format, &recipe(text));
        assert!(named.iter().all(|part| error.contains(part)), "{format} {text}: {error}");
    }
}

#[test]
fn a_recipe_in_the_manifest_gives_the_same_result_again() {
    let directory = tempfile::tempdir().unwrap();
    for (format, texts) in [
        ("q4_k_m", &["ffn_down=q6_k", r"blk\.0\.attn_.*=q5_k"][..]),
        ("mlx-4bit", &["down_proj=6bit-g32", "lm_head=bf16"]),
    ] {
        let options = arguments(texts);
        let settings = Settings { recipe: Some(options.rules.to_toml(format)), ..settings(format, 2) };
        let first = directory.path().join(format!("first-{format}"));
        convert_with(&model(), &settings, &options, &first, &Silent).unwrap();
        let manifest = pipeline::Manifest::read(&pipeline::manifest_path(&first)).unwrap();
        let again = directory.path().join(format!("again-{format}"));
        let options = recipe(manifest.recipe.as_ref().unwrap());
        let outcome = convert_with(&model(), &settings, &options, &again, &Silent).unwrap();
        assert_eq!(
            outcome.manifest.tensors.iter().map(|tensor| &tensor.sha256).collect::<Vec<_>>(),
            manifest.tensors.iter().map(|tensor| &tensor.sha256).collect::<Vec<_>>()
        );
        assert_eq!(outcome.manifest.recipe, manifest.recipe);
    }
}

#[test]
fn an_unfinished_run_does_not_go_on_with_other_rules() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let source = open(&model()).unwrap();
    let first = arguments(&["ffn_down=q6_k"]);
    let blueprint = plan::blueprint(&source, "q4_k_m", &first).unwrap();
    let stop = AtomicBool::new(false);
    let progress = StopAfter { after: 1_000_000, done: 0.into(), stop: &stop };
    let stopped = pipeline::convert(&source, &blueprint, &output, &settings("q4_k_m", 1), &progress, &stop);
    assert!(stopped.is_err());
    for other in [Options::default(), arguments(&["ffn_down=q8_0"])] {
        let error = convert_with(&model(), &settings("q4_k_m", 1), &other, &output, &Silent).err().unwrap();
        assert!(error.to_string().contains("--restart"), "{error}");
    }
    // The same rules in other words are the same result.
    let same = recipe("[[rule]]\ntarget = 'blk.*ffn_down'\ntype = 'Q6_K'\n");
    convert_with(&model(), &settings("q4_k_m", 1), &same, &output, &Silent).unwrap();
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
    let golden = golden("gguf.json").remove(0);
    assert_ne!(sha256(&std::fs::read(&output).unwrap()), golden["sha256"].as_str().unwrap());
}

fn requant(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_plan_says_which_rule_gave_which_type_and_its_recipe_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("saved.toml");
    let (model, saved_text) = (model(), saved.to_str().unwrap());
    let model = model.to_str().unwrap();
    let rules = ["--tensor-type", "ffn_down=q6_k", "--tensor-type", "kv_b_proj=q8_0"];
    let plan = ["plan", model, "--to", "Q4_K_M"];
    let (status, human, _) = requant(&[&plan[..], &rules, &["--save-recipe", saved_text]].concat());
    assert_eq!(status, Some(0));
    for line in [
        "rule --tensor-type 'ffn_down=q6_k': ffn_down -> q6_k",
        "  Q6_K         blk.0.ffn_down.weight",
        "  Q8_0         blk.{1-2}.ffn_down_exps.weight",
        "  Q8_0         blk.{0-2}.attn_k_b.weight",
    ] {
        assert!(human.lines().any(|found| found == line), "{line}\n{human}");
    }
    let of = |arguments: &[&str]| -> Value {
        let (status, stdout, stderr) = requant(&[&plan[..], arguments, &["--json", "-q"]].concat());
        assert_eq!(status, Some(0), "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let by_arguments = of(&rules);
    let given = &by_arguments["rules"][1];
    assert_eq!((&given["target"], &given["type"]), (&"kv_b_proj".into(), &"q8_0".into()));
    assert_eq!(given["tensors"][0], serde_json::json!({"name": "blk.0.attn_k_b.weight", "type": "Q8_0"}));
    assert_eq!(given["tensors"].as_array().unwrap().len(), 6);
    let by_recipe = of(&["--recipe", saved_text]);
    assert_eq!(by_recipe["types"], by_arguments["types"]);
    assert_eq!(by_recipe["recipe"], by_arguments["recipe"]);
    assert_eq!(by_recipe["recipe"], std::fs::read_to_string(&saved).unwrap());

    // Arguments come before the recipe.
    let both = of(&["--tensor-type", "blk.0.ffn_down=q4_0", "--recipe", saved_text]);
    assert_eq!(both["rules"][0]["tensors"][0]["type"], "Q4_0");
    assert_eq!(both["rules"][1]["tensors"].as_array().unwrap().len(), 4);

    let budget = of(&["--target-bpw", "4.6"]);
    assert!(budget["bits_per_weight"].as_f64().unwrap() <= 4.6);
    assert!((0.01..0.1).contains(&budget["measured_error"].as_f64().unwrap()));
    let chosen = directory.path().join("chosen.toml");
    std::fs::write(&chosen, budget["recipe"].as_str().unwrap()).unwrap();
    let again = of(&["--recipe", chosen.to_str().unwrap()]);
    assert_eq!((&again["types"], &again["bytes_out"]), (&budget["types"], &budget["bytes_out"]));
    let (_, human, progress) = requant(&[&plan[..], &["--target-bpw", "4.6"]].concat());
    assert!(human.contains(budget["recipe"].as_str().unwrap()) && progress.contains("measure"), "{human}");

    // A recipe that is there stays, unless it is the same.
    let save = ["--save-recipe", saved_text];
    assert_eq!(requant(&[&plan[..], &rules, &save].concat()).0, Some(0));
    let (status, _, stderr) = requant(&[&plan[..], &rules[..2], &save].concat());
    assert!(status == Some(1) && stderr.contains("saved.toml: create failed"), "{stderr}");
    let (status, _, stderr) = requant(&[&plan[..], &save].concat());
    assert!(status == Some(1) && stderr.contains("no rules to write"), "{stderr}");
}

#[test]
fn mistakes_on_the_command_line_are_usage_and_those_of_a_file_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (recipe, output) = (directory.path().join("r.toml"), directory.path().join("m.gguf"));
    let model = model();
    let run = |arguments: &[&str]| {
        let common =
            ["convert", model.to_str().unwrap(), "--to", "q4_k_m", "-o", output.to_str().unwrap(), "-q"];
        let (status, _, stderr) = requant(&[&common[..], arguments].concat());
        (status, stderr)
    };
    for (arguments, named) in [
        (["--tensor-type", "ffn"].as_slice(), "expected REGEX=TYPE"),
        (&["--tensor-type", "=q4_0"], "no regular expression"),
        (&["--tensor-type", "ffn="], "no type"),
        (&["--tensor-type", "ff(n=q4_0"], "ff(n"),
        (&["--tensor-type", r"blk\.\D=q4_0"], "lower case"),
        (&["--target-bpw", "0"], "number of bits"),
        (&["--target-bpw", "4.5", "--target-size", "3M"], "cannot be used with"),
        (&["--target-size", "lots"], "lots"),
    ] {
        let (status, stderr) = run(arguments);
        assert!(status == Some(2) && stderr.contains(named), "{arguments:?}: {stderr}");
    }
    let recipe_text = recipe.to_str().unwrap();
    for (text, named) in [
        ("[[rule]]\ntarget = 'ffn'\ntype = q6_k", "r.toml, line 3"),
        ("[[rule]]\ntarget = 'ffn'\nbits = 6", "r.toml, line 3"),
        ("[[rule]]\ntarget = 'ffn'\ntype = 'q7_k'", "r.toml, line 1"),
        ("[[rule]]\ntarget = 'nothing'\ntype = 'q6_k'", "r.toml, line 1"),
    ] {
        std::fs::write(&recipe, text).unwrap();
        let (status, stderr) = run(&["--recipe", recipe_text]);
        assert!(status == Some(1) && stderr.contains(named), "{text}: {stderr}");
    }
    std::fs::write(&recipe, b"\xff").unwrap();
    assert!(run(&["--recipe", recipe_text]).1.contains("not UTF-8"));
    std::fs::remove_file(&recipe).unwrap();
    assert!(run(&["--recipe", recipe_text]).1.contains("r.toml: open failed: No such file"));
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[test]
fn a_streamed_model_takes_rules_and_is_measured() {
    let served = Served::model();
    let whole = tempfile::tempdir().unwrap();
    let settings = Settings { error_report: true, ..settings("q4_k_m", 2) };
    let options = arguments(&["ffn_down=q6_k"]);
    let expected =
        convert_with(&model(), &settings, &options, &whole.path().join("m.gguf"), &Silent).unwrap().manifest;
    let run = served.json(&[
        "convert",
        ID,
        "--to",
        "q4_k_m",
        "-o",
        "m.gguf",
        "--tensor-type",
        "ffn_down=q6_k",
        "--error-report",
    ]);
    let manifest = pipeline::Manifest::read(&served.path("m.gguf.manifest.json")).unwrap();
    let digests = |manifest: &pipeline::Manifest| -> Vec<String> {
        manifest.tensors.iter().map(|tensor| tensor.sha256.clone()).collect()
    };
    assert_eq!(digests(&manifest), digests(&expected));
    let (found, report) =
        (run["error_report"]["tensors"].as_array().unwrap(), expected.error_report.unwrap());
    assert_eq!(found.len(), report.tensors.len());
    for (found, expected) in found.iter().zip(&report.tensors) {
        assert_eq!(found["name"], *expected.name);
        // serde_json reads a number to within one unit in the last place.
        let (found, expected) = (found["relative_error"].as_f64().unwrap(), expected.relative_error.unwrap());
        assert!((found - expected).abs() <= f64::EPSILON * expected);
    }
    assert!(manifest.recipe.unwrap().contains("target = 'ffn_down'"));
}

#[test]
fn every_type_that_an_error_lists_can_be_given() {
    for (format, rest) in [("q4_k_m", "blk.0.ffn_down=NAME"), ("mlx-4bit", "layers.0.mlp.down_proj=NAME")] {
        let target =
            plan::TARGETS.iter().find(|target| target.formats().iter().any(|known| known.name == format));
        let mut given = 0;
        for name in target.unwrap().types() {
            // An MLX weight that is not quantized has the model's own float type.
            if format == "mlx-4bit" && ["f16", "f32"].contains(&name) {
                continue;
            }
            let path = fixtures().join("goldens/imatrix/imatrix.gguf");
            let imatrix = (format == "q4_k_m").then(|| Imatrix::open(&path).unwrap().into());
            let options = Options { imatrix, ..arguments(&[&rest.replace("NAME", name)]) };
            let types = types(format, &options);
            assert_eq!(types.iter().filter(|(_, _, rule)| rule.is_some()).count(), 1, "{format} {name}");
            given += 1;
        }
        assert!(given >= 16, "{format}: {given}");
    }
}
