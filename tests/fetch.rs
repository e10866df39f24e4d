//! `requant fetch` from a local hub, whole and with faults.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use test_hub::{Action, Commit, Fault, Gate, GateMode, Host, Repo};

use crate::conversion::model;
use crate::served::{ID, Served, flip, model_files, text};

const SHARD: &str = "model-00002-of-00004.safetensors";
const DOWNLOADS: &str = ".cache/huggingface/download";

/// The directory has the model's files, byte for byte, and no other.
#[track_caller]
fn assert_is_model(directory: &Path) {
    let mut names = crate::conversion::names(directory);
    names.retain(|name| name != ".cache");
    assert_eq!(names, model_files());
    for name in names {
        let same =
            std::fs::read(directory.join(&name)).unwrap() == std::fs::read(model().join(&name)).unwrap();
        assert!(same, "{name}");
    }
}

/// Files that are still arriving.
fn partials(directory: &Path) -> usize {
    let names = crate::conversion::names(&directory.join(DOWNLOADS));
    names.iter().filter(|name| !name.ends_with(".metadata")).count()
}

fn model_bytes() -> u64 {
    model_files().iter().map(|name| model().join(name).metadata().unwrap().len()).sum()
}

/// Waits until the hub has sent so many bytes of files.
fn wait_for_bytes(served: &Served, bytes: u64) {
    let started = Instant::now();
    while served.hub.body_bytes_sent() < bytes {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing comes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_model_with_records_and_the_second_time_nothing() {
    let served = Served::model();
    let first = served.json(&["fetch", ID, "-o", "m"]);
    assert_is_model(&served.path("m"));
    assert_eq!(first["repo"], ID);
    assert_eq!(first["bytes"], model_bytes());
    assert_eq!(first["downloaded_bytes"], model_bytes());
    assert_eq!(first["files"].as_array().unwrap().len(), model_files().len());
    assert_eq!(partials(&served.path("m")), 0);
    for file in first["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        let digest = file.get("sha256").unwrap_or(&file["blob_id"]).as_str().unwrap();
        assert_eq!(file.get("sha256").is_some(), name.ends_with(".safetensors"), "{name}");
        let record = served.path("m").join(DOWNLOADS).join(format!("{name}.metadata"));
        let record = std::fs::read_to_string(record).unwrap();
        let lines: Vec<&str> = record.lines().collect();
        assert_eq!(lines[..2], [first["commit"].as_str().unwrap(), digest]);
        assert!(lines[2].parse::<f64>().unwrap() > 1.7e9, "{record}");
    }

    let sent = served.hub.body_bytes_sent();
    assert_eq!(served.json(&["fetch", ID, "-o", "m"])["downloaded_bytes"], 0);
    assert_eq!(served.hub.body_bytes_sent(), sent);

    // Damage that keeps the length is found, and only that file is brought again.
    flip(&served.path("m").join("config.json"), 5);
    let config_bytes = model().join("config.json").metadata().unwrap().len();
    assert_eq!(served.json(&["fetch", ID, "-o", "m"])["downloaded_bytes"], config_bytes);
    assert_is_model(&served.path("m"));
}

#[test]
fn folders_a_revision_and_what_it_becomes() {
    let repo = Repo::empty(ID).file("sub/dir/a.bin", "one").unwrap().file("empty", "").unwrap();
    let served = Served::repo(repo);
    let old = served.json(&["fetch", ID, "-o", "m"])["commit"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read(served.path("m/sub/dir/a.bin")).unwrap(), b"one");
    assert_eq!(std::fs::read(served.path("m/empty")).unwrap(), b"");

    let changed = Repo::empty(ID).file("sub/dir/a.bin", "two!").unwrap().file("empty", "").unwrap();
    served.hub.set_commit(ID, Commit::new(changed.main().unwrap().files().to_vec()), true);
    let second = served.json(&["fetch", ID, "-o", "m"]);
    assert_ne!(second["commit"], old.as_str());
    assert_eq!(second["downloaded_bytes"], 4);
    assert_eq!(std::fs::read(served.path("m/sub/dir/a.bin")).unwrap(), b"two!");
    let back = served.json(&["fetch", &format!("{ID}@{old}"), "-o", "m"]);
    assert_eq!((back["commit"].as_str(), back["downloaded_bytes"].as_u64()), (Some(old.as_str()), Some(3)));
}

#[test]
fn the_commit_is_pinned_and_bookkeeping_of_others_is_left_out() {
    let stray = ".cache/huggingface/download/config.json.metadata";
    let served = Served::repo(Repo::from_directory(ID, &model()).unwrap().file(stray, "1").unwrap());
    served.hub.set_rate(Some(4_000_000));
    let mut child = served.spawn(&["fetch", ID, "-o", "m"]);
    wait_for_bytes(&served, 2_000_000);
    let newer = Repo::empty(ID).file("config.json", "{}").unwrap();
    served.hub.set_commit(ID, newer.main().unwrap().clone(), true);
    assert!(child.wait().unwrap().success());
    assert_is_model(&served.path("m"));
    assert!(std::fs::read_to_string(served.path("m").join(stray)).unwrap().lines().count() == 3);
    assert_eq!(served.run(&["verify", "m"]).status.code(), Some(0));
}

#[test]
fn a_killed_and_an_interrupted_run_are_gone_on_with() {
    for signal in ["KILL", "INT"] {
        let served = Served::model();
        served.hub.set_rate(Some(3_000_000));
        let mut child = served.spawn(&["fetch", ID, "-o", "m", "--connections", "3"]);
        wait_for_bytes(&served, 4_000_000);
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        assert!(!child.wait().unwrap().success());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("the same command goes on"), signal == "INT", "{said}");

        served.hub.set_rate(None);
        let rest = served.json(&["fetch", ID, "-o", "m"])["downloaded_bytes"].as_u64().unwrap();
        assert!(rest < model_bytes() - 2_000_000, "{rest} of {} again", model_bytes());
        assert_is_model(&served.path("m"));
        assert_eq!(partials(&served.path("m")), 0);
    }
}

#[test]
fn the_second_of_two_stops_at_once() {
    let served = Served::model();
    served.hub.set_rate(Some(500_000));
    let mut first = served.spawn(&["fetch", ID, "-o", "m"]);
    wait_for_bytes(&served, 100_000);
    let message = served.failure(&["fetch", ID, "-o", "m"]);
    assert!(message.contains("another requant"), "{message}");
    served.hub.set_rate(None);
    assert!(first.wait().unwrap().success());
    assert_is_model(&served.path("m"));
}

#[test]
fn faults_on_the_way_are_survived() {
    let served = Served::model();
    let text = String::new();
    for (pattern, action) in [
        (SHARD, Action::Drop { after_bytes: 70_000 }),
        ("tokenizer.json", Action::Truncate { missing_bytes: 1000, claims_less: true }),
        ("model-00003", Action::Status { code: 503, retry_after: None, text }),
        ("model-00004", Action::Corrupt { offset: 123_456 }),
        ("model-00001", Action::IgnoreRange),
    ] {
        served.hub.add_fault(Fault::new(pattern, action).times(1));
    }
    served.json(&["fetch", ID, "-o", "m"]);
    assert_is_model(&served.path("m"));
}

#[test]
fn lasting_damage_is_named_and_gets_no_name() {
    let served = Served::model();
    served.hub.add_fault(Fault::new(SHARD, Action::Corrupt { offset: 1000 }));
    let message = served.failure(&["fetch", ID, "-o", "m"]);
    assert!(
        message.contains(SHARD) && message.contains("found") && message.contains("expected"),
        "{message}"
    );
    assert!(!served.path("m").join(SHARD).exists());
    assert!(served.path("m").join("config.json").exists());
    served.hub.clear_faults();
    served.json(&["fetch", ID, "-o", "m"]);
    assert_is_model(&served.path("m"));
}

#[test]
fn tokens_open_gates_and_stay_at_the_hub() {
    let token = "hf_secret";
    let gate = Gate { mode: GateMode::Manual, granted: vec![token.to_owned()] };
    let mut served = Served::repo(Repo::from_directory(ID, &model()).unwrap().with_token(token).gated(gate));
    let message = served.failure(&["fetch", ID, "-o", "m"]);
    assert!(message.contains(ID) && message.contains("HF_TOKEN"), "{message}");
    assert!(!served.path("m").exists());

    served.set("HF_TOKEN", token);
    served.json(&["fetch", ID, "-o", "m"]);
    assert_is_model(&served.path("m"));
    let requests = served.hub.requests();
    assert!(requests.iter().any(|request| request.host == Host::Cdn));
    assert!(requests.iter().all(|request| request.host == Host::Hub || !request.had_token));
}

#[test]
fn the_cache_is_used_and_enough_without_the_network() {
    let mut served = Served::model();
    let snapshot = served.fill_cache();
    assert_eq!(served.json(&["fetch", ID, "-o", "m"])["downloaded_bytes"], 0);
    assert_is_model(&served.path("m"));

    // What is damaged there is downloaded.
    flip(&snapshot.join(SHARD), 77);
    let bytes = model().join(SHARD).metadata().unwrap().len();
    assert_eq!(served.json(&["fetch", ID, "-o", "n"])["downloaded_bytes"], bytes);
    assert_is_model(&served.path("n"));

    served.set("HF_HUB_OFFLINE", "1");
    served.hub.clear_requests();
    let message = served.failure(&["fetch", ID, "-o", "o"]);
    assert!(
        message.contains(SHARD) && message.contains("damaged") && message.contains("OFFLINE"),
        "{message}"
    );
    flip(&snapshot.join(SHARD), 77);
    assert_eq!(served.json(&["fetch", ID, "-o", "o"])["downloaded_bytes"], 0);
    assert_is_model(&served.path("o"));
    std::fs::remove_file(snapshot.join(SHARD)).unwrap();
    let message = served.failure(&["fetch", ID, "-o", "p"]);
    assert!(message.contains(SHARD) && message.contains("not in the cache"), "{message}");
    let message = served.failure(&["fetch", "org/other", "-o", "p"]);
    assert!(message.contains("org/other") && message.contains("OFFLINE"), "{message}");
    assert!(served.hub.requests().is_empty());
}

#[test]
fn bad_places_are_named() {
    let served = Served::model();
    std::fs::write(served.path("file"), "").unwrap();
    let message = served.failure(&["fetch", ID, "-o", "file"]);
    assert!(message.contains("file"), "{message}");
    std::fs::create_dir_all(served.path("m/config.json")).unwrap();
    let message = served.failure(&["fetch", ID, "-o", "m"]);
    assert!(message.contains("config.json"), "{message}");
    let message = served.failure(&["fetch", "a/b/c", "-o", "m"]);
    assert!(message.contains("hub id"), "{message}");
    let usage = served.run(&["fetch", ID]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("--output"));
}
