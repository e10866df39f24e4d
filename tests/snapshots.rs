//! The Hugging Face cache is held against the names of its blobs: before a byte of it is used, by every command.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::conversion::{fixtures, sha256};
use crate::served::{ID, Served, flip, local_digest, text};

const SHARD: &str = "model-00002-of-00004.safetensors";

/// A full cache, and no network.
fn offline() -> (Served, PathBuf) {
    let mut served = Served::model();
    let snapshot = served.fill_cache();
    served.set("HF_HUB_OFFLINE", "1");
    (served, snapshot)
}

/// A text of a few windows.
fn some_text(served: &Served) -> String {
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let path = served.path("some.txt");
    std::fs::write(&path, whole.chars().take(3000).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn len(path: &Path) -> usize {
    path.metadata().unwrap().len() as usize
}

#[test]
fn a_flipped_bit_in_a_blob_stops_every_command_that_reads_it() {
    let (served, snapshot) = offline();
    let sample = some_text(&served);
    let perplexity = ["perplexity", ID, "--text", &sample];
    let convert = ["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"];
    let plan = ["plan", ID, "--to", "q4_k_m"];
    let (inspect, fetch) = (["inspect", ID], ["fetch", ID, "-o", "m"]);
    let last = len(&snapshot.join(SHARD)) - 1;
    // Of the shard a weight, and a letter of its header.
    let all: &[&[&str]] = &[&convert, &plan, &perplexity, &inspect, &fetch];
    for (name, at, commands) in [
        (SHARD, last, all),
        (SHARD, 40, all),
        ("config.json", 30, all),
        ("tokenizer.json", 500, &[&convert, &plan, &perplexity, &fetch]),
        ("model.safetensors.index.json", 60, &[&convert, &plan, &perplexity, &fetch]),
    ] {
        let path = snapshot.join(name);
        flip(&path, at);
        for command in commands {
            // What an earlier command has fetched, it would not fetch again.
            let _ = std::fs::remove_dir_all(served.path("m"));
            let message = served.failure(command);
            let blob = path.canonicalize().unwrap();
            let blob = blob.file_name().unwrap().to_str().unwrap();
            assert!(
                message.contains(name) && message.contains("damaged") && message.contains(blob),
                "{command:?}, {name}: {message}"
            );
            assert!(message.contains("OFFLINE"), "{message}");
            assert!(!served.path("m.gguf").exists() && !served.path("m").join(name).exists());
        }
        let (code, lines) = (served.run(&["verify", ID]).status.code(), served.run(&["verify", ID]).stdout);
        assert!(code == Some(1) && text(&lines).contains(&format!("{name}: ")), "{}", text(&lines));
        flip(&path, at);
    }
    served.json(&convert);
    assert_eq!(sha256(&std::fs::read(served.path("m.gguf")).unwrap()), local_digest("q4_k_m"));
    let manifest = std::fs::read_to_string(served.path("m.gguf.manifest.json")).unwrap();
    assert!(manifest.contains(&sha256(&std::fs::read(snapshot.join(SHARD)).unwrap())), "{manifest}");
    for command in [&plan[..], &perplexity, &inspect] {
        served.json(command);
    }
    assert!(served.hub.requests().is_empty());
}

#[test]
fn an_unfinished_run_does_not_trust_what_it_read_before() {
    let (served, snapshot) = offline();
    let arguments = ["convert", ID, "--to", "q4_k_m", "-o", "m.gguf", "--threads", "1", "--quiet"];
    let is_begun = || {
        let names = std::fs::read_dir(served.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        names.into_iter().any(|name| name.to_string_lossy().contains("journal"))
    };
    let mut child = served.spawn(&arguments);
    let start = Instant::now();
    while !is_begun() && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_begun() && !served.path("m.gguf").exists(), "the run was not stopped in the middle");

    let path = snapshot.join(SHARD);
    flip(&path, len(&path) - 1);
    let message = served.failure(&arguments[..arguments.len() - 1]);
    assert!(message.contains(SHARD) && message.contains("damaged"), "{message}");
    assert!(!served.path("m.gguf").exists());
    flip(&path, len(&path) - 1);
    served.json(&arguments[..arguments.len() - 1]);
    assert_eq!(sha256(&std::fs::read(served.path("m.gguf")).unwrap()), local_digest("q4_k_m"));
}

#[test]
fn what_no_name_vouches_for_is_named() {
    let (served, snapshot) = offline();
    let convert = ["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"];
    let (link, elsewhere) = (snapshot.join(SHARD), served.path("elsewhere"));
    let target = std::fs::read_link(&link).unwrap();
    std::fs::copy(&link, &elsewhere).unwrap();
    let not_a_digest = snapshot.join("../../blobs/0123");
    std::fs::copy(&link, &not_a_digest).unwrap();
    for other in [elsewhere.to_str().unwrap(), "../../blobs/0123"] {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(other, &link).unwrap();
        for command in
            [&convert[..], &["plan", ID, "--to", "q4_k_m"], &["inspect", ID], &["fetch", ID, "-o", "m"]]
        {
            let message = served.failure(command);
            assert!(
                message.contains(SHARD) && message.contains("cannot be verified"),
                "{command:?}, {other}: {message}"
            );
        }
    }
    std::fs::remove_file(&link).unwrap();
    std::fs::copy(&elsewhere, &link).unwrap();
    let message = served.failure(&convert);
    assert!(message.contains(SHARD) && message.contains("cannot be verified"), "{message}");
    // One that is not read does not matter.
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(target, &link).unwrap();
    std::fs::write(snapshot.join("notes.txt"), "mine").unwrap();
    served.json(&convert);
}

#[test]
fn a_snapshot_that_is_named_by_its_path_is_verified_as_well() {
    let (served, snapshot) = offline();
    let path = snapshot.to_str().unwrap();
    let convert = ["convert", path, "--to", "q4_k_m", "-o", "m.gguf"];
    flip(&snapshot.join(SHARD), len(&snapshot.join(SHARD)) - 1);
    let sample = some_text(&served);
    for command in [&convert[..], &["inspect", path], &["perplexity", path, "--text", &sample]] {
        let message = served.failure(command);
        assert!(message.contains(SHARD) && message.contains("damaged"), "{command:?}: {message}");
    }
    flip(&snapshot.join(SHARD), len(&snapshot.join(SHARD)) - 1);
    // A file of the user's own that lies there is one like in any directory.
    let config = snapshot.join("config.json");
    let content = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, content).unwrap();
    served.json(&convert);
}

#[test]
fn with_the_network_what_is_damaged_in_the_cache_is_fetched_again() {
    let served = Served::model();
    let snapshot = served.fill_cache();
    let sample = some_text(&served);
    let flips = [(SHARD, 40), (SHARD, 100_000), ("config.json", 30), ("tokenizer.json", 500)];
    flips.iter().for_each(|(name, at)| flip(&snapshot.join(name), *at));
    served.json(&["plan", ID, "--to", "q4_k_m"]);
    served.json(&["inspect", ID]);
    served.json(&["perplexity", ID, "--text", &sample]);
    served.json(&["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"]);
    assert_eq!(sha256(&std::fs::read(served.path("m.gguf")).unwrap()), local_digest("q4_k_m"));
    let asked = served.hub.requests().into_iter().filter_map(|request| request.file);
    let mut asked: Vec<String> = asked.collect();
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["config.json", SHARD, "tokenizer.json"]);
}
