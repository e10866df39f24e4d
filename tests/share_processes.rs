//! Shares as processes: at once, two of one number, and killed at any moment, the join too.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::conversion::model;
use crate::recorder::Random;
use crate::served::text;
use crate::shares::{assert_same, tree};

/// `requant ARGUMENTS` in a directory, without what a scheduler says.
pub(crate) fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
    command.args(arguments).current_dir(directory);
    for name in [
        "SLURM_ARRAY_TASK_ID",
        "JOB_COMPLETION_INDEX",
        "AWS_BATCH_JOB_ARRAY_INDEX",
        "SKYPILOT_JOB_RANK",
        "PBS_ARRAY_INDEX",
        "LSB_JOBINDEX",
        "REQUANT_JOBS",
    ] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn succeeds(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", text(&stderr));
    text(&stdout)
}

#[test]
fn processes_at_once_make_the_result_of_one_with_its_manifest() {
    for (format, name) in [("q4_k_m", "m.gguf"), ("mlx-4bit", "m")] {
        let run = |root: &Path, more: &[&str]| {
            std::os::unix::fs::symlink(model(), root.join("model")).unwrap_or_default();
            let arguments =
                [&["convert", "model", "--to", format, "-o", name, "--threads", "1"], more].concat();
            command(root, &arguments)
        };
        let one = tempfile::tempdir().unwrap();
        succeeds(run(one.path(), &[]));
        std::fs::remove_file(one.path().join("model")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let start = |job: &str| {
            let mut command = run(directory.path(), &["--job", job]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        // All at once, and one number twice: it waits for nobody, one of both says that the other does it, or both are done.
        let children: Vec<Child> = ["1/4", "2/4", "2/4", "3/4", "4/4"].into_iter().map(start).collect();
        let mut refused = 0;
        for child in children {
            let Output { status, stderr, .. } = child.wait_with_output().unwrap();
            if !status.success() {
                refused += 1;
                assert!(text(&stderr).contains("another requant does share 2 of 4"), "{}", text(&stderr));
            }
        }
        assert!(refused <= 1);
        let status = succeeds(command(directory.path(), &["status", name]));
        assert!(status.contains("4 of 4 shares are done"), "{status}");
        succeeds(command(directory.path(), &["join", name]));
        assert!(succeeds(command(directory.path(), &["status", name])).contains("complete"));
        std::fs::remove_file(directory.path().join("model")).unwrap();
        assert_same(directory.path(), &tree(one.path()), format);
        assert!(succeeds(command(directory.path(), &["join", name])).contains("complete already"));
    }
}

/// `kill -9` until that has happened a hundred times, at moments that lie within what a process takes here.
#[test]
fn kill_at_any_moment_of_shares_and_of_the_join() {
    const KILLS: usize = 100;
    const MOST_ROUNDS: usize = 60;
    let arguments = ["convert", "model", "--to", "q4_k_m", "-o", "m.gguf", "--threads", "1", "-q"];
    let place = || {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(model(), directory.path().join("model")).unwrap();
        directory
    };
    let share =
        |root: &Path, job: u32| command(root, &[&arguments[..], &["--job", &format!("{job}/3")]].concat());
    let join = |root: &Path| command(root, &["join", "m.gguf", "-q"]);
    let timed = |command: Command| {
        let start = Instant::now();
        succeeds(command);
        start.elapsed().as_micros() as usize
    };
    let one = place();
    let took_share = (1..=3).map(|job| timed(share(one.path(), job))).min().unwrap();
    let took_join = timed(join(one.path()));
    for name in ["m.gguf", "m.gguf.manifest.json"] {
        std::fs::remove_file(one.path().join(name)).unwrap();
    }
    succeeds(command(one.path(), &arguments));
    std::fs::remove_file(one.path().join("model")).unwrap();
    let expected = tree(one.path());
    let mut random = Random(23);
    let (mut kills, mut rounds) = (0, 0);
    while kills < KILLS {
        rounds += 1;
        assert!(rounds <= MOST_ROUNDS, "{kills} kills");
        let directory = place();
        let root = directory.path();
        let mut kill = |mut command: Command, most: usize| {
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(random.below(most) as u64));
            let _ = child.kill();
            kills += usize::from(child.wait().unwrap().code().is_none());
        };
        [2, 3, 1, 1, 3, 2].into_iter().for_each(|job| kill(share(root, job), took_share));
        (1..=3).rev().for_each(|job| drop(succeeds(share(root, job))));
        (0..3).for_each(|_| kill(join(root), took_join));
        succeeds(join(root));
        std::fs::remove_file(root.join("model")).unwrap();
        let mut found = tree(root);
        found.retain(|name, _| !name.to_string_lossy().ends_with(".lock"));
        assert!(found == expected, "round {rounds}: {:?}", found.keys());
    }
}
