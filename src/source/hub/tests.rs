//! A repository read from a tiny server of canned answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Environment, HubId, Repository};
use crate::error::{Error, Result};
use crate::source::{ContentDigest, Remote};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONTENT: &[u8] = b"0123456789abcdefghij";

/// Gives the whole answer to a request's text and its number among those for content.
type Answer = dyn Fn(&str, usize) -> Vec<u8> + Send + Sync;

struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// Serves metadata of one repository; requests for content go to `content`.
fn serve(content: Box<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (base, seen) = (endpoint.clone(), Arc::clone(&requests));
    let (content, count) = (Arc::new(content), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (base, seen) = (base.clone(), Arc::clone(&seen));
            let (content, count) = (Arc::clone(&content), Arc::clone(&count));
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let request = read_request(&mut stream);
                seen.lock().unwrap().push(request.clone());
                let answer = match request.split(' ').nth(1).unwrap() {
                    path if path.contains("/resolve/") || path.starts_with("/cdn") => {
                        content(&request, count.fetch_add(1, Ordering::SeqCst))
                    }
                    path => metadata(&base, path),
                };
                if answer.is_empty() {
                    std::thread::sleep(Duration::from_secs(20));
                }
                let _ = stream.write_all(&answer);
            });
        }
    });
    Server { endpoint, requests }
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap()
}

fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = if headers.to_lowercase().contains("content-length") {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    let mut text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{length}{headers}\r\n").into_bytes();
    text.extend_from_slice(body);
    text
}

/// Two pages of a listing, as the hub gives them.
fn metadata(base: &str, path: &str) -> Vec<u8> {
    let lfs = r#"{"type":"file","oid":"ce013625030ba8dba906f756967f9e9ca394464a","size":20,"path":"w x.bin",
        "lfs":{"oid":"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","size":20,"pointerSize":9}}"#;
    let git =
        r#"{"type":"file","oid":"CE013625030ba8dba906f756967f9e9ca394464a","size":6,"path":"a/config.json"}"#;
    match path {
        "/api/models/org/name" => {
            answer(200, "", format!(r#"{{"id":"org/name","sha":"{COMMIT}"}}"#).as_bytes())
        }
        path if path.starts_with("/api/models/org/name/tree/") && path.contains("cursor=2") => answer(
            200,
            "",
            format!(r#"[{{"type":"directory","oid":"x","size":0,"path":"a"}},{git}]"#).as_bytes(),
        ),
        path if path.starts_with("/api/models/org/name/tree/") => {
            let link = format!("link: <{base}/api/models/org/name/tree/{COMMIT}?cursor=2>; rel=\"next\"\r\n");
            answer(200, &link, format!("[{lfs}]").as_bytes())
        }
        path if path.contains("gated") => answer(403, "x-error-code: GatedRepo\r\n", b""),
        path if path.contains("/revision/") => answer(404, "x-error-code: RevisionNotFound\r\n", b""),
        _ => answer(401, "x-error-message: Invalid username or password.\r\n", b""),
    }
}

fn environment(server: &Server, token: Option<&str>) -> Environment {
    Environment {
        endpoint: server.endpoint.clone(),
        token: token.map(str::to_owned),
        cache_dir: "/nonexistent".into(),
        offline: false,
        timeout: Duration::from_millis(400),
        disable_xet: false,
        back_off: Duration::from_millis(2),
        notices: super::Notices::default(),
    }
}

fn open(server: &Server, id: &str) -> Result<Repository> {
    let id = HubId::parse(id).unwrap();
    Repository::open(&environment(server, Some("hf_secret")), &id, &AtomicBool::new(false))
}

fn read(repository: &Repository, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    repository.read_range(1, range, &AtomicBool::new(false), &mut |chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(bytes)
}

/// The range a request asks for.
fn asked(request: &str) -> std::ops::Range<usize> {
    let line = request.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap();
    let (first, last) = line.split_once('-').unwrap();
    first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
}

fn partial(request: &str) -> Vec<u8> {
    let range = asked(request);
    let header = format!("content-range: bytes {}-{}/20\r\n", range.start, range.end - 1);
    answer(206, &header, &CONTENT[range])
}

#[test]
fn lists_all_pages_sorted_with_their_digests() {
    let server = serve(Box::new(|request, _| partial(request)));
    let repository = open(&server, "org/name").unwrap();
    assert_eq!((repository.commit(), repository.revision()), (COMMIT, "main"));
    let names: Vec<_> = repository.files().iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["a/config.json", "w x.bin"]);
    assert_eq!(
        repository.files()[0].digest,
        ContentDigest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned())
    );
    assert!(matches!(repository.files()[1].digest, ContentDigest::Sha256(_)));
    assert_eq!(read(&repository, 3..7).unwrap(), b"3456");
    let requests = server.requests.lock().unwrap();
    assert!(requests.last().unwrap().starts_with(&format!("GET /org/name/resolve/{COMMIT}/w%20x.bin ")));
    for request in requests.iter() {
        assert!(request.contains("authorization: Bearer hf_secret"), "{request}");
        assert!(request.contains("user-agent: requant/"), "{request}");
    }
}

#[test]
fn every_passing_fault_is_survived() {
    let short = |request: &str| {
        let range = asked(request);
        let header = format!(
            "content-range: bytes {}-{}/20\r\ncontent-length: {}\r\n",
            range.start,
            range.end - 1,
            range.len()
        );
        answer(206, &header, &CONTENT[range.start..range.start + 1])
    };
    let faults: Vec<(&str, Box<Answer>)> = vec![
        ("503", Box::new(|_, _| answer(503, "", b"busy"))),
        (
            "429 with a date long gone",
            Box::new(|_, _| answer(429, "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n", b"")),
        ),
        ("one byte, then a drop", Box::new(move |request, _| short(request))),
        ("stall", Box::new(|_, _| Vec::new())),
        ("page", Box::new(|_, _| answer(200, "content-type: text/html\r\n", b"<html>"))),
        ("wrong range", Box::new(|_, _| answer(206, "content-range: bytes 0-4/20\r\n", b"01234"))),
        ("wrong total", Box::new(|_, _| answer(206, "content-range: bytes 5-9/21\r\n", b"56789"))),
        ("wrong length", Box::new(|_, _| answer(200, "", b"56789"))),
        ("no answer", Box::new(|_, _| b"\r\n".to_vec())),
    ];
    for (name, fault) in faults {
        let server =
            serve(Box::new(move |request, n| if n < 2 { fault(request, n) } else { partial(request) }));
        let repository = open(&server, "org/name").unwrap();
        assert_eq!(read(&repository, 5..10).unwrap(), b"56789", "{name}");
    }
    let server = serve(Box::new(|_, _| answer(200, "", CONTENT)));
    assert_eq!(read(&open(&server, "org/name").unwrap(), 5..10).unwrap(), b"56789", "ranges ignored");
}

#[test]
fn attempts_that_bring_nothing_are_bounded() {
    let server = serve(Box::new(|_, _| answer(503, "", b"")));
    let error = read(&open(&server, "org/name").unwrap(), 5..10).unwrap_err().to_string();
    assert!(error.contains("503") && error.contains("w x.bin"), "{error}");
    let requests = server.requests.lock().unwrap();
    assert_eq!(requests.iter().filter(|request| request.contains("/resolve/")).count(), 8);
}

#[test]
fn the_token_and_signed_addresses_stay_where_they_belong() {
    let network = serve(Box::new(|request, n| if n == 0 { partial(request) } else { answer(403, "", b"") }));
    let target = format!("{}/cdn/x?sig=abc", network.endpoint);
    let server = serve(Box::new(move |_, _| {
        let header = format!("location: {target}\r\nx-repo-commit: {COMMIT}\r\nx-linked-size: 20\r\n");
        answer(302, &header, b"")
    }));
    let repository = open(&server, "org/name").unwrap();
    assert_eq!(read(&repository, 0..20).unwrap(), CONTENT);
    let error = read(&repository, 0..20).unwrap_err().to_string();
    assert!(error.contains("access was refused") && !error.contains("sig="), "{error}");
    for request in network.requests.lock().unwrap().iter() {
        assert!(!request.contains("hf_secret"), "{request}");
    }
}

#[test]
fn a_file_that_changed_stops_the_reading_at_once() {
    for header in [
        "x-repo-commit: ffffffffffffffffffffffffffffffffffffffff\r\n",
        "x-linked-etag: \"00\"\r\n",
        "x-linked-size: 21\r\n",
    ] {
        let server = serve(Box::new(move |_, _| answer(200, header, CONTENT)));
        let error = read(&open(&server, "org/name").unwrap(), 0..20).unwrap_err().to_string();
        assert!(error.contains("changed on the hub meanwhile"), "{error}");
        assert_eq!(server.requests.lock().unwrap().iter().filter(|r| r.contains("/resolve/")).count(), 1);
    }
}

#[test]
fn refusals_say_what_to_do() {
    let server = serve(Box::new(|request, _| partial(request)));
    let error = |id: &str| open(&server, id).unwrap_err().to_string();
    for (id, expected) in [
        ("org/gated", "accept the conditions at"),
        ("org/name@v9", "no such revision"),
        ("org/missing", "token was refused"),
    ] {
        let error = error(id);
        assert!(error.contains(expected) && !error.contains("hf_secret"), "{error}");
    }
    let id = HubId::parse("org/missing").unwrap();
    let error = Repository::open(&environment(&server, None), &id, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("set HF_TOKEN"), "{error}");
    assert!(!server.requests.lock().unwrap().last().unwrap().contains("authorization"));
    let offline = Environment { offline: true, ..environment(&server, None) };
    let error = Repository::open(&offline, &id, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_stop_is_noticed_while_waiting() {
    let server = serve(Box::new(|_, _| answer(503, "retry-after: 100\r\n", b"")));
    let repository = open(&server, "org/name").unwrap();
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
        });
        let error = repository.read_range(1, 0..20, &stop, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
    });
    assert!(start.elapsed() < Duration::from_secs(2));
}
