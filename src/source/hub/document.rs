//! JSON that the hub itself answers with: of bounded size, asked for again where it came to harm on its way.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, LOCATION};
use reqwest::{Response, Url};
use serde::de::DeserializeOwned;

use super::client::{Client, MAX_HOPS, unless_stopped};
use super::pace::Pace;
use super::patience::{Failure, Patience};
use super::refusal::Refusal;
use crate::error::{Error, Result};

/// Most bytes that are read of the body of a refusal, to see what the hub says about it.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// What is asked for, and of whom.
pub(super) struct Asked<'a> {
    pub(super) client: &'a Client,
    /// For messages.
    pub(super) place: &'a str,
    pub(super) repo: &'a str,
    /// What the document is: `"the hub's listing"`.
    pub(super) what: &'a str,
    /// Most bytes of it.
    pub(super) max_bytes: usize,
    pub(super) stop: &'a AtomicBool,
}

impl Asked<'_> {
    /// The document at `url`, and the headers it came with.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        url: &Url,
        patience: &mut Patience<'_>,
    ) -> Result<(T, HeaderMap)> {
        loop {
            let bytes = Cell::new(0);
            let attempt = patience.attempt(self.attempt(url.clone(), &bytes));
            match self.client.notices().watch(self.place, &bytes, false, attempt).await {
                Ok(document) => {
                    patience.renew();
                    return Ok(document);
                }
                // Nothing of it is kept, so that it brought nothing.
                Err(failure) => patience.after(failure, 0).await?,
            }
        }
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        mut url: Url,
        bytes: &Cell<u64>,
    ) -> std::result::Result<(T, HeaderMap), Failure> {
        let Self { client, place, what, .. } = self;
        for _ in 0..=MAX_HOPS {
            let request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            let sent = unless_stopped(self.stop, request.send()).await?;
            let mut answer = sent.map_err(|error| Failure::transport(client, error))?;
            let status = answer.status();
            if status.is_redirection() {
                // A renamed repository.
                url = self.moved(&url, answer.headers())?;
                continue;
            }
            if !status.is_success() {
                return Err(self.refused(answer).await?);
            }
            let encoding = answer.headers().get(CONTENT_ENCODING).filter(|value| *value != "identity");
            if let Some(encoding) = encoding {
                let encoding = client.clean(&String::from_utf8_lossy(encoding.as_bytes()));
                return Err(Failure::again(format!("{what} came encoded as {encoding}")));
            }
            let body = self.body(&mut answer, bytes).await?;
            let document = serde_json::from_slice(&body).map_err(|error| {
                let message = format!("{what} cannot be read: {}", client.clean(&error.to_string()));
                match error.classify() {
                    // JSON, but not what was asked for: another attempt would bring the same.
                    serde_json::error::Category::Data => Failure::Fatal(Error::hub(*place, message)),
                    _ => Failure::again(message),
                }
            })?;
            return Ok((document, answer.headers().clone()));
        }
        Err(Failure::Fatal(Error::hub(*place, format!("{what}: more than {MAX_HOPS} redirects"))))
    }

    async fn body(&self, answer: &mut Response, bytes: &Cell<u64>) -> std::result::Result<Vec<u8>, Failure> {
        let Self { client, place, what, max_bytes, stop, .. } = self;
        let mut body = Vec::new();
        let mut pace = Pace::new(client.timeout());
        loop {
            let start = Instant::now();
            let chunk = unless_stopped(stop, answer.chunk()).await?;
            let Some(chunk) = chunk.map_err(|error| Failure::transport(client, error))? else {
                return Ok(body);
            };
            if body.len() + chunk.len() > *max_bytes {
                let message =
                    format!("{what} does not end after {max_bytes} bytes, the most that are read of it");
                return Err(Error::hub(*place, message).into());
            }
            body.extend_from_slice(&chunk);
            bytes.set(body.len() as u64);
            pace.came(start, chunk.len())?;
        }
    }

    fn moved(&self, url: &Url, headers: &HeaderMap) -> Result<Url> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| url.join(location).ok());
        target
            .filter(|target| self.client.is_home(target))
            .ok_or_else(|| Error::hub(self.place, format!("{} is redirected to somewhere else", self.what)))
    }

    /// What a refusal means; the hub explains itself in headers, others in the body.
    async fn refused(&self, mut answer: Response) -> Result<Failure> {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let mut refusal = Refusal::new(status, &headers);
        let mut body = Vec::new();
        let explains = async {
            while let Ok(Some(chunk)) = answer.chunk().await
                && body.len() + chunk.len() <= MAX_REFUSAL_BYTES
            {
                body.extend_from_slice(&chunk);
            }
        };
        if refusal.message.is_none() {
            // Without an explanation the refusal still stands.
            let _ = unless_stopped(self.stop, tokio::time::timeout(self.client.timeout(), explains)).await?;
            let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
            refusal.message = said.and_then(|said| said["error"].as_str().map(str::to_owned));
        }
        Ok(Failure::of(refusal, self.client, self.place, self.repo, &headers))
    }
}
