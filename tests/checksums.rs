//! `requant verify` of directories without a manifest: the hub, records, caches, lists.

use std::path::Path;

use sha2::{Digest, Sha256};
use test_hub::Repo;

use crate::conversion::model;
use crate::served::{ID, Served, flip, model_files, text};

const SHARD: &str = "model-00002-of-00004.safetensors";

/// Runs `verify` and gives its exit code and lines.
fn verify(served: &Served, arguments: &[&str]) -> (i32, Vec<String>) {
    let output = served.run(&[&["verify"], arguments].concat());
    let lines = text(&output.stdout).lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

/// The line about a file, or nothing.
fn line<'a>(lines: &'a [String], name: &str) -> &'a str {
    lines.iter().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or("")
}

/// A copy of the model.
fn copy_model(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in model_files() {
        std::fs::copy(model().join(&name), to.join(&name)).unwrap();
    }
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(std::fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Damages three files of a model and expects that `verify` says so.
fn assert_damage_is_found(served: &Served, directory: &Path, arguments: &[&str], knows_lengths: bool) {
    let (code, lines) = verify(served, arguments);
    assert_eq!(code, 0, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.ends_with(": OK")).count(), model_files().len(), "{lines:?}");

    flip(&directory.join(SHARD), 1000);
    flip(&directory.join("config.json"), 3);
    let tokenizer = std::fs::read(directory.join("tokenizer.json")).unwrap();
    std::fs::write(directory.join("tokenizer.json"), &tokenizer[1..]).unwrap();
    std::fs::remove_file(directory.join("generation_config.json")).unwrap();
    let (code, lines) = verify(served, arguments);
    assert_eq!(code, 1);
    let expected = sha256(&model().join(SHARD));
    let shard = line(&lines, SHARD);
    assert!(shard.starts_with("sha256: found ") && shard.ends_with(&expected), "{shard}");
    assert!(line(&lines, "config.json").contains(": found "), "{lines:?}");
    assert_eq!(line(&lines, "generation_config.json"), "missing");
    let truncated = line(&lines, "tokenizer.json");
    assert_eq!(truncated.starts_with("truncated: found "), knows_lengths, "{truncated}");
    assert_ne!(truncated, "OK");
    assert_eq!(line(&lines, "model-00001-of-00004.safetensors"), "OK");
}

#[test]
fn a_directory_against_the_hub() {
    let served = Served::model();
    copy_model(&served.path("m"));
    std::fs::write(served.path("m/notes.txt"), "mine").unwrap();
    let (code, lines) = verify(&served, &["m", "--against", ID]);
    assert_eq!((code, line(&lines, "notes.txt")), (0, "not listed"));
    let value = served.json(&["verify", "m", "--against", ID]);
    assert_eq!((&value["ok"], &value["unlisted"][0]), (&true.into(), &"notes.txt".into()));
    assert_eq!(value["files"].as_array().unwrap().len(), model_files().len());
    assert_damage_is_found(&served, &served.path("m"), &["m", "--against", ID], true);

    let message = served.failure(&["verify", "m", "--against", "org/other"]);
    assert!(message.contains("org/other"), "{message}");
    let message = served.failure(&["verify", "absent", "--against", ID]);
    assert!(message.contains("absent"), "{message}");
}

#[test]
fn a_directory_against_its_records() {
    let served = Served::model();
    served.json(&["fetch", ID, "-o", "m"]);
    served.hub.clear_requests();
    assert_damage_is_found(&served, &served.path("m"), &["m"], false);
    assert!(served.hub.requests().is_empty());

    std::fs::write(served.path("m/.cache/huggingface/download/README.md.metadata"), "torn").unwrap();
    let (code, lines) = verify(&served, &["m"]);
    assert_eq!(code, 1);
    assert!(line(&lines, "README.md").starts_with("cannot be checked"), "{lines:?}");
}

#[test]
fn the_cache_against_the_hub_and_against_its_names() {
    for offline in [false, true] {
        let mut served = Served::model();
        let snapshot = served.fill_cache();
        if offline {
            served.set("HF_HUB_OFFLINE", "1");
        }
        let (code, lines) = verify(&served, &[snapshot.to_str().unwrap()]);
        assert_eq!(code, 0, "{lines:?}");
        flip(&snapshot.join("README.md"), 3);
        assert_eq!(verify(&served, &[snapshot.to_str().unwrap()]).0, 1);
        flip(&snapshot.join("README.md"), 3);
        // Without the hub nothing says which links there should be: only the hub's list has the
        // file that is removed.
        if offline {
            assert_eq!(verify(&served, &[ID]).0, 0);
            flip(&snapshot.join(SHARD), 1000);
            let (code, lines) = verify(&served, &[ID]);
            assert_eq!(code, 1);
            assert!(line(&lines, SHARD).starts_with("sha256: found"), "{lines:?}");
            assert!(served.hub.requests().is_empty());
        } else {
            assert_damage_is_found(&served, &snapshot, &[ID], true);
        }
    }
    let served = Served::model();
    let message = served.failure(&["verify", ID]);
    assert!(message.contains("no copy in the cache") && message.contains("--against"), "{message}");
}

#[test]
fn the_cache_is_checked_as_the_commit_that_it_is_of() {
    let served = Served::model();
    served.fill_cache();
    let newer = Repo::empty(ID).file("config.json", "{}").unwrap();
    served.hub.set_commit(ID, newer.main().unwrap().clone(), true);
    assert_eq!(verify(&served, &[ID]).0, 0);
    served.hub.set_repo(newer);
    let message = served.failure(&["verify", ID]);
    assert!(message.contains(ID), "{message}");
}

#[test]
fn lists_of_checksums() {
    let served = Served::model();
    copy_model(&served.path("m"));
    let mut list = String::from("# every form\n");
    for (index, name) in model_files().iter().enumerate() {
        let hash = sha256(&model().join(name));
        list += &match index % 3 {
            0 => format!("{hash}  {name}\n"),
            1 => format!("{hash} *{name}\r\n"),
            _ => format!("SHA256 ({name}) = {hash}\n"),
        };
    }
    std::fs::write(served.path("m/SHA256SUMS"), &list).unwrap();
    std::fs::write(served.path("list"), &list).unwrap();
    let (code, lines) = verify(&served, &["m", "--sums", "m/SHA256SUMS"]);
    assert_eq!((code, lines.len()), (0, model_files().len()), "{lines:?}");
    assert_eq!(line(&verify(&served, &["m", "--sums", "list"]).1, "SHA256SUMS"), "not listed");
    assert_damage_is_found(&served, &served.path("m"), &["m/SHA256SUMS"], false);

    std::fs::write(served.path("list"), list + "d41d8cd98f00b204e9800998ecf8427e  a\n").unwrap();
    let message = served.failure(&["verify", "m", "--sums", "list"]);
    assert!(message.contains(&format!("line {}", model_files().len() + 2)), "{message}");
}

#[test]
fn a_list_with_an_escaped_name_and_no_newline_at_the_end() {
    let served = Served::model();
    std::fs::write(served.path("a\nb"), "hello\n").unwrap();
    let hash = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    std::fs::write(served.path("list"), format!("\\{hash}  a\\nb")).unwrap();
    let value = served.json(&["verify", "list"]);
    assert_eq!((&value["ok"], &value["files"][0]["file"]), (&true.into(), &"a\nb".into()));
}

#[test]
fn nothing_to_check_against_says_how_to_go_on() {
    let served = Served::model();
    copy_model(&served.path("m"));
    let message = served.failure(&["verify", "m"]);
    assert!(message.contains("--against") && message.contains("--sums"), "{message}");
    let message = served.failure(&["verify", "out/gone.gguf"]);
    assert!(message.contains("no such file"), "{message}");
    std::fs::write(served.path("m.gguf"), "GGUF").unwrap();
    let message = served.failure(&["verify", "m.gguf"]);
    assert!(message.contains("manifest"), "{message}");
    assert!(served.hub.requests().is_empty());
}
