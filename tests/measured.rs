//! Models measured straight from a hub: the weights stream by, and the figures are those of a local copy.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use requant::checkpoint::{Weight, WeightStore};
use requant::evaluate::{self, Request, Windows};
use requant::family::{Role, Spec};
use requant::model::{Unobserved, order_of_need};
use requant::opened::Opened;
use requant::source::Extent;
use requant_formats::Dtype;
use serde_json::Value;
use test_hub::{Action, Fault, Host, Repo};

use crate::conversion::{convert, fixtures, model, names};
use crate::maker::{self, Size, Storage};
use crate::served::{ID, Served, text};

/// Text for a few windows.
fn some_text(directory: &Path) -> PathBuf {
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let path = directory.join("some.txt");
    std::fs::write(&path, whole.chars().take(6000).collect::<String>()).unwrap();
    path
}

/// What does not depend on the machine.
fn figures(mut report: Value) -> Value {
    for key in ["seconds", "peak_rss_bytes"] {
        report.as_object_mut().unwrap().remove(key);
    }
    report
}

/// `requant perplexity MODEL --text some.txt` and more.
fn perplexity(served: &Served, model: &str, more: &[&str]) -> Value {
    let text = some_text(&served.path(""));
    figures(served.json(&[&["perplexity", model, "--text", text.to_str().unwrap()], more].concat()))
}

/// A shard of the trained model.
fn shard_name(number: usize) -> String {
    format!("model-{number:05}-of-00004.safetensors")
}

fn shard_bytes(number: usize) -> u64 {
    model().join(shard_name(number)).metadata().unwrap().len()
}

/// The least spool for it: an expert's gate and up projections are in these two.
fn least_spool() -> u64 {
    shard_bytes(2) + shard_bytes(3)
}

#[test]
fn the_figures_are_those_of_a_local_copy_and_nothing_is_left() {
    let served = Served::model();
    let local = perplexity(&served, model().to_str().unwrap(), &[]);
    assert!(local["mtp"]["loss"].as_f64().unwrap() > 0.0);
    assert_eq!(perplexity(&served, ID, &[]), local);
    assert_eq!(names(&served.path("")), ["some.txt"]);
    // Every shard came once, and the last for the prediction layer.
    for number in 1..=4 {
        let sent = served.hub.body_bytes_of(&shard_name(number));
        assert!((shard_bytes(number)..shard_bytes(number) + 70_000).contains(&sent), "{number}: {sent}");
    }
}

#[test]
fn the_original_may_be_on_the_hub_and_its_prediction_layer_stays_there() {
    let served = Served::model();
    let result = served.path("m.gguf");
    convert(&model(), "q4_0", 2, &result).unwrap();
    let result = result.to_str().unwrap();
    let local = perplexity(&served, result, &["--against", model().to_str().unwrap()]);
    assert_eq!(perplexity(&served, result, &["--against", ID]), local);
    assert!(served.hub.body_bytes_of(&shard_name(4)) < 70_000);

    // Both, and one spool limit for the two.
    let limit = (2 * least_spool()).to_string();
    let both = perplexity(&served, ID, &["--against", ID, "--spool-limit", &limit]);
    assert_eq!(both["against"]["max_kld"], 0.0);
    assert_eq!(both["perplexity"], local["against"]["perplexity"]);
    assert!(names(&served.path("")).iter().all(|name| !name.contains("spool")));
}

/// A repository whose shards need each other's scales, and whose norms are anywhere.
fn scattered(shards: usize) -> (tempfile::TempDir, Served) {
    let directory = tempfile::tempdir().unwrap();
    let mut checkpoint = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
    checkpoint.spread(shards);
    checkpoint.write(directory.path());
    maker::copy_tokenizer(directory.path());
    let served = Served::repo(Repo::from_directory(ID, directory.path()).unwrap());
    (directory, served)
}

#[test]
fn any_spool_will_do_that_holds_what_is_read_together() {
    for shards in [2, 5] {
        let (directory, served) = scattered(shards);
        let local = perplexity(&served, directory.path().to_str().unwrap(), &[]);
        let lengths = names(directory.path());
        let lengths = lengths.iter().filter(|name| name.ends_with(".safetensors"));
        let lengths: Vec<u64> =
            lengths.map(|name| directory.path().join(name).metadata().unwrap().len()).collect();
        let mut least = *lengths.iter().max().unwrap();
        // Some queries and keys, or gate and up projections, are in two shards: the error says what they need.
        let refused = served.failure(&[
            "perplexity",
            ID,
            "--text",
            some_text(&served.path("")).to_str().unwrap(),
            "--spool-limit",
            &least.to_string(),
        ]);
        let needed = refused.rsplit("need ").next().and_then(|number| number.trim().parse().ok());
        least = needed.unwrap_or_else(|| panic!("{refused}"));
        assert!(refused.contains("--spool-limit") && least <= lengths.iter().sum());
        for limit in [least, lengths.iter().sum()] {
            let limit = limit.to_string();
            assert_eq!(
                perplexity(&served, ID, &["--spool-limit", &limit]),
                local,
                "{shards} shards, {limit}"
            );
        }
    }
}

#[test]
fn the_spool_stays_within_its_limit() {
    let served = Served::model();
    served.hub.set_rate(Some(8_000_000));
    let limit = least_spool();
    let text = some_text(&served.path(""));
    let mut child = served.spawn(&[
        "perplexity",
        ID,
        "--text",
        text.to_str().unwrap(),
        "--spool-limit",
        &limit.to_string(),
        "--spool",
        "spool",
        "-q",
    ]);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let folders = std::fs::read_dir(served.path("spool")).into_iter().flatten().flatten();
        let bytes = folders.map(|folder| bytes_below(&folder.path().join("shards"))).sum();
        most = most.max(bytes);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success());
    assert!(most > 0 && most <= limit + 4096, "{most} of {limit}");
    assert_eq!(names(&served.path("spool")), Vec::<String>::new());
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[test]
fn damage_on_the_way_is_fetched_again_or_named() {
    let served = Served::model();
    let expected = perplexity(&served, model().to_str().unwrap(), &[]);
    let damage = || Fault::new("model-00003", Action::Corrupt { offset: 100_000 }).on(Host::Cdn);
    served.hub.add_fault(damage().times(1));
    assert_eq!(perplexity(&served, ID, &[]), expected);
    served.hub.add_fault(damage());
    let text = some_text(&served.path(""));
    let message = served.failure(&["perplexity", ID, "--text", text.to_str().unwrap()]);
    assert!(message.contains("model-00003-of-00004") && message.contains("expected"), "{message}");
    assert_eq!(names(&served.path("")), ["some.txt"]);
}

/// Waits for the first shard to be under way.
fn until_spooled(served: &Served, child: &mut std::process::Child) {
    while !served.path("tiny.read.spool/shards/model-00001-of-00004.safetensors.part").exists() {
        assert!(child.try_wait().unwrap().is_none(), "finished before it could be stopped");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_stopped_cleans_up_and_what_is_killed_is_cleaned_up_by_the_next() {
    let served = Served::model();
    let local = perplexity(&served, model().to_str().unwrap(), &[]);
    let text_path = some_text(&served.path(""));
    let arguments = ["perplexity", ID, "--text", text_path.to_str().unwrap(), "-q"];
    served.hub.set_rate(Some(500_000));
    let mut child = served.spawn(&arguments);
    until_spooled(&served, &mut child);
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(1));
    assert!(text(&stopped.stderr).contains("interrupted; a measurement"), "{}", text(&stopped.stderr));
    assert_eq!(names(&served.path("")), ["some.txt"]);

    let mut child = served.spawn(&arguments);
    until_spooled(&served, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(served.path("tiny.read.spool").exists());
    served.hub.set_rate(None);
    assert_eq!(perplexity(&served, ID, &[]), local);
    assert_eq!(names(&served.path("")), ["some.txt"]);
}

#[test]
fn the_cache_is_used_and_filled_on_request() {
    let served = Served::model();
    let local = perplexity(&served, model().to_str().unwrap(), &[]);
    // A spool that cannot keep everything: what comes again comes from the cache.
    let limit = least_spool();
    let kept = perplexity(&served, ID, &["--keep-source", "--spool-limit", &limit.to_string()]);
    assert_eq!(kept, local);
    let before = served.hub.body_bytes_sent();
    assert_eq!(perplexity(&served, ID, &[]), local);
    assert!(served.hub.body_bytes_sent() - before < 100_000);
    let mut offline = served;
    offline.set("HF_HUB_OFFLINE", "1");
    offline.hub.clear_requests();
    assert_eq!(perplexity(&offline, ID, &[]), local);
    assert!(offline.hub.requests().is_empty());
}

#[test]
fn an_mlx_repository_is_measured_too() {
    let directory = tempfile::tempdir().unwrap();
    let result = directory.path().join("mlx");
    convert(&model(), "mlx-4bit", 2, &result).unwrap();
    let served = Served::repo(Repo::from_directory(ID, &result).unwrap());
    assert_eq!(perplexity(&served, ID, &[]), perplexity(&served, result.to_str().unwrap(), &[]));
}

#[test]
fn a_streamed_conversion_is_validated_by_streaming_again() {
    let served = Served::model();
    let text = some_text(&served.path(""));
    let validated = |model: &str, output: &str| {
        let text = text.to_str().unwrap();
        let more = ["--validate", text, "--validate-context", "128"];
        served.json(&[&["convert", model, "--to", "q4_0", "-o", output][..], &more].concat())["validation"]
            .clone()
    };
    let found = validated(ID, "streamed.gguf");
    assert_eq!(found, validated(model().to_str().unwrap(), "local.gguf"));
    assert_eq!(found["context"], 128);
    // Twice each, and the prediction layer's not at all.
    let sent = |number| served.hub.body_bytes_of(&shard_name(number));
    assert!((2 * shard_bytes(1)..2 * shard_bytes(1) + 140_000).contains(&sent(1)), "{}", sent(1));
    assert!(sent(4) <= 140_000, "{}", sent(4));
    assert!(names(&served.path("")).iter().all(|name| !name.contains("spool")));
}

#[test]
fn inspect_reads_headers_only() {
    let served = Served::model();
    let remote = served.json(&["inspect", ID]);
    assert_eq!(remote, served.json(&["inspect", model().to_str().unwrap()]));
    assert!(served.hub.body_bytes_sent() < 4 * 65_536 + 50_000, "{}", served.hub.body_bytes_sent());
    let refused = served.run(&["inspect", "org/mistyped"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("no such repository"), "{}", text(&refused.stderr));
    let missing = served.failure(&["perplexity", "org/mistyped.gguf", "--text", "none"]);
    assert!(missing.contains("org/mistyped.gguf") && missing.contains("no such file"), "{missing}");
}

/// Notes which weights are read, one entry for those that take turns.
struct Recorder<'a> {
    store: &'a dyn WeightStore,
    read: Mutex<Vec<Role>>,
}

impl WeightStore for Recorder<'_> {
    fn spec(&self) -> &Spec {
        self.store.spec()
    }

    fn weight(&self, role: Role) -> requant::Result<Weight> {
        self.store.weight(role)
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> requant::Result<()> {
        let mut read = self.read.lock().unwrap();
        if read.last() != Some(&weight.role) {
            read.push(weight.role);
        }
        drop(read);
        self.store.read_rows(weight, rows, tile)
    }

    fn extents(&self, role: Role) -> requant::Result<Vec<Extent>> {
        self.store.extents(role)
    }
}

#[test]
fn the_order_of_need_is_the_order_of_reading() {
    let forward = fixtures().join("goldens/forward");
    let grouped = forward.join("gqa");
    let grouped =
        names(&grouped).into_iter().filter(|name| name.ends_with(".gguf")).map(|name| grouped.join(name));
    for path in [model(), forward.join("deepseek-v2-greedy")].into_iter().chain(grouped) {
        let model = Opened::open(&path).unwrap();
        let recorder = Recorder { store: model.store().unwrap(), read: Mutex::default() };
        let vocab = model.store().unwrap().spec().embedding.vocab as u32;
        let windows = Windows::from_tokens((0..2048).map(|i: u32| i * 7919 % vocab).collect(), 64);
        let request = Request {
            model: &recorder,
            original: None,
            windows: &windows,
            memory_bytes: None,
            scratch: None,
        };
        evaluate::measure(&request, &mut Unobserved).unwrap();
        let with_prediction = requant::model::has_second_next(model.store().unwrap());
        let mut visits = order_of_need(model.store().unwrap(), 0, with_prediction).into_iter();
        let mut now = visits.next().unwrap();
        let mut missed = 0;
        for role in recorder.read.into_inner().unwrap() {
            while !now.contains(&role) {
                now = visits.next().unwrap_or_else(|| panic!("{role:?} is read too late or never expected"));
                missed += 1;
            }
        }
        // All were read, and every expert got tokens.
        assert_eq!(visits.len(), 0);
        assert_eq!(missed + 1, order_of_need(model.store().unwrap(), 0, with_prediction).len());
    }
}
