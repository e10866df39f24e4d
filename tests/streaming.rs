//! Conversions straight from a hub that misbehaves, with the real binary: whatever happens, the
//! result is the one of a local conversion, or there is an error that says what to do.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use requant_formats::Dtype;
use test_hub::{Action, Commit, Fault, Gate, GateMode, Host, Hub, Repo};

use crate::conversion::{convert, model, names, sha256};
use crate::maker::{self, Size, Storage};
use crate::served::{self, text};

const ID: &str = "org/tiny-deepseek-v3";

/// A directory for the output and the cache, and the hub.
struct Desk<'a> {
    directory: tempfile::TempDir,
    hub: &'a Hub,
}

impl<'a> Desk<'a> {
    fn new(hub: &'a Hub) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), hub }
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("m.gguf")
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// `requant convert ID --to FORMAT -o OUTPUT` and more.
    fn command(&self, format: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        command.args(["convert", ID, "--to", format, "--threads", "2", "-o"]).arg(self.output()).args(more);
        self.environment(&mut command);
        command
    }

    fn environment(&self, command: &mut Command) {
        served::environment(command, self.hub, &self.directory.path().join("home"), &self.cache());
    }

    fn run(&self, format: &str, more: &[&str]) -> Output {
        self.command(format, more).output().unwrap()
    }

    /// Runs and expects success; returns the digest of the result.
    fn convert(&self, format: &str, more: &[&str]) -> String {
        let output = self.run(format, more);
        assert!(output.status.success(), "{}", text(&output.stderr));
        sha256(&std::fs::read(self.output()).unwrap())
    }

    fn start(&self, format: &str, more: &[&str]) -> Child {
        self.command(format, more).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }
}

fn fixture_hub() -> Hub {
    Hub::start(vec![Repo::from_directory(ID, &model()).unwrap()]).unwrap()
}

/// Digest of a local conversion of `directory`.
fn local(directory: &Path, format: &str) -> String {
    let output = tempfile::tempdir().unwrap();
    convert(directory, format, 2, &output.path().join("m.gguf")).unwrap().manifest.files[0].sha256.clone()
}

/// Bytes of the shards that a conversion reads.
fn needed_bytes() -> u64 {
    (1..=3).map(|shard| shard_path(shard).metadata().unwrap().len()).sum()
}

fn shard_path(number: usize) -> PathBuf {
    model().join(format!("model-{number:05}-of-00004.safetensors"))
}

#[test]
fn the_result_is_that_of_a_local_conversion_and_nothing_else_is_left() {
    let hub = fixture_hub();
    let desk = Desk::new(&hub);
    assert_eq!(desk.convert("q4_k_m", &[]), local(&model(), "q4_k_m"));
    assert_eq!(names(desk.directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
    let manifest = std::fs::read_to_string(desk.directory.path().join("m.gguf.manifest.json")).unwrap();
    let shard = sha256(&std::fs::read(shard_path(2)).unwrap());
    assert!(manifest.contains(&shard) && manifest.contains(&format!("{ID}@")), "{manifest}");
    // Nothing is fetched twice, and nothing that is not needed: headers, small files, three shards.
    assert!(hub.body_bytes_sent() < needed_bytes() + 1_000_000, "{}", hub.body_bytes_sent());
    assert!(hub.body_bytes_of("model-00004-of-00004.safetensors") <= 70_000);
}

#[test]
fn a_directory_target_is_streamed_as_well() {
    let hub = fixture_hub();
    let desk = Desk::new(&hub);
    // Ours would say where the source was.
    let output = desk.run("mlx-4bit", &["--card", "mlx-lm"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let whole = tempfile::tempdir().unwrap();
    let local = whole.path().join("m.gguf");
    convert(&model(), "mlx-4bit", 2, &local).unwrap();
    assert_eq!(names(&desk.output()), names(&local));
    // The manifests say where each came from.
    for name in names(&local).into_iter().filter(|name| name != "requant.manifest.json") {
        assert_eq!(
            std::fs::read(desk.output().join(&name)).unwrap(),
            std::fs::read(local.join(&name)).unwrap()
        );
    }
}

/// What a fused pair shares can be in another shard too: NVFP4 needs the largest weight of both.
#[test]
fn packed_results_of_shards_that_need_each_other() {
    let source = tempfile::tempdir().unwrap();
    let named = source.path().join("tiny-deepseek-v3");
    std::fs::create_dir(&named).unwrap();
    let size = Size { experts: 2, layers: 1, ..Size::default() };
    let mut checkpoint = maker::checkpoint(size, Storage::Fp8(Dtype::F8_E4M3));
    checkpoint.spread(5);
    checkpoint.write(&named);
    maker::copy_tokenizer(&named);
    let shards = names(&named).into_iter().filter(|name| name.ends_with(".safetensors"));
    let largest = shards.map(|name| named.join(name).metadata().unwrap().len()).max().unwrap();
    let hub = Hub::start(vec![Repo::from_directory(ID, &named).unwrap()]).unwrap();
    for format in
        ["compressed-tensors-nvfp4", "compressed-tensors-w4a16-asym-g32", "gptq-4bit-32g", "awq-4bit-32g"]
    {
        let whole = tempfile::tempdir().unwrap();
        let expected = convert(&named, format, 2, &whole.path().join("m")).unwrap().manifest.files;
        for limit in [largest, 100 * largest] {
            let desk = Desk::new(&hub);
            let output = desk.run(format, &["--spool-limit", &limit.to_string()]);
            assert!(output.status.success(), "{format}: {}", text(&output.stderr));
            for file in &expected {
                let found = sha256(&std::fs::read(desk.output().join(&file.name)).unwrap());
                assert_eq!(found, file.sha256, "{format}, limit {limit}: {}", file.name);
            }
        }
    }
}

#[test]
fn scales_in_other_shards_fit_into_any_spool() {
    // Round robin: every weight has its scale in the next shard, and the shards need each other in a circle.
    for shards in [2, 3, 7] {
        let source = tempfile::tempdir().unwrap();
        let mut checkpoint = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
        checkpoint.spread(shards);
        checkpoint.write(source.path());
        maker::copy_tokenizer(source.path());
        let named = source.path().join("tiny-deepseek-v3");
        std::fs::create_dir(&named).unwrap();
        for name in names(source.path()).iter().filter(|name| name.contains('.')) {
            std::fs::rename(source.path().join(name), named.join(name)).unwrap();
        }
        let expected = local(&named, "q4_0");
        let largest = names(&named)
            .iter()
            .filter(|name| name.ends_with(".safetensors"))
            .map(|name| named.join(name).metadata().unwrap().len())
            .max()
            .unwrap();
        let hub = Hub::start(vec![Repo::from_directory(ID, &named).unwrap()]).unwrap();
        for limit in [largest, 2 * largest, 100 * largest] {
            let desk = Desk::new(&hub);
            let limit = limit.to_string();
            assert_eq!(
                desk.convert("q4_0", &["--spool-limit", &limit]),
                expected,
                "{shards} shards, {limit}"
            );
        }
        let desk = Desk::new(&hub);
        let small = desk.run("q4_0", &["--spool-limit", &(largest - 1).to_string()]);
        assert_eq!(small.status.code(), Some(1));
        assert!(text(&small.stderr).contains("--spool-limit"), "{}", text(&small.stderr));
        assert_eq!(names(desk.directory.path()), Vec::<String>::new());
    }
}

#[test]
fn the_spool_stays_within_its_limit() {
    let hub = fixture_hub();
    hub.set_rate(Some(8_000_000));
    let desk = Desk::new(&hub);
    let limit = (2..=3).map(|shard| shard_path(shard).metadata().unwrap().len()).max().unwrap();
    let mut child = desk.start("q4_0", &["--spool-limit", &limit.to_string()]);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = most.max(bytes_below(&desk.directory.path().join("m.gguf.spool/shards")));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success());
    assert!(most > 0 && most <= limit + 4096, "{most} of {limit}");
}

/// Lengths of the shards below `directory`.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[test]
fn every_passing_fault_is_survived() {
    let status = |code, after: Option<u64>| Action::Status {
        code,
        retry_after: after.map(Duration::from_secs),
        text: "try later".into(),
    };
    let shard = "model-00002";
    let faults = [
        ("drop", Action::Drop { after_bytes: 100_000 }, 3),
        ("drop at once", Action::Drop { after_bytes: 0 }, 3),
        ("stall", Action::Stall { after_bytes: 50_000, pause: Duration::from_secs(3) }, 1),
        ("503", status(503, None), 2),
        ("429 with Retry-After", status(429, Some(1)), 2),
        ("500", status(500, None), 2),
        ("corruption", Action::Corrupt { offset: 700_000 }, 1),
        ("truncation", Action::Truncate { missing_bytes: 1000, claims_less: false }, 2),
        ("truncation that HTTP does not see", Action::Truncate { missing_bytes: 1000, claims_less: true }, 2),
        ("ignored ranges", Action::IgnoreRange, 100),
        ("a page instead of the file", Action::WrongPage, 2),
        ("refusal", Action::Refuse, 2),
    ];
    let expected = local(&model(), "q4_0");
    for (what, action, times) in faults {
        let hub = fixture_hub();
        hub.add_fault(Fault::new(shard, action).skip(1).times(times).on(Host::Cdn));
        let desk = Desk::new(&hub);
        assert_eq!(desk.convert("q4_0", &["-q"]), expected, "{what}");
    }
    // The hub itself, not only its servers of large files.
    for action in [status(503, Some(1)), status(500, None), Action::Refuse] {
        let hub = fixture_hub();
        hub.add_fault(Fault::new("", action).skip(3).times(3).on(Host::Hub));
        assert_eq!(Desk::new(&hub).convert("q4_0", &["-q"]), expected);
    }
}

#[test]
fn retry_after_is_waited_for() {
    let hub = fixture_hub();
    let busy = Action::Status { code: 503, retry_after: Some(Duration::from_secs(3)), text: "busy".into() };
    hub.add_fault(Fault::new("model-00001", busy).times(1).on(Host::Cdn));
    let started = Instant::now();
    assert_eq!(Desk::new(&hub).convert("q4_0", &["-q"]), local(&model(), "q4_0"));
    assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn lasting_corruption_names_shard_expected_and_found_and_can_be_gone_on_from() {
    let hub = fixture_hub();
    hub.add_fault(Fault::new("model-00002", Action::Corrupt { offset: 700_000 }).on(Host::Cdn));
    let desk = Desk::new(&hub);
    let failed = desk.run("q4_0", &["-q"]);
    assert_eq!(failed.status.code(), Some(1));
    let message = text(&failed.stderr);
    let mut damaged = std::fs::read(shard_path(2)).unwrap();
    let expected = sha256(&damaged);
    damaged[700_000] ^= 0xff;
    for word in ["model-00002-of-00004.safetensors", &expected, &sha256(&damaged)] {
        assert!(message.contains(word), "{word} is not in {message}");
    }
    assert!(!desk.output().exists());
    hub.clear_faults();
    hub.clear_requests();
    assert_eq!(desk.convert("q4_0", &["-q"]), local(&model(), "q4_0"));
    assert_eq!(names(desk.directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
}

#[test]
fn the_commit_of_the_start_is_kept_to_the_end() {
    let other = tempfile::tempdir().unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), other.path().join(&name)).unwrap();
    }
    let path = other.path().join("model-00002-of-00004.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for keeps_old in [true, false] {
        let hub = fixture_hub();
        hub.set_rate(Some(4_000_000));
        let desk = Desk::new(&hub);
        let mut child = desk.start("q4_0", &[]);
        std::thread::sleep(Duration::from_millis(600));
        hub.set_commit(ID, Commit::from_directory(other.path()).unwrap(), keeps_old);
        let status = child.wait().unwrap();
        hub.set_rate(None);
        if keeps_old {
            assert!(status.success());
            assert_eq!(sha256(&std::fs::read(desk.output()).unwrap()), local(&model(), "q4_0"));
        } else {
            assert_eq!(status.code(), Some(1));
            assert!(!desk.output().exists());
            let again = desk.run("q4_0", &["-q"]);
            assert_eq!(again.status.code(), Some(1), "the unfinished run was of another commit");
        }
    }
}

#[test]
fn a_gated_repository_says_what_to_do_and_the_token_stays_with_the_hub() {
    let gate = Gate { mode: GateMode::Manual, granted: vec!["hf_secret".into()] };
    let hub = Hub::start(vec![Repo::from_directory(ID, &model()).unwrap().gated(gate)]).unwrap();
    let desk = Desk::new(&hub);
    let refused = desk.run("q4_0", &["-q"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("HF_TOKEN"), "{}", text(&refused.stderr));
    assert_eq!(names(desk.directory.path()), Vec::<String>::new());

    // The token of a file, as `hf auth login` leaves it.
    std::fs::create_dir(desk.directory.path().join("home")).unwrap();
    std::fs::write(desk.directory.path().join("home/token"), "hf_secret\n").unwrap();
    assert_eq!(desk.convert("q4_0", &["-q"]), local(&model(), "q4_0"));
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.host == Host::Cdn));
    assert!(requests.iter().all(|request| request.host == Host::Hub || !request.had_token));
}

#[test]
fn a_second_run_stops_at_once() {
    let hub = fixture_hub();
    hub.set_rate(Some(1_000_000));
    let desk = Desk::new(&hub);
    let mut first = desk.start("q4_0", &[]);
    std::thread::sleep(Duration::from_millis(800));
    let second = desk.run("q4_0", &["-q"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another requant"), "{}", text(&second.stderr));
    hub.set_rate(None);
    assert!(first.wait().unwrap().success());
    assert_eq!(sha256(&std::fs::read(desk.output()).unwrap()), local(&model(), "q4_0"));
}

#[test]
fn the_cache_is_filled_on_request_and_used() {
    let hub = fixture_hub();
    let desk = Desk::new(&hub);
    let expected = local(&model(), "q4_0");
    assert_eq!(desk.convert("q4_0", &["--keep-source"]), expected);
    let snapshots = desk.cache().join("models--org--tiny-deepseek-v3/snapshots");
    let snapshot = snapshots.join(&names(&snapshots)[0]);
    for shard in 1..=3 {
        let name = shard_path(shard).file_name().unwrap().to_owned();
        assert_eq!(std::fs::read(snapshot.join(name)).unwrap(), std::fs::read(shard_path(shard)).unwrap());
    }
    assert!(snapshot.join("config.json").exists() && snapshot.join("tokenizer.json").exists());
    // The crate of the hub's makers understands it.
    let known = test_hub::cached(&desk.cache()).unwrap();
    let revision = &known[0].revisions[0];
    assert_eq!((known[0].repo_id.as_str(), revision.refs.as_slice()), (ID, &["main".to_owned()][..]));
    assert_eq!(revision.files.len(), names(&snapshot).len());
    let bytes_of =
        |name: &str| revision.files.iter().find(|file| file.file_name == name).unwrap().size_on_disk;
    assert_eq!(bytes_of("config.json"), std::fs::metadata(model().join("config.json")).unwrap().len());
    std::fs::remove_file(desk.output()).unwrap();
    hub.clear_requests();
    let before = hub.body_bytes_sent();
    assert_eq!(desk.convert("q4_0", &["--force"]), expected);
    assert!(hub.body_bytes_sent() - before < 200_000, "only what the cache lacks");
    // A damaged file of the cache is not used.
    let blob = std::fs::canonicalize(snapshot.join("model-00002-of-00004.safetensors")).unwrap();
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[900_000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    assert_eq!(desk.convert("q4_0", &["--force"]), expected);
}

#[test]
fn offline_means_the_cache_alone() {
    let hub = fixture_hub();
    let desk = Desk::new(&hub);
    let offline = desk.command("q4_0", &["-q"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(offline.status.code(), Some(1));
    assert!(text(&offline.stderr).contains("HF_HUB_OFFLINE"), "{}", text(&offline.stderr));
    assert!(hub.requests().is_empty());
}

#[test]
fn a_plan_reads_headers_only() {
    let hub = fixture_hub();
    let desk = Desk::new(&hub);
    let plan = |model: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        command.args(["plan", model, "--to", "q4_k_m", "--json"]);
        desk.environment(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let (remote, local) = (plan(ID), plan(model().to_str().unwrap()));
    assert_eq!(remote["bytes_out"], local["bytes_out"]);
    assert_eq!(remote["download_bytes"], needed_bytes());
    assert_eq!(local["download_bytes"], 0);
    assert!(hub.body_bytes_sent() < 4 * 65_536 + 300_000, "{}", hub.body_bytes_sent());
    assert_eq!(names(desk.directory.path()), Vec::<String>::new());
}

#[test]
fn a_mistyped_path_is_told_that_it_is_neither() {
    let hub = fixture_hub();
    let desk = Desk::new(&hub);
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
    command.args(["plan", "models/mistyped", "--to", "q4_0"]);
    desk.environment(&mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("no such repository") && message.contains("nor is there a directory"),
        "{message}"
    );
}
