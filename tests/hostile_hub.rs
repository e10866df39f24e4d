//! Endless, absurd and lying answers of a hub: an error that names what is wrong, or another try; and what is secret
//! stays so.

use std::process::Command;
use std::time::{Duration, Instant};

use test_hub::{Action, Fault, Host, Repo};

use crate::conversion::{model, sha256};
use crate::served::{self, ID, Served, text};

const SHARD: &str = "model-00002-of-00004.safetensors";
const PLAN: [&str; 4] = ["plan", ID, "--to", "q4_k_m"];

fn tiny() -> Served {
    let mut served = Served::model();
    served.set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    served
}

fn faulty(pattern: &str, action: Action) -> Served {
    let served = tiny();
    served.hub.add_fault(Fault::new(pattern, action));
    served
}

/// Runs with little memory and little time.
fn confined(served: &Served, arguments: &[&str]) -> String {
    let start = Instant::now();
    let mut command = Command::new("sh");
    // Address space: what is reserved counts too, so that this is far above what is used.
    command.args(["-c", "ulimit -v 1500000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_requant")]);
    command.args(arguments).arg("--quiet").current_dir(served.path(""));
    served::environment(&mut command, &served.hub, &served.path("home"), &served.path("hub"));
    let output = command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(start.elapsed() < Duration::from_secs(60));
    text(&output.stderr)
}

fn page(headers: Vec<(&'static str, String)>, body: &str) -> Action {
    Action::Answer { code: 200, headers, body: body.to_owned() }
}

#[test]
fn answers_without_end_have_one() {
    let endless = |start: &str| Action::Endless { start: start.to_owned() };
    for (pattern, action, words) in [
        ("/api/models/org/tiny", endless("{\"sha\": "), "does not end after"),
        ("/tree/", endless("["), "does not end after"),
        ("/tree/", Action::EndlessPages, "pages"),
        // A page that names itself as the next.
        ("/tree/", page(vec![("Link", "<?cursor=1>; rel=\"next\"".into())], "[]"), "goes in a circle"),
    ] {
        let served = faulty(pattern, action);
        let message = confined(&served, &PLAN);
        assert!(message.contains(ID) && message.contains(words), "{message}");
    }
    // A file of which more comes than it has.
    let served = faulty("config.json", endless("{"));
    let message = served.failure(&PLAN);
    assert!(message.contains("config.json"), "{message}");
    assert!(message.len() < 1000, "{message}");
}

#[test]
fn redirections_without_end_have_one() {
    for (pattern, code) in [("/tree/", 307), ("/api/models/org/tiny", 301), ("config.json", 302)] {
        let headers = vec![("Location", "?again".to_owned())];
        let served = faulty(pattern, Action::Answer { code, headers, body: String::new() });
        let message = served.failure(&PLAN);
        assert!(message.contains("redirects"), "{pattern}: {message}");
    }
    for location in ["file:///etc/passwd", "http://", "ftp://127.0.0.1/x", ""] {
        let headers = vec![("Location", location.to_owned())];
        let served = faulty("config.json", Action::Answer { code: 302, headers, body: String::new() });
        let message = served.failure(&PLAN);
        assert!(message.contains("config.json") && message.contains("redirect"), "{location}: {message}");
    }
}

#[test]
fn absurd_listings_are_refused_by_name() {
    let oid = "ce013625030ba8dba906f756967f9e9ca394464a";
    let entry =
        |path: &str, size: &str| format!(r#"{{"type":"file","oid":"{oid}","size":{size},"path":"{path}"}}"#);
    let huge = "9223372036854775808";
    let both = [entry("a.safetensors", huge), entry("b.safetensors", huge)].join(",");
    let many: Vec<String> = (0..100).map(|n| entry(&format!("w{n}"), "1125899906842624")).collect();
    for (entries, words) in [
        (both, "a.safetensors"),
        (entry("config.json", "-1"), "config.json"),
        (entry("config.json", "1e30"), "config.json"),
        (entry("config.json", "\"12\""), "config.json"),
        (many.join(","), "add up"),
        ([entry("config.json", "2"), entry("config.json", "2")].join(","), "twice"),
        (entry("../config.json", "2"), "config.json"),
        (entry(&"a".repeat(100_000), "2"), "name"),
        ("[".repeat(100_000), "listing"),
        ("{\"type\": 1}".into(), "listing"),
        (String::new(), "config.json"),
    ] {
        for command in [&PLAN[..], &["fetch", ID, "-o", "m"]] {
            if entries.is_empty() && command[0] == "fetch" {
                continue;
            }
            let message = confined(&faulty("/tree/", page(Vec::new(), &format!("[{entries}]"))), command);
            assert!(message.contains(words) && message.len() < 1200, "{command:?}: {message}");
        }
    }
    // A small file that is none.
    let listing = page(Vec::new(), &format!("[{}]", entry("config.json", "300000000000")));
    let message = confined(&faulty("/tree/", listing), &PLAN);
    assert!(message.contains("config.json") && message.contains("at most"), "{message}");
}

#[test]
fn a_link_that_is_refused_is_asked_for_again() {
    let expected = served::local_digest("q4_k_m");
    for code in [401, 403, 404, 410] {
        let served = tiny();
        let refused = Action::Status { code, retry_after: None, text: "<Error>Expired</Error>".into() };
        // Once for a header, once for weights.
        served.hub.add_fault(Fault::new(SHARD, refused.clone()).on(Host::Cdn).times(1));
        served.hub.add_fault(Fault::new("model-00003", refused).on(Host::Cdn).skip(1).times(1));
        served.json(&["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"]);
        assert_eq!(sha256(&std::fs::read(served.path("m.gguf")).unwrap()), expected, "{code}");
    }
    // For ever: said as it is, and not blamed on a token.
    let served = tiny();
    let refused = Action::Status { code: 403, retry_after: None, text: String::new() };
    served.hub.add_fault(Fault::new(SHARD, refused.clone()).on(Host::Cdn));
    let message = served.failure(&PLAN);
    assert!(message.contains(SHARD) && message.contains("403") && !message.contains("HF_TOKEN"), "{message}");
    // The hub itself knows who may read.
    let served = faulty(SHARD, refused);
    let message = served.failure(&PLAN);
    assert!(message.contains(SHARD) && message.contains("HF_TOKEN"), "{message}");
    let asked =
        served.hub.requests().into_iter().filter(|asked| asked.file.as_deref() == Some(SHARD)).count();
    assert_eq!(asked, 1);
}

#[test]
fn damage_to_a_header_while_planning_is_read_again() {
    let expected = served::local_digest("q4_k_m");
    // In the length of the header, at its beginning, in a name.
    for offset in [0, 7, 8, 30, 500] {
        let served = tiny();
        served.hub.add_fault(Fault::new(SHARD, Action::Corrupt { offset }).on(Host::Cdn).times(1));
        served.json(&["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"]);
        assert_eq!(sha256(&std::fs::read(served.path("m.gguf")).unwrap()), expected, "{offset}");
        served.hub.add_fault(Fault::new(SHARD, Action::Corrupt { offset }).on(Host::Cdn).times(2));
        served.json(&["inspect", ID]);
    }
    let served = tiny();
    let sample = served.path("some.txt");
    std::fs::write(&sample, "All happy families are alike. ".repeat(200)).unwrap();
    served.hub.add_fault(Fault::new(SHARD, Action::Corrupt { offset: 30 }).on(Host::Cdn).times(1));
    served.json(&["perplexity", ID, "--text", sample.to_str().unwrap()]);
    // Behind the header, where a plan does not look: found when the shard has come.
    let served = tiny();
    served.hub.add_fault(Fault::new(SHARD, Action::Corrupt { offset: 65_000 }).on(Host::Cdn).times(1));
    served.json(&["convert", ID, "--to", "q4_k_m", "-o", "m.gguf"]);
    assert_eq!(sha256(&std::fs::read(served.path("m.gguf")).unwrap()), expected);
    let served = faulty(SHARD, Action::Corrupt { offset: 30 });
    let message = served.failure(&PLAN);
    assert!(message.contains(SHARD), "{message}");
}

#[test]
fn lying_answers_are_asked_for_again() {
    let header = |name: &'static str, value: &str| vec![(name, value.to_owned())];
    let answer = |code, headers, body: &str| Action::Answer { code, headers, body: body.to_owned() };
    for action in [
        answer(206, header("Content-Range", "bytes 5-9/10"), "{}{}{"),
        answer(206, header("Content-Range", "bytes 9-5/10"), "{}{}{"),
        answer(206, header("Content-Range", "bytes 0-18446744073709551615/18446744073709551616"), "{}"),
        answer(206, Vec::new(), "{}"),
        answer(200, header("Content-Encoding", "gzip"), "\u{1f}"),
        answer(200, Vec::new(), "{}"),
        answer(204, Vec::new(), ""),
        answer(416, header("Content-Range", "bytes */lots"), ""),
    ] {
        let served = tiny();
        let is_refused = matches!(action, Action::Answer { code: 204, .. });
        served.hub.add_fault(Fault::new("config.json", action.clone()).times(1));
        let output = served.run(&PLAN);
        let said = text(&output.stderr);
        assert!(output.status.success() || (is_refused && said.contains("204")), "{action:?}: {said}");
    }
    let compressed = answer(200, header("Content-Encoding", "gzip"), "\u{1f}");
    for pattern in ["/tree/", "/api/models/org/tiny"] {
        let served = tiny();
        served.hub.add_fault(Fault::new(pattern, compressed.clone()).times(1));
        served.json(&PLAN);
    }
}

#[test]
fn credentials_of_the_address_are_sent_and_never_shown() {
    let password = "s3cr%65t-pass";
    let shown =
        |text: &str| ["s3cr", "cret-pass", "bWU6czNjcmV0LXBhc3M"].iter().any(|secret| text.contains(secret));
    let mut served = Served::repo(Repo::from_directory(ID, &model()).unwrap());
    let endpoint = served.hub.url().replace("://", &format!("://me:{password}@"));
    served.set("HF_ENDPOINT", &endpoint);
    served.set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    let output = served.run(&["convert", ID, "--to", "q4_k_m", "-o", "m.gguf", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let manifest = std::fs::read_to_string(served.path("m.gguf.manifest.json")).unwrap();
    for text in [text(&output.stdout), text(&output.stderr), manifest] {
        assert!(!shown(&text), "{text}");
    }
    let requests = served.hub.requests();
    assert!(requests.iter().all(|request| request.had_token == (request.host == Host::Hub)), "{requests:?}");

    // Refusals name the page to look at; servers like to repeat what they were sent.
    let echo = format!("{{\"error\": \"no: {endpoint} Basic bWU6czNjcmV0LXBhc3M= s3cret-pass\"}}");
    let gated = vec![("X-Error-Code", "GatedRepo".to_owned())];
    for (pattern, action) in [
        ("/tree/", Action::Answer { code: 403, headers: gated, body: echo.clone() }),
        ("/tree/", Action::Answer { code: 404, headers: Vec::new(), body: echo.clone() }),
        ("/api/models/org/tiny", Action::Answer { code: 401, headers: Vec::new(), body: echo }),
        ("/tree/", Action::Refuse),
        ("config.json", Action::Status { code: 503, retry_after: None, text: String::new() }),
    ] {
        served.hub.clear_faults();
        served.hub.add_fault(Fault::new(pattern, action));
        let output = served.run(&[&PLAN[..], &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains(ID) && !shown(&said), "{said}");
    }
    for endpoint in
        ["ftp://me:s3cret-pass@h", "https://me:s3cret-pass@h:x", "https://me:s3cr/cret-pass@127.0.0.1:9"]
    {
        served.set("HF_ENDPOINT", endpoint);
        let message = served.failure(&PLAN);
        assert!(!shown(&message), "{message}");
    }
}
