//! What a healthy hub says: API, redirects, ranges, pages, permissions, new commits.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use test_hub::{Bytes, Commit, Gate, GateMode, Host, Hub, Repo, RepoFile, sha256_hex};

use crate::client::{ask, get, link, read_reply};

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn repo() -> Repo {
    let repo = Repo::empty("org/name").file("config.json", "{}").unwrap();
    repo.file("model.safetensors", weights()).unwrap().file("sub/a b.txt", "text").unwrap()
}

#[test]
fn facts_of_a_model_with_and_without_blobs() {
    let hub = Hub::start(vec![repo()]).unwrap();
    let info = get(&format!("{}/api/models/org/name", hub.url()), &[]).unwrap().json();
    assert_eq!(info["sha"], repo().main().unwrap().sha());
    assert_eq!(info["siblings"].as_array().unwrap().len(), 3);
    assert!(info["siblings"][1].get("size").is_none());
    let sha = info["sha"].as_str().unwrap();
    let url = format!("{}/api/models/org/name/revision/{sha}?blobs=true", hub.url());
    let info = get(&url, &[]).unwrap().json();
    assert_eq!(info["siblings"][0]["size"], 2);
    assert_eq!(info["siblings"][1]["lfs"]["sha256"], sha256_hex(&Bytes(weights())).unwrap());
}

#[test]
fn a_tree_comes_in_pages_that_link_to_each_other() {
    let files = (0..7).map(|i| RepoFile::new(&format!("f{i}"), std::sync::Arc::new(Bytes(vec![i]))).unwrap());
    let hub = Hub::start(vec![Repo::new("org/name", Commit::new(files.collect()))]).unwrap();
    hub.set_page_size(3);
    let mut next = Some(format!("{}/api/models/org/name/tree/main?recursive=true", hub.url()));
    let (mut pages, mut paths) = (0, Vec::new());
    while let Some(url) = next {
        let reply = get(&url, &[]).unwrap();
        let page = reply.json();
        paths
            .extend(page.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_string()));
        pages += 1;
        let url =
            reply.header("Link").and_then(|text| text.strip_prefix('<')?.strip_suffix(">; rel=\"next\""));
        next = url.map(str::to_string);
    }
    assert_eq!((pages, paths.join(" ").as_str()), (3, "f0 f1 f2 f3 f4 f5 f6"));
}

#[test]
fn large_files_come_from_another_host_that_says_little() {
    let hub = Hub::start(vec![repo()]).unwrap();
    let url = format!("{}/org/name/resolve/main/model.safetensors", hub.url());
    let reply = get(&url, &["Authorization: Bearer hf_x"]).unwrap();
    let sha256 = sha256_hex(&Bytes(weights())).unwrap();
    assert_eq!(reply.status, 302);
    assert_eq!(reply.header("X-Linked-ETag"), Some(format!("\"{sha256}\"").as_str()));
    assert_eq!(reply.header("X-Linked-Size"), Some("300000"));
    assert_eq!(reply.header("X-Repo-Commit"), Some(repo().main().unwrap().sha()));
    let link = reply.header("Location").unwrap();
    assert!(link.starts_with(&hub.cdn_url()) && link.starts_with("http://localhost:"), "{link}");

    let part = get(link, &["Range: bytes=100-299999"]).unwrap();
    assert_eq!((part.status, part.header("Content-Range")), (206, Some("bytes 100-299999/300000")));
    assert!(part.body == weights()[100..]);
    assert!(part.header("X-Repo-Commit").is_none() && !part.header("ETag").unwrap().contains(&sha256));
    assert_eq!(get(link, &["Range: bytes=300000-"]).unwrap().status, 416);
    assert_eq!(get(link.split('?').next().unwrap(), &[]).unwrap().status, 403);
    assert_eq!((hub.body_bytes_sent(), hub.body_bytes_of("model.safetensors")), (299_900, 299_900));

    let requests = hub.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests[0].had_token && requests[0].host == Host::Hub);
    assert!(!requests[1].had_token && requests[1].host == Host::Cdn);
    assert_eq!(requests[1].file.as_deref(), Some("model.safetensors"));
    assert_eq!((requests[1].range.as_deref(), requests[1].status), (Some("bytes=100-299999"), 206));
}

#[test]
fn links_to_large_files_expire() {
    let hub = Hub::start(vec![repo()]).unwrap();
    hub.set_link_lifetime(Duration::from_millis(20));
    let link = link(&hub, "org/name", "model.safetensors");
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(get(&link, &[]).unwrap().status, 403);
}

#[test]
fn small_files_come_from_another_path() {
    let hub = Hub::start(vec![repo()]).unwrap();
    let reply = get(&format!("{}/org/name/resolve/main/sub/a%20b.txt", hub.url()), &[]).unwrap();
    assert_eq!(reply.status, 307);
    let place = reply.header("Location").unwrap();
    assert!(place.starts_with("/api/resolve-cache/models/org/name/"), "{place}");
    let reply = get(&format!("{}{place}", hub.url()), &["Range: bytes=1-2"]).unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (206, &b"ex"[..]));
    assert!(reply.header("X-Repo-Commit").is_some() && reply.header("ETag").is_some());
}

#[test]
fn a_connection_carries_many_requests() {
    let hub = Hub::start(vec![repo()]).unwrap();
    let mut stream = TcpStream::connect(hub.url().trim_start_matches("http://")).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for (method, path, status) in
        [("HEAD", "/org/name/resolve/main/config.json", 307), ("GET", "/api/models/org/name", 200)].repeat(3)
    {
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(read_reply(&mut reader, method).unwrap().status, status);
    }
    let started = Instant::now();
    drop(hub);
    assert!(started.elapsed() < Duration::from_secs(2), "an idle connection must not hold up the end");
}

#[test]
fn refusals() {
    let gate = Gate { mode: GateMode::Manual, granted: vec!["in".to_string()] };
    let private = Repo::empty("org/private").file("a", "1").unwrap().with_token("mine");
    let gated = Repo::empty("org/gated").file("a", "1").unwrap().gated(gate);
    let hub = Hub::start(vec![repo(), private, gated]).unwrap();
    let unknown = "0".repeat(40);
    for (path, token, status, code) in [
        ("api/models/org/name", "", 200, None),
        ("api/models/no/such", "", 401, Some("RepoNotFound")),
        ("api/models/no/such", "hf_x", 404, Some("RepoNotFound")),
        ("api/models/org/name", "made-up", 401, None),
        ("api/models/org/private", "", 401, Some("RepoNotFound")),
        ("api/models/org/private", "hf_x", 404, Some("RepoNotFound")),
        ("api/models/org/private", "mine", 200, None),
        ("org/private/resolve/main/a", "hf_x", 404, Some("RepoNotFound")),
        ("org/private/resolve/main/a", "mine", 307, None),
        ("api/models/org/gated", "", 200, None),
        ("org/gated/resolve/main/a", "", 401, Some("GatedRepo")),
        ("org/gated/resolve/main/a", "hf_x", 403, Some("GatedRepo")),
        ("org/gated/resolve/main/a", "in", 307, None),
        (&format!("api/models/org/name/revision/{unknown}"), "", 404, Some("RevisionNotFound")),
        (&format!("org/name/resolve/{unknown}/config.json"), "", 404, Some("RevisionNotFound")),
        ("org/name/resolve/main/nothing", "", 404, Some("EntryNotFound")),
        ("api/models/org/name/tree/main/nothing", "", 404, Some("EntryNotFound")),
        ("api/whoami-v2", "", 401, None),
        ("api/whoami-v2", "hf_x", 200, None),
        ("nothing", "", 404, None),
    ] {
        let header = format!("Authorization: Bearer {token}");
        let headers: &[&str] = if token.is_empty() { &[] } else { &[&header] };
        let reply = get(&format!("{}/{path}", hub.url()), headers).unwrap();
        assert_eq!((reply.status, reply.header("X-Error-Code")), (status, code), "{path} with {token:?}");
    }
}

#[test]
fn paths_are_looked_up_one_by_one() {
    let hub = Hub::start(vec![repo()]).unwrap();
    let url = format!("{}/api/models/org/name/paths-info/main", hub.url());
    for body in [r#"{"paths":["config.json","sub","nothing"]}"#, "paths=config.json&paths=sub&expand=False"] {
        let found = ask("POST", &url, &[], body).unwrap().json();
        let found: Vec<_> = found.as_array().unwrap().iter().map(|entry| entry["path"].clone()).collect();
        assert_eq!(found, ["config.json", "sub"]);
    }
}

#[test]
fn main_moves_to_a_new_commit() {
    for keep_old in [false, true] {
        let hub = Hub::start(vec![repo()]).unwrap();
        let (old, new) = (repo(), repo().file("config.json", "{\"new\":1}").unwrap());
        let (old, new) = (old.main().unwrap(), new.main().unwrap());
        let old_link = link(&hub, "org/name", "model.safetensors");
        hub.set_commit("org/name", new.clone(), keep_old);
        let status =
            |sha| get(&format!("{}/api/models/org/name/revision/{sha}", hub.url()), &[]).unwrap().status;
        assert_eq!((status("main"), status(new.sha())), (200, 200));
        assert_eq!(status(old.sha()), if keep_old { 200 } else { 404 });
        assert_eq!(get(&old_link, &["Range: bytes=0-9"]).unwrap().status, 206);
    }
}
