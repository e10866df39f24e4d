//! Hugging Face hubs, and places that speak their language.
//!
//! A [`Repository`] is pinned to the commit that its revision was when it was opened. Metadata and
//! Xet storage go through the `hf-hub` crate; file content otherwise comes by ranged requests of
//! our own, which check what they are answered with and go on where they were cut off.

mod back_off;
mod cache;
mod client;
mod credentials;
mod document;
mod environment;
mod id;
mod listing;
mod local_dir;
mod notice;
mod pace;
mod patience;
mod plain;
mod range;
mod refusal;
mod repository;
mod snapshot;
#[cfg(test)]
mod tests;
mod xet;

pub use cache::HubCache;
pub use environment::Environment;
pub use id::HubId;
pub(crate) use local_dir::metadata_path;
pub use local_dir::{LocalDir, Recorded, files_below, is_bookkeeping, linked, recorded};
pub use notice::Notices;
pub use repository::Repository;
pub use snapshot::Snapshot;
