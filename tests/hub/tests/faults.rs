//! Every action, as it shows on the wire.

use std::time::{Duration, Instant};

use test_hub::{Action, Fault, Host, Hub, Repo};

use crate::client::{Reply, ask, get, link};

const LEN: usize = 600_000;

fn weights() -> Vec<u8> {
    (0..LEN).map(|i| (i * 7 % 251) as u8).collect()
}

/// A hub with one large file, and a link to that.
fn hub() -> (Hub, String) {
    let hub = Hub::start(vec![Repo::empty("o/n").file("a.safetensors", weights()).unwrap()]).unwrap();
    let link = link(&hub, "o/n", "a.safetensors");
    (hub, link)
}

fn is_sound(reply: &Reply) -> bool {
    !reply.cut_short && reply.body == weights()
}

#[test]
fn a_dropped_body_once_after_one_pass() {
    let (hub, link) = hub();
    hub.add_fault(Fault::new("a.safe", Action::Drop { after_bytes: 300_001 }).skip(1).times(1));
    assert!(is_sound(&get(&link, &[]).unwrap()));
    // Too short to be cut there: passes and is not counted.
    assert_eq!(get(&link, &["Range: bytes=0-9"]).unwrap().body.len(), 10);
    let reply = get(&link, &[]).unwrap();
    assert_eq!((reply.status, reply.body.len(), reply.cut_short), (200, 300_001, true));
    assert!(is_sound(&get(&link, &[]).unwrap()));
    assert_eq!(hub.body_bytes_of("a.safetensors"), 2 * LEN as u64 + 10 + 300_001);
}

#[test]
fn a_stall_delays_but_does_not_harm() {
    let (hub, link) = hub();
    let pause = Duration::from_millis(150);
    hub.add_fault(Fault::new("", Action::Stall { after_bytes: 1000, pause }).times(1));
    let started = Instant::now();
    assert!(is_sound(&get(&link, &[]).unwrap()));
    assert!(started.elapsed() >= pause);
}

#[test]
fn a_stalled_hub_can_be_dropped() {
    let (hub, link) = hub();
    hub.add_fault(Fault::new("", Action::Stall { after_bytes: 0, pause: Duration::from_secs(100) }));
    let client = std::thread::spawn(move || get(&link, &[]).map(|reply| reply.cut_short));
    while hub.requests().len() < 2 {
        std::thread::yield_now();
    }
    let started = Instant::now();
    drop(hub);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(client.join().unwrap().unwrap_or(true));
}

#[test]
fn a_status_on_one_host_only() {
    let (hub, link) = hub();
    let action =
        Action::Status { code: 503, retry_after: Some(Duration::from_secs(7)), text: "busy".to_string() };
    hub.add_fault(Fault::new("a.safetensors", action).on(Host::Cdn).times(1));
    let url = format!("{}/o/n/resolve/main/a.safetensors", hub.url());
    assert_eq!(ask("HEAD", &url, &[], "").unwrap().status, 302);
    let reply = get(&link, &[]).unwrap();
    assert_eq!(
        (reply.status, reply.header("Retry-After"), reply.body.as_slice()),
        (503, Some("7"), &b"busy"[..])
    );
    assert!(is_sound(&get(&link, &[]).unwrap()));
}

#[test]
fn a_corrupt_byte_where_the_range_covers_it() {
    let ((hub, link), sound) = (hub(), weights());
    hub.add_fault(Fault::new("", Action::Corrupt { offset: 500_000 }).times(2));
    let reply = get(&link, &["Range: bytes=0-499999"]).unwrap();
    assert!(reply.body == sound[..500_000]);
    for (range, start) in [("Range: bytes=500000-500000", 500_000), ("Range: bytes=400000-", 400_000)] {
        let reply = get(&link, &[range]).unwrap();
        let pairs = reply.body.iter().zip(&sound[start..]).enumerate();
        let differing: Vec<usize> =
            pairs.filter(|(_, (got, true_byte))| got != true_byte).map(|(i, _)| start + i).collect();
        assert_eq!(differing, [500_000]);
    }
    assert!(is_sound(&get(&link, &[]).unwrap()));
}

#[test]
fn a_body_cut_at_its_end_openly_or_not() {
    for claims_less in [false, true] {
        let (hub, link) = hub();
        hub.add_fault(Fault::new("", Action::Truncate { missing_bytes: 10, claims_less }));
        let reply = get(&link, &["Range: bytes=100-199"]).unwrap();
        assert_eq!((reply.status, reply.cut_short), (206, !claims_less));
        assert!(reply.body == weights()[100..190]);
    }
}

#[test]
fn a_range_that_is_ignored() {
    let (hub, link) = hub();
    hub.add_fault(Fault::new("", Action::IgnoreRange).times(1));
    let reply = get(&link, &["Range: bytes=5-9"]).unwrap();
    assert!(reply.status == 200 && reply.header("Content-Range").is_none() && is_sound(&reply));
    assert_eq!(get(&link, &["Range: bytes=5-9"]).unwrap().status, 206);
}

#[test]
fn a_page_instead_of_the_file() {
    let (hub, link) = hub();
    hub.add_fault(Fault::new("", Action::WrongPage).times(1));
    let reply = get(&link, &["Range: bytes=5-9"]).unwrap();
    assert_eq!((reply.status, reply.header("Content-Type")), (200, Some("text/html; charset=utf-8")));
    assert!(reply.body.starts_with(b"<!DOCTYPE html>"));
}

#[test]
fn a_closed_door_until_faults_are_cleared() {
    let (hub, link) = hub();
    hub.add_fault(Fault::new("/api/", Action::Refuse).method("GET"));
    let url = format!("{}/api/models/o/n", hub.url());
    assert!(get(&url, &[]).is_err());
    assert_eq!(hub.requests().last().unwrap().status, 0);
    assert!(is_sound(&get(&link, &[]).unwrap()));
    hub.clear_faults();
    assert_eq!(get(&url, &[]).unwrap().status, 200);
}

#[test]
fn a_slow_network() {
    let (hub, link) = hub();
    hub.set_rate(Some(2_000_000));
    let started = Instant::now();
    assert!(is_sound(&get(&link, &[]).unwrap()));
    let seconds = started.elapsed().as_secs_f64();
    assert!((0.28..2.0).contains(&seconds), "600 kB at 2 MB/s took {seconds} s");
}
