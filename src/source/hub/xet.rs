//! Ranges from Xet storage, through the crate `hf-xet`: where the user asks for it, plain ranges being the default.
//!
//! The crate checks lengths, but not the hashes of what it unpacks; what comes is verified like everything else, by
//! the digest of the whole file. Its buffers and waits are bounded here: a range is asked for in pieces, and any
//! failure is answered by plain ranges from the first missing byte on.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use xet::xet_session::{
    HeaderMap, HeaderValue, XetConfig, XetDownloadStreamGroup, XetFileInfo, XetSessionBuilder, header,
};

use super::client::{USER_AGENT, unless_stopped};
use super::patience::Failure;
use super::range::{Delivery, Wanted};
use crate::source::RemoteFile;

/// Name of the threads that unpack. The crate panics on them where a storage lies about lengths; that ends one piece,
/// and whoever installs a panic hook need not show it.
pub const XET_THREAD: &str = "xet";
/// How many there are: a conversion needs the other cores.
const THREADS: usize = 2;
/// Most bytes asked for at once: they are held unpacked until the first of them is passed on.
const PIECE_BYTES: u64 = 16 << 20;
/// Shorter ranges are headers and small files: plain ranges need fewer requests for them.
const LEAST_BYTES: u64 = 256 << 10;
/// Bytes that unpacked pieces may take, all connections together.
const BUFFER_BYTES: u64 = 64 << 20;
/// The same for each further connection.
const BUFFER_BYTES_EACH: u64 = PIECE_BYTES;
/// Longest wait for the next bytes, in timeouts of a connection: a slow line or server, not a silent one.
const STALL_TIMEOUTS: u32 = 2;
/// Shortest timeout of a connection of the crate.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
/// Failures in a row after which a run goes on without Xet; a storage that never worked has one.
const FAILURES: u32 = 3;
/// Most bytes of the answer with a token.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// Xet storage as one client uses it.
pub(super) struct Xet {
    allowed: AtomicBool,
    worked: AtomicBool,
    failures: AtomicU32,
    open: Mutex<Connected>,
}

/// How far connecting has come.
#[derive(Default)]
struct Connected {
    lines: Option<Lines>,
    /// Why there are none: nobody waits for the same again.
    refused: Option<String>,
}

/// Connections to the storage, with a token that the crate renews. What they need lives as long as a request does.
#[derive(Clone)]
struct Lines {
    group: XetDownloadStreamGroup,
    workers: Arc<Workers>,
    /// The crate wants a folder of its own, in which a reader leaves nothing.
    _folder: Arc<TempDir>,
}

/// The threads that unpack.
struct Workers(Option<Runtime>);

impl Workers {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name(XET_THREAD)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs what the crate is asked for on these threads, where it starts more.
    async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, xet::XetError>> + Send + 'static,
    ) -> Result<T, xet::XetError> {
        let stopped = || xet::XetError::other("its threads have ended");
        let task = self.0.as_ref().ok_or_else(stopped)?.spawn(future);
        task.await.unwrap_or_else(|error| Err(xet::XetError::other(error)))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // The last one to use them may be an async task, which must not wait.
            runtime.shutdown_background();
        }
    }
}

/// The hub's answer to a request for a token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    access_token: String,
    /// Unix time, seconds.
    exp: u64,
    cas_url: String,
}

impl Xet {
    pub(super) fn new(allowed: bool) -> Self {
        Self {
            allowed: AtomicBool::new(allowed),
            worked: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            open: Mutex::default(),
        }
    }

    /// Whether this range of the file is to be asked for here.
    pub(super) fn serves(&self, file: &RemoteFile, range: &Range<u64>) -> bool {
        self.allowed.load(Ordering::Relaxed)
            && range.end - range.start >= LEAST_BYTES
            && file.xet_hash.as_deref().is_some_and(is_hash)
    }

    /// Content of the file was wrong: no more of Xet in this run, if it may have come from there; gives whether that
    /// is news.
    pub(super) fn mistrust(&self, file: &RemoteFile) -> bool {
        file.xet_hash.is_some() && self.worked.load(Ordering::Relaxed) && self.give_up()
    }

    fn give_up(&self) -> bool {
        self.allowed.swap(false, Ordering::Relaxed)
    }

    fn succeeded(&self) {
        self.worked.store(true, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Counts a failure; gives whether it is the one that ends Xet in this run, or none if others have ended it.
    fn failed(&self) -> Option<bool> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let is_last = failures >= FAILURES || !self.worked.load(Ordering::Relaxed);
        if is_last { self.give_up().then_some(true) } else { Some(false) }
    }
}

/// Passes on what is missing, or as much of it as comes; gives whether that is all. What went wrong is for the user
/// to hear, not an error.
pub(super) async fn attempt(
    wanted: &Wanted<'_>,
    delivery: &mut Delivery<'_>,
    stop: &AtomicBool,
) -> Result<bool, Failure> {
    let xet = wanted.client.xet();
    let why = match pieces(wanted, delivery, stop).await {
        Ok(()) => return Ok(true),
        Err(Failure::Again { why, .. }) => why,
        Err(fatal) => return Err(fatal),
    };
    // A new token, new connections.
    xet.open.lock().await.lines = None;
    let start = delivery.missing().start;
    if let Some(is_last) = xet.failed() {
        let more = if is_last { "; Xet is not asked again in this run" } else { "" };
        let what = format!("Xet storage: {why}; going on with plain ranges from byte {start}{more}");
        wanted.client.notices().say(&wanted.place, &what);
    }
    Ok(false)
}

async fn pieces(wanted: &Wanted<'_>, delivery: &mut Delivery<'_>, stop: &AtomicBool) -> Result<(), Failure> {
    let lines = lines(wanted, stop).await?;
    loop {
        let missing = delivery.missing();
        let range = missing.start..missing.end.min(missing.start + PIECE_BYTES);
        let is_all = piece(wanted, &lines, delivery, range, stop).await?;
        wanted.client.xet().succeeded();
        if is_all {
            return Ok(());
        }
    }
}

/// Passes on one piece; gives whether nothing is missing any more.
async fn piece(
    wanted: &Wanted<'_>,
    lines: &Lines,
    delivery: &mut Delivery<'_>,
    range: Range<u64>,
    stop: &AtomicBool,
) -> Result<bool, Failure> {
    let patience = wanted.client.timeout() * STALL_TIMEOUTS;
    let failed = |error: xet::XetError| failure(wanted, &error);
    let stalled = |_| Failure::again(format!("nothing has come for {} s", patience.as_secs_f64()));
    let hash = wanted.file.xet_hash.clone().unwrap_or_default();
    let info = XetFileInfo::new(hash, wanted.file.len_bytes);
    let (group, asked_for) = (lines.group.clone(), range.clone());
    let stream = lines.workers.run(async move { group.download_stream(info, Some(asked_for)).await });
    let asked = tokio::time::timeout(patience, stream);
    let mut stream = unless_stopped(stop, asked).await?.map_err(stalled)?.map_err(failed)?;
    let mut left = range.end - range.start;
    while left > 0 {
        let next = unless_stopped(stop, tokio::time::timeout(patience, stream.next())).await?;
        let Some(bytes) = next.map_err(stalled)?.map_err(failed)? else {
            return Err(Failure::again(format!("the last {left} bytes of {range:?} are missing")));
        };
        let len = bytes.len() as u64;
        if len > left {
            return Err(Failure::again(format!(
                "more than the {} bytes of {range:?} came",
                range.end - range.start
            )));
        }
        left -= len;
        if delivery.pass(&bytes)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn failure(wanted: &Wanted<'_>, error: &xet::XetError) -> Failure {
    let text = error.to_string();
    if text.contains("panicked") {
        return Failure::again("what it says the file is put together from makes no sense");
    }
    Failure::again(wanted.client.clean(&text))
}

/// Connections to the storage: those that are there, or new ones.
async fn lines(wanted: &Wanted<'_>, stop: &AtomicBool) -> Result<Lines, Failure> {
    let mut open = unless_stopped(stop, wanted.client.xet().open.lock()).await?;
    match &*open {
        Connected { refused: Some(why), .. } => return Err(Failure::again(why.clone())),
        Connected { lines: Some(lines), .. } => return Ok(lines.clone()),
        Connected { .. } => {}
    }
    let connected = connect(wanted, stop).await;
    match &connected {
        Ok(lines) => open.lines = Some(lines.clone()),
        Err(Failure::Again { why, .. }) => open.refused = Some(why.clone()),
        Err(Failure::Fatal(_)) => {}
    }
    connected
}

async fn connect(wanted: &Wanted<'_>, stop: &AtomicBool) -> Result<Lines, Failure> {
    let client = wanted.client;
    let of_repo = ["api", "models"].into_iter().chain(wanted.repo.split('/'));
    let url = client.url(of_repo.chain(["xet-read-token", wanted.commit]));
    let token = token(wanted, &url, stop).await?;
    let endpoint = endpoint(client.endpoint_url(), &token.cas_url).ok_or_else(|| {
        Failure::again(format!("the hub names {:?} as its address", client.clean(&token.cas_url)))
    })?;
    let failed = |error: xet::XetError| failure(wanted, &error);
    let no_threads = |error| Failure::again(format!("no threads for it: {error}"));
    let workers = Arc::new(Workers::start().map_err(no_threads)?);
    let folder =
        tempfile::tempdir().map_err(|error| Failure::again(format!("no temporary folder: {error}")))?;
    let handle = workers.0.as_ref().map(|runtime| runtime.handle().clone());
    let handle = handle.ok_or_else(|| Failure::again("its threads have ended"))?;
    let session = XetSessionBuilder::new_with_config(config(client.timeout(), client.back_off()))
        .with_cache_dir(folder.path())
        .with_tokio_handle(handle)
        .build()
        .map_err(failed)?;
    let mut to_hub = HeaderMap::new();
    to_hub.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let to_storage = to_hub.clone();
    if let Some(value) = client.authorization() {
        to_hub.insert(header::AUTHORIZATION, value.clone());
    }
    let builder = session
        .new_download_stream_group()
        .map_err(failed)?
        .with_endpoint(endpoint)
        .with_custom_headers(to_storage)
        .with_token_info(token.access_token, token.exp)
        .with_token_refresh_url(url, to_hub);
    let group = unless_stopped(stop, workers.run(builder.build())).await?.map_err(failed)?;
    Ok(Lines { group, workers, _folder: Arc::new(folder) })
}

async fn token(wanted: &Wanted<'_>, url: &Url, stop: &AtomicBool) -> Result<Token, Failure> {
    let client = wanted.client;
    let sent = unless_stopped(stop, client.get(url.clone()).send()).await?;
    let mut answer = sent.map_err(|error| Failure::transport(client, error))?;
    if !answer.status().is_success() {
        return Err(Failure::again(format!(
            "the hub answers with status {} to a request for its token",
            answer.status()
        )));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        unless_stopped(stop, answer.chunk()).await?.map_err(|error| Failure::transport(client, error))?
    {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_TOKEN_BYTES {
            return Err(Failure::again("the hub's answer with its token does not end"));
        }
    }
    serde_json::from_slice(&body).map_err(|error| {
        Failure::again(client.clean(&format!("the hub's token for it cannot be read: {error}")))
    })
}

/// The storage's address as the crate takes it: an HTTP server, and an encrypted one if the hub is.
fn endpoint(hub: &Url, stated: &str) -> Option<String> {
    let url = Url::parse(stated).ok().filter(Url::has_host)?;
    let fits = url.scheme() == "https" || (url.scheme() == "http" && hub.scheme() == "http");
    fits.then(|| stated.trim_end_matches('/').to_owned())
}

/// Whether text is a hash of Xet storage; the crate takes anything else badly.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Settings of the crate that bound what it takes. Its variables (`HF_XET_...`) are not read: they are larger by far.
fn config(timeout: Duration, back_off: Duration) -> XetConfig {
    let mut config = XetConfig::default();
    // Nobody is told about transfers.
    config.telemetry.enabled = false;
    // One retry, within the time of one plain attempt: for a link that has expired meanwhile, and a dropped connection.
    config.client.retry_max_attempts = 1;
    config.client.retry_base_delay = back_off;
    config.client.connect_timeout = (timeout / 2).max(LEAST_TIMEOUT);
    config.client.read_timeout = (timeout / 2).max(LEAST_TIMEOUT);
    config.reconstruction.download_buffer_size = BUFFER_BYTES.into();
    config.reconstruction.download_buffer_perfile_size = BUFFER_BYTES_EACH.into();
    config.reconstruction.download_buffer_limit = (BUFFER_BYTES * 4).into();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let of = |hub: &str, stated: &str| endpoint(&Url::parse(hub).unwrap(), stated);
        assert_eq!(of("https://h", "https://cas.h/"), Some("https://cas.h".to_owned()));
        assert_eq!(of("http://h", "http://cas.h:1"), Some("http://cas.h:1".to_owned()));
        // The crate would make folders at the first two, and keep everything in memory at the third.
        for stated in ["local:///tmp/x", "local://x", "memory://", "file:///x", "", "cas.h"] {
            assert_eq!(of("http://h", stated), None, "{stated}");
        }
        // Never from an encrypted connection to a plain one.
        assert_eq!(of("https://h", "http://cas.h"), None);
    }

    #[test]
    fn a_storage_that_never_worked_has_one_failure_and_others_three() {
        let never = Xet::new(true);
        assert_eq!((never.failed(), never.failed()), (Some(true), None));
        let worked = Xet::new(true);
        worked.succeeded();
        assert_eq!((worked.failed(), worked.failed()), (Some(false), Some(false)));
        worked.succeeded();
        assert_eq!(
            (worked.failed(), worked.failed(), worked.failed()),
            (Some(false), Some(false), Some(true))
        );
        assert!(!worked.give_up());
    }
}
