//! `kill -9` at many points of a streamed conversion: the same command goes on, and the result is
//! the same to the byte.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use test_hub::{Hub, Repo};

use crate::conversion::{convert, model, names, sha256};
use crate::served;

const ID: &str = "org/tiny-deepseek-v3";
/// Kills of all conversions together.
const KILLS: usize = 36;

fn command(hub: &Hub, directory: &Path, output: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
    command.args(["convert", ID, "--to", "q4_k_m", "--threads", "2", "-q", "-o"]).arg(output);
    served::environment(&mut command, hub, &directory.join("home"), &directory.join("cache"));
    command.stdout(Stdio::null());
    command
}

/// A seeded sequence of delays between 0 and `most`.
fn delays(most: Duration) -> impl FnMut() -> Duration {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        most.mul_f64((state >> 40) as f64 / (1 << 24) as f64)
    }
}

#[test]
fn killed_anywhere_the_same_command_finishes_with_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let expected = convert(&model(), "q4_k_m", 2, &whole.path().join("m.gguf")).unwrap().manifest;
    let hub = Hub::start(vec![Repo::from_directory(ID, &model()).unwrap()]).unwrap();
    let mut delay = delays(Duration::from_millis(900));
    let mut kills = 0;
    let mut conversions = 0;
    while kills < KILLS {
        conversions += 1;
        let directory = tempfile::tempdir().unwrap();
        let output: PathBuf = directory.path().join("m.gguf");
        // Slow enough that a run takes about a second, so that kills hit every stage of it.
        hub.set_rate(Some(8_000_000));
        for _ in 0..3 {
            let mut child = command(&hub, directory.path(), &output).spawn().unwrap();
            std::thread::sleep(delay());
            let killed = child.kill().is_ok();
            let status = child.wait().unwrap();
            if status.success() {
                break;
            }
            kills += usize::from(killed && status.code().is_none());
        }
        hub.set_rate(None);
        if !output.exists() {
            assert!(command(&hub, directory.path(), &output).status().unwrap().success());
        }
        assert_eq!(sha256(&std::fs::read(&output).unwrap()), expected.files[0].sha256);
        // A run that was killed after its last rename may leave its journal and its lock.
        let left = names(directory.path());
        assert!(left.contains(&"m.gguf.manifest.json".to_owned()), "{left:?}");
        assert!(!left.contains(&"m.gguf.partial".to_owned()), "{left:?}");
    }
    assert!(conversions >= KILLS / 3);
}

#[test]
fn work_that_was_done_is_not_done_again() {
    let hub = Hub::start(vec![Repo::from_directory(ID, &model()).unwrap()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    hub.set_rate(Some(3_000_000));
    let mut child = command(&hub, directory.path(), &output).spawn().unwrap();
    // Until the first shard has gone through and the second is under way.
    let spool = directory.path().join("m.gguf.spool/shards");
    while !spool.join("model-00003-of-00004.safetensors.part").exists() {
        assert!(child.try_wait().unwrap().is_none(), "finished before it could be killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!spool.join("model-00001-of-00004.safetensors").exists(), "converted, recorded, released");
    hub.set_rate(None);
    // What the hub still sends to connections that nobody reads any more belongs to the first run.
    std::thread::sleep(Duration::from_millis(500));
    let first = hub.body_bytes_of("model-00001-of-00004.safetensors");
    let third = hub.body_bytes_of("model-00003-of-00004.safetensors");
    assert!(command(&hub, directory.path(), &output).status().unwrap().success());
    // Of the first shard only the header is read again; the third goes on where it was.
    assert!(hub.body_bytes_of("model-00001-of-00004.safetensors") - first <= 70_000);
    let len = model().join("model-00003-of-00004.safetensors").metadata().unwrap().len();
    let again = hub.body_bytes_of("model-00003-of-00004.safetensors") - third;
    assert!(again < len, "{third} bytes came before, {again} after, of {len}");
}
