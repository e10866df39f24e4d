//! Reading a range of a file, over as many attempts as it takes.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::client::Client;
use super::patience::{Failure, Patience};
use super::{plain, xet};
use crate::error::{Error, Result};
use crate::source::RemoteFile;

/// Attempts in a row that may bring nothing.
const ATTEMPTS: u32 = 8;
/// Timeouts that an awaited range may take ...
const AWAITED_TIMEOUTS: u32 = 12;
/// ... and a second more for each of so many bytes.
const AWAITED_BYTES_PER_SECOND: u64 = 5_000;

/// The file that is read.
pub(super) struct Wanted<'a> {
    pub(super) client: &'a Client,
    /// For messages.
    pub(super) place: String,
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a RemoteFile,
    /// Someone waits for the whole range: nothing else shows progress, and it has a deadline.
    pub(super) is_awaited: bool,
}

impl Wanted<'_> {
    /// The error for a file that is not what the listing said.
    pub(super) fn changed(&self, what: &str, expected: &str, found: &str) -> Failure {
        let message = format!(
            "changed on the hub meanwhile: {what} is {}, expected {expected}; start over to read what is there now",
            self.client.clean(found)
        );
        Failure::Fatal(Error::hub(&self.place, message))
    }
}

/// Bytes on their way to whoever asked for them.
pub(super) struct Delivery<'a> {
    /// The first byte that is missing.
    position: u64,
    end: u64,
    sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
}

impl Delivery<'_> {
    /// What is missing.
    pub(super) fn missing(&self) -> Range<u64> {
        self.position..self.end
    }

    /// Passes on `bytes`, which belong at the first missing byte; those past the end are dropped.
    /// Gives whether nothing is missing any more.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Result<bool> {
        let missing = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(missing)];
        if !bytes.is_empty() {
            (self.sink)(bytes)?;
            self.position += bytes.len() as u64;
        }
        Ok(self.position == self.end)
    }
}

/// Hands `range` of the file to `sink`.
pub(super) async fn read(
    wanted: &Wanted<'_>,
    range: Range<u64>,
    stop: &AtomicBool,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let Wanted { client, place, file, .. } = wanted;
    assert!(range.end <= file.len_bytes, "{place}: {range:?} of {} bytes", file.len_bytes);
    let mut delivery = Delivery { position: range.start, end: range.end, sink };
    if file.xet_hash.is_some() && client.xet() && !range.is_empty() {
        match xet::attempt(wanted, &mut delivery, stop).await {
            Ok(()) => return Ok(()),
            Err(Failure::Fatal(error)) => return Err(error),
            // Xet storage is a faster way to the same bytes, not the only one.
            Err(Failure::Again { .. }) if delivery.position == range.start => client.give_up_xet(),
            Err(Failure::Again { .. }) => {}
        }
    }
    let seconds = (range.end - range.start) / AWAITED_BYTES_PER_SECOND;
    let deadline = client.timeout() * AWAITED_TIMEOUTS + Duration::from_secs(seconds);
    let mut patience =
        Patience::new(client, place, stop, ATTEMPTS).within(wanted.is_awaited.then_some(deadline));
    while !delivery.missing().is_empty() {
        let before = delivery.position;
        let came = Cell::new(0);
        let attempt = patience.attempt(plain::attempt(wanted, &mut delivery, &came, stop));
        let attempt = client.notices().watch(place, &came, !wanted.is_awaited, attempt).await;
        if let Err(failure) = attempt {
            patience.after(failure, delivery.position - before).await?;
        }
    }
    Ok(())
}
