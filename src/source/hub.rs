//! Hugging Face hubs, and places that speak their language.
//!
//! A [`Repository`] is pinned to the commit that its revision was when it was opened. Metadata goes
//! through the `hf-hub` crate; file content comes by ranged requests of our own, which check what they
//! are answered with and go on where they were cut off, or from Xet storage through `hf-xet`.

mod back_off;
mod cache;
mod client;
mod credentials;
mod document;
mod environment;
mod id;
mod listing;
mod local_dir;
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

pub use super::notice::{Notice, Notices};
pub use cache::HubCache;
pub use environment::Environment;
pub use id::HubId;
pub(crate) use listing::parse_page as parse_listing;
pub(crate) use local_dir::metadata_path;
pub use local_dir::{LocalDir, Recorded, files_below, is_bookkeeping, linked, recorded};
pub use repository::Repository;
pub use snapshot::Snapshot;
pub use xet::XET_THREAD;
