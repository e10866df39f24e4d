//! Connections to one hub, for callers on any thread.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;
use tokio::runtime::Runtime;

use super::credentials::{self, Credentials};
use super::environment::Environment;
use super::refusal;
use super::xet::Xet;
use crate::error::{Error, Result};
use crate::source::notice::Notices;

/// How often a waiting request looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(100);
/// Redirects followed on the way to a file.
pub(super) const MAX_HOPS: usize = 5;

pub(super) const USER_AGENT: &str = concat!("requant/", env!("CARGO_PKG_VERSION"));

/// A hub's address, the token for it, and the pool of connections to it.
pub(super) struct Client {
    runtime: Option<Runtime>,
    http: reqwest::Client,
    endpoint: Url,
    /// The endpoint as messages show it.
    shown_endpoint: String,
    authorization: Option<HeaderValue>,
    credentials: Option<Credentials>,
    environment: Environment,
    xet: Xet,
}

impl Client {
    /// Connects to nothing yet.
    pub(super) fn new(environment: &Environment) -> Result<Self> {
        let place = credentials::without(&environment.endpoint);
        let failed =
            |error: &dyn std::fmt::Display| Error::hub(&place, format!("cannot set up a client: {error}"));
        let endpoint = Url::parse(&environment.endpoint).map_err(|error| failed(&error))?;
        let (endpoint, credentials) = Credentials::take(endpoint);
        // As in Python: what stands in the address goes before the token.
        let of_address = credentials.as_ref().map(|credentials| credentials.header(&place)).transpose()?;
        let bearer = match environment.token.as_ref().filter(|_| of_address.is_none()) {
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    Error::Request(
                        "the hub's token (HF_TOKEN, or the token file) has characters no token has"
                            .to_owned(),
                    )
                })?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let authorization = of_address.or(bearer);
        // HTTP/1 so that several requests are several connections: one connection of HTTP/2
        // would hold all of them to one flow-control window.
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .http1_only()
            .redirect(Policy::none())
            .connect_timeout(environment.timeout)
            .read_timeout(environment.timeout)
            .build()
            .map_err(|error| failed(&error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("hub")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self {
            runtime: Some(runtime),
            http,
            endpoint,
            authorization,
            shown_endpoint: place,
            credentials,
            environment: environment.clone(),
            xet: Xet::new(environment.use_xet && !environment.disable_xet),
        })
    }

    /// Runs `future` on the calling thread, which must not belong to an async runtime.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            // Only while being dropped, when nobody can call any more.
            None => Err(Error::Interrupted),
        }
    }

    /// A GET with the token, if `url` is of the hub itself, and none otherwise.
    pub(super) fn get(&self, url: Url) -> reqwest::RequestBuilder {
        let authorization = self.authorization.clone().filter(|_| self.is_home(&url));
        let request = self.http.get(url);
        match authorization {
            Some(value) => request.header(reqwest::header::AUTHORIZATION, value),
            None => request,
        }
    }

    /// Whether `url` has the hub's own scheme, host and port.
    pub(super) fn is_home(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// The hub's address followed by `segments`, each percent-encoded.
    pub(super) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Every http(s) address has path segments.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// The endpoint as messages may show it.
    pub(super) fn endpoint(&self) -> &str {
        &self.shown_endpoint
    }

    /// Who hears of waits.
    pub(super) fn notices(&self) -> &Notices {
        &self.environment.notices
    }

    pub(super) fn endpoint_url(&self) -> &Url {
        &self.endpoint
    }

    pub(super) fn has_token(&self) -> bool {
        self.authorization.is_some()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.environment.timeout
    }

    pub(super) fn back_off(&self) -> Duration {
        self.environment.back_off
    }

    /// Xet storage.
    pub(super) fn xet(&self) -> &Xet {
        &self.xet
    }

    /// What the hub itself is to be sent as `Authorization`.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// `text` fit to be shown: no token, no credentials, no signed URLs.
    pub(super) fn clean(&self, text: &str) -> String {
        let token = self.environment.token.iter().map(String::as_str);
        let of_address = self.credentials.iter().flat_map(Credentials::secrets);
        refusal::clean(text, &token.chain(of_address).collect::<Vec<_>>())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for `future`, or until `stop` is set.
pub(super) async fn unless_stopped<F: Future>(stop: &AtomicBool, future: F) -> Result<F::Output> {
    let mut future = pin!(future);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if let Ok(output) = tokio::time::timeout(STOP_POLL, future.as_mut()).await {
            return Ok(output);
        }
    }
}
