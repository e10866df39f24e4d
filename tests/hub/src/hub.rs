//! The running hub: three listeners, a thread for each connection, and the knobs tests turn.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::connection;
use crate::fault::Fault;
use crate::record::{Host, Record, Request, lock};
use crate::repo::{Commit, Repo};
use crate::throttle::Throttle;
use crate::xet::Edit;

const PAGE_ENTRIES: usize = 1000;
const LINK_LIFETIME: Duration = Duration::from_secs(3600);
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);

/// A hub that runs until it is dropped.
pub struct Hub {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<()>>,
}

/// What all connections share.
pub(crate) struct Shared {
    repos: RwLock<Vec<Repo>>,
    pub(crate) faults: Mutex<Vec<Fault>>,
    pub(crate) record: Record,
    pub(crate) throttle: Throttle,
    pub(crate) page_entries: AtomicUsize,
    pub(crate) link_lifetime_ms: AtomicU64,
    pub(crate) xet_token_lifetime_ms: AtomicU64,
    pub(crate) xet_edit: Mutex<Option<Edit>>,
    pub(crate) stop: AtomicBool,
    pub(crate) hub_url: String,
    pub(crate) cdn_url: String,
    pub(crate) cas_url: String,
    connections: Mutex<HashMap<u64, TcpStream>>,
}

impl Hub {
    /// Serves on a free port.
    pub fn start(repos: Vec<Repo>) -> io::Result<Hub> {
        Hub::start_at(0, repos)
    }

    /// Serves on this port; large files on another, free one.
    pub fn start_at(port: u16, repos: Vec<Repo>) -> io::Result<Hub> {
        let hub = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let cdn = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let cas = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let shared = Arc::new(Shared {
            repos: RwLock::new(repos),
            faults: Mutex::default(),
            record: Record::default(),
            throttle: Throttle::new(),
            page_entries: AtomicUsize::new(PAGE_ENTRIES),
            link_lifetime_ms: AtomicU64::new(LINK_LIFETIME.as_millis() as u64),
            xet_token_lifetime_ms: AtomicU64::new(LINK_LIFETIME.as_millis() as u64),
            xet_edit: Mutex::default(),
            stop: AtomicBool::new(false),
            hub_url: format!("http://127.0.0.1:{}", hub.local_addr()?.port()),
            cdn_url: format!("http://localhost:{}", cdn.local_addr()?.port()),
            cas_url: format!("http://localhost:{}", cas.local_addr()?.port()),
            connections: Mutex::default(),
        });
        let mut running = Hub { shared, listeners: Vec::new() };
        for (listener, host) in [(hub, Host::Hub), (cdn, Host::Cdn), (cas, Host::Cas)] {
            let shared = Arc::clone(&running.shared);
            let name = format!("test-hub {host:?}");
            let thread =
                std::thread::Builder::new().name(name).spawn(move || listen(&listener, host, &shared))?;
            running.listeners.push(thread);
        }
        Ok(running)
    }

    /// The address for `HF_ENDPOINT`.
    pub fn url(&self) -> String {
        self.shared.hub_url.clone()
    }

    /// The address large files are served from.
    pub fn cdn_url(&self) -> String {
        self.shared.cdn_url.clone()
    }

    /// Adds a fault; faults are asked in the order in which they were added.
    pub fn add_fault(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// From now on nothing goes wrong.
    pub fn clear_faults(&self) {
        lock(&self.shared.faults).clear();
    }

    /// All requests so far, in the order in which they were answered.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.record.requests()
    }

    /// Forgets requests and byte counts.
    pub fn clear_requests(&self) {
        self.shared.record.clear();
    }

    /// Bytes of file bodies handed to the network so far.
    pub fn body_bytes_sent(&self) -> u64 {
        self.shared.record.bytes()
    }

    /// As [`Hub::body_bytes_sent`], of one file.
    pub fn body_bytes_of(&self, file: &str) -> u64 {
        self.shared.record.bytes_of(file)
    }

    /// Moves `main` of a repository to a new commit; the old one can be had by its name only if kept.
    pub fn set_commit(&self, repo: &str, commit: Commit, keep_old: bool) {
        let mut repos = self.shared.repos.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = repos.iter_mut().find(|known| known.id == repo) {
            found.move_main(commit, keep_old);
        }
    }

    /// Adds a repository, or replaces the one of that name.
    pub fn set_repo(&self, repo: Repo) {
        let mut repos = self.shared.repos.write().unwrap_or_else(PoisonError::into_inner);
        repos.retain(|known| known.id != repo.id);
        repos.push(repo);
    }

    /// Limits what all servers send together.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.shared.throttle.set(bytes_per_second);
    }

    /// Entries of a page of the file tree, 1000 at first.
    pub fn set_page_size(&self, entries: usize) {
        self.shared.page_entries.store(entries.max(1), Ordering::Relaxed);
    }

    /// How long a link to a large file is good; an hour at first.
    pub fn set_link_lifetime(&self, lifetime: Duration) {
        self.shared.link_lifetime_ms.store(lifetime.as_millis() as u64, Ordering::Relaxed);
    }

    /// How long a token for Xet storage is good; an hour at first.
    pub fn set_xet_token_lifetime(&self, lifetime: Duration) {
        self.shared.xet_token_lifetime_ms.store(lifetime.as_millis() as u64, Ordering::Relaxed);
    }

    /// Lets `edit` change what files in Xet storage are said to be put together from, each time before it is sent.
    pub fn set_xet_edit(&self, edit: impl Fn(&mut serde_json::Value) + Send + Sync + 'static) {
        *lock(&self.shared.xet_edit) = Some(Box::new(edit));
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for stream in lock(&self.shared.connections).values() {
            // A connection that is gone already is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        for url in [&self.shared.hub_url, &self.shared.cdn_url, &self.shared.cas_url] {
            let port = url.rsplit(':').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            // Wakes the listener, which then sees that it is to stop.
            let _ = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        for thread in self.listeners.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub(crate) fn repos(&self) -> RwLockReadGuard<'_, Vec<Repo>> {
        self.repos.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Accepts connections until the hub stops, then waits for their threads.
fn listen(listener: &TcpListener, host: Host, shared: &Shared) {
    let next_key = AtomicU64::new((host as u64) << 62);
    std::thread::scope(|scope| {
        while !shared.stopping() {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            let Ok(handle) = stream.try_clone() else { continue };
            let key = next_key.fetch_add(1, Ordering::Relaxed);
            lock(&shared.connections).insert(key, handle);
            if shared.stopping() {
                // The one who stops may have looked before this connection was there.
                let _ = stream.shutdown(Shutdown::Both);
            }
            scope.spawn(move || {
                // An error here is a client that went away or does not speak HTTP.
                let _ = connection::serve(&stream, host, shared);
                let _ = stream.shutdown(Shutdown::Both);
                lock(&shared.connections).remove(&key);
            });
        }
    });
}
