//! Shares as schedulers start them: their variables, what is said about them, and the files in `examples/cluster`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;

use crate::conversion::{model, names};
use crate::served::text;
use crate::share_processes::{command, succeeds};
use crate::shares::tree;

/// Names of environment variables with their values.
type Variables<'a> = &'a [(&'a str, &'a str)];

/// `requant convert` of the fixture in a directory, with variables.
fn convert(directory: &Path, variables: &[(&str, &str)], more: &[&str]) -> Command {
    let model = model();
    let arguments = ["convert", model.to_str().unwrap(), "--to", "q4_0", "-o", "m.gguf", "--threads", "1"];
    let mut command = command(directory, &[&arguments[..], more].concat());
    command.envs(variables.iter().copied());
    command
}

fn refused(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// What one process makes, digests and manifest.
fn whole(more: &str) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    succeeds(convert(directory.path(), &[], &[more]));
    tree(directory.path())
}

#[test]
fn tasks_of_every_scheduler_make_one_result() {
    let expected = whole("--json");
    let slurm = |first: u32, step: u32| {
        move |task: u32| {
            vec![
                ("SLURM_ARRAY_TASK_ID", (first + task * step).to_string()),
                ("SLURM_ARRAY_TASK_COUNT", "3".into()),
                ("SLURM_ARRAY_TASK_MIN", first.to_string()),
                ("SLURM_ARRAY_TASK_STEP", step.to_string()),
            ]
        }
    };
    type Variables = Vec<(&'static str, String)>;
    let with = |index: &'static str, first: u32, count: &'static str| {
        move |task: u32| vec![(index, (first + task).to_string()), (count, "3".to_owned())]
    };
    let schedulers: Vec<Box<dyn Fn(u32) -> Variables>> = vec![
        Box::new(slurm(0, 1)),
        Box::new(slurm(7, 1)),
        Box::new(slurm(10, 5)),
        Box::new(with("JOB_COMPLETION_INDEX", 0, "REQUANT_JOBS")),
        Box::new(with("AWS_BATCH_JOB_ARRAY_INDEX", 0, "AWS_BATCH_JOB_ARRAY_SIZE")),
        Box::new(with("SKYPILOT_JOB_RANK", 0, "SKYPILOT_NUM_JOBS")),
        Box::new(with("PBS_ARRAY_INDEX", 1, "REQUANT_JOBS")),
        Box::new(with("LSB_JOBINDEX", 1, "REQUANT_JOBS")),
    ];
    for of in schedulers {
        let directory = tempfile::tempdir().unwrap();
        for task in [2, 0, 1] {
            let variables = of(task);
            let variables: Vec<(&str, &str)> =
                variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let output = convert(directory.path(), &variables, &["--json"]).output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(found["share"], serde_json::json!({"job": task + 1, "jobs": 3}));
            assert_eq!(found["state"], "done");
            let note = text(&output.stderr);
            assert!(note.contains(&format!("this is share {} of 3 of m.gguf", task + 1)), "{note}");
            assert!(note.contains("--job 1/1"), "{note}");
        }
        succeeds(command(directory.path(), &["join", "m.gguf", "-q"]));
        assert!(tree(directory.path()) == expected);
    }
}

#[test]
fn a_task_that_is_submitted_again_alone_is_the_share_it_was() {
    let array = |task: &'static str, count: &'static str, first: &'static str| {
        [("SLURM_ARRAY_TASK_ID", task), ("SLURM_ARRAY_TASK_COUNT", count), ("SLURM_ARRAY_TASK_MIN", first)]
    };
    let expected = whole("-q");
    let directory = tempfile::tempdir().unwrap();
    for task in ["4", "6", "7"] {
        succeeds(convert(directory.path(), &array(task, "4", "4"), &["-q"]));
    }
    let status = succeeds(command(directory.path(), &["status", "m.gguf"]));
    assert!(status.contains("3 of 4 shares") && status.contains("share 2 of 4: not begun"), "{status}");
    // sbatch --array=5, and one that was never in the array.
    let error = refused(convert(directory.path(), &array("9", "1", "9"), &["-q"]), 2);
    assert!(error.contains("from 4 to 7"), "{error}");
    succeeds(convert(directory.path(), &array("5", "1", "5"), &["-q", "--job", "auto"]));
    succeeds(command(directory.path(), &["join", "m.gguf", "-q"]));
    assert!(tree(directory.path()) == expected);
}

#[test]
fn one_task_or_one_share_is_the_whole_work() {
    let expected = whole("-q");
    let alone =
        [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "1"), ("SLURM_ARRAY_TASK_MIN", "3")];
    let of_many =
        [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "9"), ("SLURM_ARRAY_TASK_MIN", "0")];
    for (variables, more) in [(&alone, &["-q"][..]), (&of_many, &["-q", "--job", "1/1"])] {
        let directory = tempfile::tempdir().unwrap();
        succeeds(convert(directory.path(), variables, more));
        assert!(tree(directory.path()) == expected);
        // A dependent join has nothing to do.
        succeeds(command(directory.path(), &["join", "m.gguf", "-q"]));
    }
}

#[test]
fn nonsense_is_refused_before_any_work() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(Variables<'_>, &[&str], &[&str]); 6] = [
        (&[("SLURM_ARRAY_TASK_ID", "4"), ("SLURM_ARRAY_TASK_COUNT", "4")], &[], &["from 0 to 3"]),
        (&[("JOB_COMPLETION_INDEX", "1")], &[], &["--jobs N", "REQUANT_JOBS"]),
        (&[], &["--job", "auto"], &["no scheduler"]),
        (&[], &["--job", "5/4"], &["from 1 to 4"]),
        (&[], &["--jobs", "4"], &["--job I/N"]),
        (
            &[
                ("SKYPILOT_JOB_RANK", "0"),
                ("SKYPILOT_NUM_JOBS", "2"),
                ("PBS_ARRAY_INDEX", "2"),
                ("REQUANT_JOBS", "2"),
            ],
            &[],
            &["SkyPilot", "PBS"],
        ),
    ];
    for (variables, more, words) in cases {
        let error = refused(convert(directory.path(), variables, more), 2);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let mut garbled = convert(directory.path(), &[("SLURM_ARRAY_TASK_COUNT", "4")], &[]);
    garbled.env("SLURM_ARRAY_TASK_ID", OsStr::from_bytes(b"\xff1"));
    let error = refused(garbled, 2);
    assert!(error.contains("SLURM_ARRAY_TASK_ID is ") && error.contains("no number"), "{error}");
    let text_file = crate::conversion::fixtures().join("text/heldout.txt");
    let text_file = text_file.to_str().unwrap();
    let array = [("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_COUNT", "4")];
    let cases: [(Variables<'_>, &[&str], &[&str]); 4] = [
        (&[], &["--job", "1/4", "--validate", text_file], &["--validate", "requant perplexity"]),
        (&array, &["--validate", text_file], &["Slurm array task 1", "--job 1/1"]),
        (&[], &["--job", "1/4", "--restart"], &["--restart", "m.gguf.shares"]),
        (&[], &["--job", "1/4", "--save-recipe", "r.toml"], &["requant plan", "--recipe"]),
    ];
    for (variables, more, words) in cases {
        let error = refused(convert(directory.path(), variables, more), 2);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert_eq!(names(directory.path()), Vec::<String>::new());
    let error = refused(command(directory.path(), &["join", "m.gguf"]), 1);
    assert!(error.contains("nothing to join"), "{error}");
    let error = refused(command(directory.path(), &["status", "m.gguf"]), 1);
    assert!(error.contains("neither a result nor an unfinished one"), "{error}");
}

#[test]
fn a_plan_shows_the_shares() {
    let directory = tempfile::tempdir().unwrap();
    let model = model();
    let arguments = ["plan", model.to_str().unwrap(), "--to", "q4_0", "--jobs", "3"];
    let shown = succeeds(command(directory.path(), &arguments));
    for words in ["3 shares:", "  1: ", "  3: ", "peak disk", "model-00001-of-00004.safetensors"] {
        assert!(shown.contains(words), "{shown}");
    }
    let json: Value =
        serde_json::from_str(&succeeds(command(directory.path(), &[&arguments[..], &["--json"]].concat())))
            .unwrap();
    let shares = json["shares"].as_array().unwrap();
    let sum = |key: &str| shares.iter().map(|share| share[key].as_u64().unwrap()).sum::<u64>();
    let types = json["types"].as_object().unwrap();
    let tensor_bytes: u64 = types.values().map(|totals| totals["bytes"].as_u64().unwrap()).sum();
    assert_eq!((shares.len(), sum("bytes_out")), (3, tensor_bytes));
    let without: Value =
        serde_json::from_str(&succeeds(command(directory.path(), &[&arguments[..4], &["--json"]].concat())))
            .unwrap();
    assert!(without.get("shares").is_none());
}

#[test]
fn status_tells_of_whole_runs_too() {
    let directory = tempfile::tempdir().unwrap();
    let status = |words: &str| {
        let json: Value =
            serde_json::from_str(&succeeds(command(directory.path(), &["status", "m.gguf", "--json"])))
                .unwrap();
        assert_eq!(json["state"], words, "{json}");
        json
    };
    let output = directory.path().join("m.gguf");
    let source = crate::conversion::open(&model()).unwrap();
    let blueprint = requant::plan::blueprint(&source, "q4_0", &requant::plan::Options::default()).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let progress = crate::faults::StopAfter { after: 2_000_000, done: 0.into(), stop: &stop };
    let settings = crate::conversion::settings("q4_0", 1);
    requant::pipeline::convert(&source, &blueprint, &output, &settings, &progress, &stop).unwrap_err();
    let json = status("stopped");
    assert!(
        json["pieces_done"].as_u64().unwrap() > 0 && json["pieces_done"].as_u64() < json["pieces"].as_u64()
    );
    let lock = std::fs::File::create(directory.path().join("m.gguf.lock")).unwrap();
    lock.lock().unwrap();
    status("running");
    drop(lock);
    crate::conversion::convert(&model(), "q4_0", 1, &output).unwrap();
    status("complete");
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster").join(name)
}

/// The documents of an example.
fn yaml(name: &str) -> Vec<Value> {
    fn value(node: &Yaml<'_>) -> Value {
        if let Some(mapping) = node.as_mapping() {
            let entries = mapping.iter().map(|(key, entry)| (key.as_str().unwrap().to_owned(), value(entry)));
            return Value::Object(entries.collect());
        }
        if let Some(list) = node.as_sequence() {
            return list.iter().map(value).collect();
        }
        match (node.as_str(), node.as_integer(), node.as_bool()) {
            (Some(text), ..) => text.into(),
            (_, Some(number), _) => number.into(),
            (.., Some(flag)) => flag.into(),
            _ => Value::Null,
        }
    }
    let text = std::fs::read_to_string(example(name)).unwrap();
    Yaml::load_from_str(&text).unwrap().iter().map(value).collect()
}

/// The words of a command that an example gives: `requant` takes them.
fn is_understood(words: &[&str]) {
    // With --help everything before it is still parsed.
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &[words, &["--quiet"]].concat()).output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    let error = text(&output.stderr);
    assert!(!error.contains("unexpected argument") && !error.contains("required"), "{words:?}: {error}");
}

#[test]
fn scripts_of_the_examples_are_sound() {
    for name in ["slurm.sbatch", "hf-jobs.sh"] {
        let output = Command::new("bash").arg("-n").arg(example(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    }
}

#[test]
fn the_slurm_script_converts_and_joins_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let model = model();
    let task = |task: Option<&str>, count: &str| {
        let mut script = Command::new("bash");
        script
            .arg(example("slurm.sbatch"))
            .arg(&model)
            .args(["q4_0", "m.gguf"])
            .current_dir(directory.path());
        script
            .env("REQUANT", env!("CARGO_BIN_EXE_requant"))
            .env("SHARES", "3")
            .env_remove("SLURM_ARRAY_TASK_ID");
        if let Some(task) = task {
            let first = if count == "1" { task } else { "0" };
            script.env("SLURM_ARRAY_TASK_ID", task).env("SLURM_ARRAY_TASK_COUNT", count);
            script.env("SLURM_ARRAY_TASK_MIN", first).env("SLURM_ARRAY_TASK_STEP", "1");
        }
        script.output().unwrap()
    };
    for number in ["0", "2"] {
        let output = task(Some(number), "3");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let early = task(None, "");
    assert!(
        !early.status.success() && text(&early.stderr).contains("2 (not begun)"),
        "{}",
        text(&early.stderr)
    );
    // The lost task alone.
    assert!(task(Some("1"), "1").status.success());
    let joined = task(None, "");
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
}

#[test]
fn the_kubernetes_jobs_fit_together() {
    let documents = yaml("kubernetes.yaml");
    assert_eq!(documents.len(), 2);
    let spec = |document: &Value| document["spec"].clone();
    let container = |document: &Value| document["spec"]["template"]["spec"]["containers"][0].clone();
    for document in &documents {
        assert_eq!((&document["apiVersion"], &document["kind"]), (&"batch/v1".into(), &"Job".into()));
        assert_eq!(document["spec"]["template"]["spec"]["restartPolicy"], "OnFailure");
        let command = container(document)["command"].clone();
        let words: Vec<&str> =
            command.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(words[0], "requant");
        // Every mount has a volume.
        let volumes = document["spec"]["template"]["spec"]["volumes"].clone();
        let is_volume =
            |name: &Value| volumes.as_array().unwrap().iter().any(|volume| volume["name"] == *name);
        assert!(
            container(document)["volumeMounts"]
                .as_array()
                .unwrap()
                .iter()
                .all(|mount| is_volume(&mount["name"]))
        );
    }
    let indexed = spec(&documents[0]);
    assert_eq!(indexed["completionMode"], "Indexed");
    assert_eq!(indexed["completions"], indexed["parallelism"]);
    let jobs = &container(&documents[0])["env"][0];
    assert_eq!((&jobs["name"], jobs["value"].as_str()), (&"REQUANT_JOBS".into(), Some("16")));
    assert_eq!(indexed["completions"], 16);
    let words = |document: &Value| -> Vec<String> {
        let command = container(document)["command"].clone();
        command.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let (convert, join) = (words(&documents[0]), words(&documents[1]));
    let at = convert.iter().position(|word| word == "-o").unwrap();
    assert_eq!(join[1..], ["join".to_owned(), convert[at + 1].clone()]);
    for words in [convert, join] {
        is_understood(&words[1..].iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn the_skypilot_task_runs_a_script_that_is_sound() {
    let documents = yaml("skypilot.yaml");
    let task = &documents[0];
    for key in ["name", "resources", "volumes", "envs", "setup", "run"] {
        assert!(!task[key].is_null(), "{key}");
    }
    let directory = tempfile::tempdir().unwrap();
    for key in ["setup", "run"] {
        let script = directory.path().join(key);
        std::fs::write(&script, task[key].as_str().unwrap()).unwrap();
        let output = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    // Every variable that the script uses is given.
    let run = task["run"].as_str().unwrap();
    for name in ["MODEL", "FORMAT", "OUTPUT", "JOIN"] {
        assert!(run.contains(&format!("${name}")) && !task["envs"][name].is_null(), "{name}");
    }
}
