//! One attempt to read a range from Xet storage, through the `hf-hub` crate.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::split_id;

use super::client::unless_stopped;
use super::patience::Failure;
use super::range::{Delivery, Wanted};

/// Longest wait for the next bytes, in timeouts of a plain connection: Xet storage fetches and
/// unpacks several pieces before it has bytes in order.
const STALL_TIMEOUTS: u32 = 6;

/// Passes on what is missing, or as much of it as comes.
pub(super) async fn attempt(
    wanted: &Wanted<'_>,
    delivery: &mut Delivery<'_>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let patience: Duration = wanted.client.timeout() * STALL_TIMEOUTS;
    let missing = delivery.missing();
    let (owner, name) = split_id(wanted.repo);
    let model = wanted.client.hub().model(owner, name);
    let asked = model
        .download_file_stream()
        .filename(wanted.file.name.as_str())
        .revision(wanted.commit)
        .range(missing.clone())
        .send();
    let failed = |error: hf_hub::HFError| Failure::again(wanted.client.clean(&error.to_string()));
    let stalled = |_| Failure::again("Xet storage stalled");
    let opened = unless_stopped(stop, tokio::time::timeout(patience, asked)).await?.map_err(stalled)?;
    let (len, mut stream) = opened.map_err(failed)?;
    // The crate does not check whether a server that it asks without Xet ignores the range.
    if len != Some(missing.end - missing.start) {
        return Err(Failure::again("Xet storage gave another length"));
    }
    loop {
        let next = unless_stopped(stop, tokio::time::timeout(patience, stream.next())).await?;
        let Some(bytes) = next.map_err(stalled)? else {
            return Err(Failure::again("Xet storage ended early"));
        };
        if delivery.pass(&bytes.map_err(failed)?)? {
            return Ok(());
        }
    }
}
