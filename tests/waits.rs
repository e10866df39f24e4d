//! Slow and silent servers: every wait is told and has an end, and a stop is heard at once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use test_hub::{Action, Fault, Host, Repo};

use crate::served::{ID, Served, text};

const SHARD: &str = "model-00002-of-00004.safetensors";

/// The model, and a patience of a second.
fn served() -> Served {
    let mut served = Served::model();
    served.set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    served
}

/// Lines of stderr as they come.
fn lines(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Waits for a line that says all of `words`; gives everything that was said until then.
fn wait_for(lines: &Receiver<String>, words: &[&str], patience: Duration) -> Result<String, String> {
    let start = Instant::now();
    let mut said = String::new();
    while let Ok(line) = lines.recv_timeout(patience.saturating_sub(start.elapsed())) {
        said += &line;
        said.push('\n');
        if words.iter().all(|word| line.contains(word)) {
            return Ok(said);
        }
    }
    Err(said)
}

/// Interrupts a run and says how long it took to end.
fn interrupt(child: &mut Child) -> Duration {
    let start = Instant::now();
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
    assert!(!child.wait().unwrap().success());
    start.elapsed()
}

fn busy(seconds: u64) -> Action {
    Action::Status { code: 429, retry_after: Some(Duration::from_secs(seconds)), text: String::new() }
}

#[test]
fn a_wait_that_the_server_asks_for_is_told_and_a_stop_ends_it() {
    let convert = ["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"];
    for (fault, command) in [
        (Fault::new("/api/models/org/tiny", busy(287)), &convert[..]),
        (Fault::new("/tree/", busy(287)), &["plan", ID, "--to", "q4_k_m"]),
        (Fault::new("config.json", busy(287)), &["inspect", ID]),
        (Fault::new(SHARD, busy(287)).on(Host::Cdn).skip(1), &convert),
        (Fault::new(SHARD, busy(287)).on(Host::Cdn), &["fetch", ID, "-o", "m"]),
    ] {
        let served = served();
        served.hub.add_fault(fault);
        let mut child = served.spawn(command);
        let lines = lines(&mut child);
        let said = wait_for(&lines, &["429", "waiting 287", ID], Duration::from_secs(20));
        assert!(said.is_ok(), "{command:?}: {said:?}");
        assert!(interrupt(&mut child) < Duration::from_secs(2), "{command:?}");
    }
}

#[test]
fn a_wait_longer_than_the_ceiling_is_not_waited_for() {
    for (seconds, shown) in [(301, "301 s"), (3600, "3600 s"), (u64::MAX, "18446744073709551615 s")] {
        let served = served();
        served.hub.add_fault(Fault::new("/tree/", busy(seconds)));
        let start = Instant::now();
        let message = served.failure(&["plan", ID, "--to", "q4_k_m"]);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(message.contains(shown) && message.contains("300 s") && message.contains("429"), "{message}");
    }
    // Dates: one that is long gone, one that never comes, and none at all.
    for (value, fails) in
        [("Sun, 06 Nov 1994 08:49:37 GMT", false), ("Fri, 31 Dec 9999 23:59:59 GMT", true), ("soon", false)]
    {
        let served = served();
        let headers = vec![("Retry-After", value.to_owned())];
        let busy = Action::Answer { code: 503, headers, body: String::new() };
        served.hub.add_fault(Fault::new("/tree/", busy).times(1));
        let output = served.run(&["plan", ID, "--to", "q4_k_m"]);
        assert_eq!(output.status.success(), !fails, "{value}: {}", text(&output.stderr));
    }
}

#[test]
fn a_trickle_is_a_stall_that_is_told_and_survived() {
    let trickle = || Action::Trickle { bytes_per_second: 10 };
    for (fault, command) in [
        (Fault::new("/api/models/org/tiny", trickle()).times(1), &["plan", ID, "--to", "q4_k_m"][..]),
        (Fault::new("/tree/", trickle()).times(1), &["plan", ID, "--to", "q4_k_m"]),
        (Fault::new("resolve-cache", trickle()).times(1), &["inspect", ID]),
        (Fault::new(SHARD, trickle()).on(Host::Cdn).times(1), &["inspect", ID]),
        (Fault::new(SHARD, trickle()).on(Host::Cdn).times(3), &["fetch", ID, "-o", "m"]),
    ] {
        let served = served();
        served.hub.add_fault(fault);
        let output = served.run(command);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        assert!(
            said.contains("stalled") && said.contains("bytes in") && said.contains(ID),
            "{command:?}: {said}"
        );
    }
}

/// The sizes of this test are those of a phone at the edge of its net, with a patience of a second.
#[test]
fn an_honest_slow_line_is_not_a_stall() {
    let bytes: Vec<u8> = (0..400_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let repo = Repo::empty(ID).file("model.safetensors", bytes).unwrap().file("config.json", "{}").unwrap();
    let mut served = Served::repo(repo);
    served.set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    served.hub.set_rate(Some(50_000));
    let start = Instant::now();
    let output = served.run(&["fetch", ID, "-o", "m"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(start.elapsed() > Duration::from_secs(6), "the line was not slow");
    // Each byte came once.
    assert_eq!(served.hub.body_bytes_of("model.safetensors"), 400_000);
}

#[test]
fn a_lasting_trickle_ends_after_the_usual_attempts_and_a_stop_ends_it_sooner() {
    let served = served();
    served.hub.add_fault(Fault::new("/tree/", Action::Trickle { bytes_per_second: 10 }));
    let mut child = served.spawn(&["plan", ID, "--to", "q4_k_m"]);
    std::thread::sleep(Duration::from_millis(700));
    assert!(interrupt(&mut child) < Duration::from_secs(2));
    let start = Instant::now();
    let message = served.failure(&["plan", ID, "--to", "q4_k_m"]);
    assert!(message.contains("stalled") && message.contains("6 attempts"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(60));
    // What comes byte by byte over many connections is no better.
    served.hub.clear_faults();
    served.hub.add_fault(Fault::new("config.json", Action::Drop { after_bytes: 1 }));
    let message = served.failure(&["inspect", ID]);
    assert!(message.contains("8 attempts") && message.contains("config.json"), "{message}");
}
