//! What is tried again, and why: on stderr with `-v`, with times in the file of `--log`.

use std::time::Duration;

use test_hub::{Action, Fault, Host};

use crate::bucket::{self, Bucket};
use crate::conversion::model;
use crate::served::{ID, Served, text};

const SHARD: &str = "model-00002-of-00004.safetensors";

fn status(code: u16) -> Action {
    Action::Status { code, retry_after: None, text: String::new() }
}

/// What goes wrong on the way, and what is said about it.
fn faults() -> [(Fault, &'static str); 5] {
    let cdn = |action, skip| Fault::new(SHARD, action).on(Host::Cdn).skip(skip).times(1);
    [
        (Fault::new("/tree/", status(500)).times(1), "the server answered with status 500"),
        // A link that has expired.
        (cdn(status(403), 1), "access was refused by the server that the hub's link leads to (status 403)"),
        (cdn(Action::Drop { after_bytes: 1000 }, 2), "the connection failed"),
        (cdn(Action::Refuse, 3), "connection"),
        (cdn(Action::Truncate { missing_bytes: 10, claims_less: true }, 4), "bytes, the answer has"),
    ]
}

#[test]
fn every_retry_is_in_the_log_and_on_stderr_when_asked_for() {
    for is_verbose in [true, false] {
        for (fault, why) in faults() {
            let served = Served::model();
            served.hub.add_fault(fault);
            let convert = ["convert", ID, "--to", "q4_0", "-o", "m.gguf", "--log", "run.log"];
            let output = served.run(&[&convert[..], if is_verbose { &["-v"] } else { &[] }].concat());
            let said = text(&output.stderr);
            assert!(output.status.success(), "{said}");
            let log = std::fs::read_to_string(served.path("run.log")).unwrap();
            let again =
                |text: &str| text.lines().any(|line| line.contains(why) && line.contains("attempt 2 of"));
            assert!(again(&log), "{why}: {log}");
            assert_eq!(again(&said), is_verbose, "{why}: {said}");
            // Everything else that is said is in it too.
            assert!(said.lines().all(|line| log.contains(line)), "{said}\n{log}");
            let lines: Vec<&str> = log.lines().collect();
            assert!(lines.iter().all(|line| line.starts_with("20") && &line[23..25] == "Z "), "{log}");
            assert!(lines[0].contains(" requant 0.1.0: convert org/tiny --to q4_0 "), "{log}");
            assert!(lines.last().unwrap().ends_with(" done"), "{log}");
        }
    }
}

#[test]
fn a_log_goes_on_and_nothing_secret_is_in_it() {
    let mut served = Served::model();
    served.set("HF_TOKEN", "hf_secretsecretsecret");
    served.hub.add_fault(Fault::new(SHARD, status(404)).on(Host::Hub));
    for _ in 0..2 {
        let output = served.run(&["convert", ID, "--to", "q4_0", "-o", "m.gguf", "-q", "--log", "run.log"]);
        assert!(!output.status.success());
    }
    let log = std::fs::read_to_string(served.path("run.log")).unwrap();
    assert_eq!(log.matches(" requant 0.1.0: convert").count(), 2, "{log}");
    assert_eq!(log.matches("error: ").count(), 2, "{log}");
    assert!(!log.contains("secretsecret") && !log.contains("Signature"), "{log}");
    // A file that is something else stays as it is.
    std::fs::write(served.path("x.gguf"), "GGUF, as it were").unwrap();
    let output = served.run(&["plan", ID, "--to", "q4_0", "--log", "x.gguf"]);
    assert!(
        text(&output.stderr).contains("--log x.gguf: is there, and is no log"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(std::fs::read_to_string(served.path("x.gguf")).unwrap(), "GGUF, as it were");
    let both = served.run(&["plan", ID, "--to", "q4_0", "-v", "-q"]);
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn damaged_content_and_long_waits_are_told_without_being_asked() {
    let served = Served::model();
    served.hub.add_fault(Fault::new(SHARD, Action::Corrupt { offset: 100_000 }).times(1));
    let slow = Action::Status { code: 503, retry_after: Some(Duration::from_secs(1)), text: String::new() };
    served.hub.add_fault(Fault::new("/tree/", slow).times(1));
    let output = served.run(&["fetch", ID, "-o", "m"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("status 503; waiting 1.0 s, as the server asks"), "{said}");
    assert!(
        said.contains(&format!("{SHARD}: what came has another digest than is stated; it comes anew")),
        "{said}"
    );
}

#[test]
fn object_stores_are_heard_of_too() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("SUMS"), bucket::sums(&model())).unwrap();
    let bucket = Bucket::start().with(&model(), "org/tiny");
    let mut left = 2;
    bucket.fail(move |asked| {
        let strikes = asked.key.ends_with(SHARD) && left > 0;
        left -= i32::from(strikes);
        strikes.then_some(bucket::Fault::Refuse(503, "SlowDown"))
    });
    let arguments = [
        "convert",
        crate::stores::URL,
        "--to",
        "q4_0",
        "-o",
        "m.gguf",
        "--sums",
        "SUMS",
        "-v",
        "--log",
        "run.log",
    ];
    let output = bucket.run(home.path(), &arguments);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let log = std::fs::read_to_string(home.path().join("run.log")).unwrap();
    for attempt in ["attempt 2 of 8", "attempt 3 of 8"] {
        for text in [&said, &log] {
            let is_told = |line: &str| line.contains(attempt) && line.contains("503") && line.contains(SHARD);
            assert!(text.lines().any(is_told), "{attempt}: {text}");
        }
    }
}
