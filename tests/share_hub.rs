//! Shares of a model on a hub: each shard comes once where that is possible, and all shares read one commit.

use std::path::{Path, PathBuf};
use std::process::Command;

use requant::pipeline::{Pinned, ShareState};
use requant_formats::Dtype;
use test_hub::{Commit, Hub, Repo};

use crate::conversion::{convert, names, sha256};
use crate::maker::{self, Size, Storage};
use crate::served;
use crate::share_processes::{self, succeeds};
use crate::shares::Dealt;

const ID: &str = "org/eight-shards";
/// Bytes of a shard's beginning that are read for its header, at most.
const HEADER_BYTES: u64 = 70_000;

/// A checkpoint in eight shards of nearly one size, scales beside their weights, and one for the prediction layer.
fn eight_shards(directory: &Path) {
    let size = Size { hidden: 256, experts: 16, layers: 4, expert_width: 256, kv_lora: 128 };
    let mut checkpoint = maker::checkpoint(size, Storage::Fp8(Dtype::F8_E4M3));
    let is_dropped = |name: &str| name.starts_with("model.layers.4.");
    let total: usize = checkpoint
        .tensors
        .iter()
        .filter(|tensor| !is_dropped(&tensor.name))
        .map(|tensor| tensor.bytes.len())
        .sum();
    let (mut before, mut of_weight) = (0, 0);
    for tensor in &mut checkpoint.tensors {
        if is_dropped(&tensor.name) {
            tensor.shard = 8;
            continue;
        }
        if !tensor.name.ends_with("_scale_inv") {
            of_weight = (8 * (before + tensor.bytes.len() / 2) / total).min(7);
        }
        before += tensor.bytes.len();
        tensor.shard = of_weight;
    }
    checkpoint.write(directory);
    maker::copy_tokenizer(directory);
}

/// A hub with the model, and a directory for results.
struct Desk {
    hub: Hub,
    home: tempfile::TempDir,
    model: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("source/eight-shards");
        std::fs::create_dir_all(&model).unwrap();
        eight_shards(&model);
        let hub = Hub::start(vec![Repo::from_directory(ID, &model).unwrap()]).unwrap();
        std::fs::create_dir(home.path().join("work")).unwrap();
        Self { hub, home, model }
    }

    fn work(&self) -> PathBuf {
        self.home.path().join("work")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = share_processes::command(&self.work(), arguments);
        served::environment(
            &mut command,
            &self.hub,
            &self.home.path().join("home"),
            &self.home.path().join("cache"),
        );
        command
    }

    fn share(&self, model: &str, job: &str) -> Command {
        self.command(&[
            "convert",
            model,
            "--to",
            "q4_0",
            "-o",
            "m.gguf",
            "--threads",
            "1",
            "-q",
            "--job",
            job,
        ])
    }

    fn refused(&self, mut command: Command) -> String {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", served::text(&output.stdout));
        served::text(&output.stderr)
    }

    fn result(&self) -> String {
        sha256(&std::fs::read(self.work().join("m.gguf")).unwrap())
    }

    /// Digest of what one machine makes of the directory.
    fn local(&self) -> String {
        let output = tempfile::tempdir().unwrap();
        convert(&self.model, "q4_0", 2, &output.path().join("m.gguf")).unwrap().manifest.files[0]
            .sha256
            .clone()
    }
}

#[test]
fn every_shard_comes_once() {
    let desk = Desk::new();
    let plan = desk.command(&["plan", ID, "--to", "q4_0", "--jobs", "4", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&succeeds(plan)).unwrap();
    let shares = plan["shares"].as_array().unwrap();
    let mut files: Vec<&str> = Vec::new();
    let total: u64 = shares.iter().map(|share| share["bytes_in"].as_u64().unwrap()).sum();
    for (number, share) in shares.iter().enumerate() {
        assert_eq!(share["job"], number + 1);
        files.extend(share["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()));
        let bytes = share["bytes_in"].as_u64().unwrap() as f64;
        assert!((4.0 * bytes / total as f64 - 1.0).abs() < 0.05, "{plan:#}");
        let room = share["download_bytes"].as_u64().unwrap() + share["bytes_out"].as_u64().unwrap();
        assert_eq!(share["peak_disk_bytes"], room);
    }
    assert_eq!(files.len(), 8, "{files:?}");
    desk.hub.clear_requests();
    let before: u64 = desk.hub.body_bytes_sent();
    let of_plan: Vec<u64> = files.iter().map(|file| desk.hub.body_bytes_of(file)).collect();
    // Two after the other, two at once.
    ["3/4", "1/4"].into_iter().for_each(|job| drop(succeeds(desk.share(ID, job))));
    let children = ["4/4", "2/4"].map(|job| desk.share(ID, job).spawn().unwrap());
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    for (file, of_plan) in files.iter().zip(of_plan) {
        let len = desk.model.join(file).metadata().unwrap().len();
        let came = desk.hub.body_bytes_of(file) - of_plan;
        assert!(len > 1_000_000 && came <= len + 4 * HEADER_BYTES, "{file}: {came} of {len}");
    }
    assert!(desk.hub.body_bytes_sent() > before);
    // Nobody asks for anything now.
    desk.hub.clear_requests();
    succeeds(desk.command(&["join", "m.gguf", "-q"]));
    assert!(desk.hub.requests().is_empty());
    assert_eq!(desk.result(), desk.local());
    assert_eq!(names(&desk.work()), ["m.gguf", "m.gguf.manifest.json"]);
    let shares_manifest = std::fs::read(desk.work().join("m.gguf.manifest.json")).unwrap();
    std::fs::remove_file(desk.work().join("m.gguf")).unwrap();
    std::fs::remove_file(desk.work().join("m.gguf.manifest.json")).unwrap();
    succeeds(desk.command(&["convert", ID, "--to", "q4_0", "-o", "m.gguf", "--threads", "1", "-q"]));
    assert!(std::fs::read(desk.work().join("m.gguf.manifest.json")).unwrap() == shares_manifest);
}

#[test]
fn all_shares_read_the_commit_of_the_first() {
    for keeps_old in [true, false] {
        let desk = Desk::new();
        let expected = desk.local();
        succeeds(desk.share(ID, "1/3"));
        let other = tempfile::tempdir().unwrap();
        for name in names(&desk.model) {
            std::fs::copy(desk.model.join(&name), other.path().join(&name)).unwrap();
        }
        let shard = other.path().join("model-00004-of-00009.safetensors");
        let mut bytes = std::fs::read(&shard).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&shard, bytes).unwrap();
        desk.hub.set_commit(ID, Commit::from_directory(other.path()).unwrap(), keeps_old);
        if keeps_old {
            ["2/3", "3/3"].into_iter().for_each(|job| drop(succeeds(desk.share(ID, job))));
            succeeds(desk.command(&["join", "m.gguf", "-q"]));
            assert_eq!(desk.result(), expected);
        } else {
            desk.refused(desk.share(ID, "2/3"));
            let error = desk.refused(desk.command(&["join", "m.gguf", "-q"]));
            assert!(error.contains("2 of 3 shares are not done"), "{error}");
        }
    }
}

#[test]
fn a_share_of_another_revision_stops() {
    let desk = Desk::new();
    succeeds(desk.share(ID, "1/3"));
    let listed = std::fs::read_to_string(desk.work().join("m.gguf.shares/plan/request.json")).unwrap();
    let agreed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let commit = agreed["request"]["pinned"]["commit"].as_str().unwrap();
    let error = desk.refused(desk.share(&format!("{ID}@{commit}"), "2/3"));
    assert!(error.contains("the revision was main") && error.contains(commit), "{error}");
    let killed = desk.share(ID, "2/3").spawn().unwrap();
    drop(killed.wait_with_output());
    assert!(names(&desk.work()).iter().all(|name| !name.contains("spool")), "{:?}", names(&desk.work()));
}

#[test]
fn of_two_that_begin_at_two_commits_the_second_is_told_to_plan_anew() {
    let pinned = |revision: &str, commit: &str| {
        Some(Pinned { repo: "org/m".into(), revision: revision.into(), commit: commit.into() })
    };
    let mut dealt = Dealt::new("q4_0", "m.gguf");
    let directory = tempfile::tempdir().unwrap();
    dealt.settings.pinned = pinned("main", "a");
    assert_eq!(dealt.share(directory.path(), 1, 2).unwrap().state, ShareState::Done);
    dealt.settings.pinned = pinned("main", "b");
    assert_eq!(dealt.share(directory.path(), 2, 2).unwrap().state, ShareState::OtherCommit);
    dealt.settings.pinned = pinned("refs/pr/1", "a");
    let error = dealt.share(directory.path(), 2, 2).unwrap_err().to_string();
    assert!(error.contains("the revision was main, now refs/pr/1"), "{error}");
}

/// `kill -9` at many moments of streamed shares.
#[test]
fn killed_shares_of_a_hub_go_on() {
    let desk = Desk::new();
    let expected = desk.local();
    desk.hub.set_rate(Some(20_000_000));
    let mut random = crate::recorder::Random(77);
    let mut kills = 0;
    for job in [1, 2, 3, 2, 1, 3, 1, 2, 3] {
        let mut child =
            desk.share(ID, &format!("{job}/3")).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(random.below(700) as u64));
        let _ = child.kill();
        kills += usize::from(child.wait().unwrap().code().is_none());
    }
    assert!(kills > 2, "{kills}");
    desk.hub.set_rate(None);
    (1..=3).for_each(|job| drop(succeeds(desk.share(ID, &format!("{job}/3")))));
    succeeds(desk.command(&["join", "m.gguf", "-q"]));
    assert_eq!(desk.result(), expected);
    assert_eq!(names(&desk.work()), ["m.gguf", "m.gguf.manifest.json"]);
}
