//! Xet storage, the side that is read: tokens, what a file is put together from, and the pieces.
//!
//! Chunks, xorbs and hashes are made with the crates of the real storage (`xet-core-structures`), so that a real
//! client finds nothing strange in them.

mod cas;
mod stored;

pub(crate) use cas::{answer, read_token, xorb};
pub use stored::Cut;
pub(crate) use stored::Stored;

/// Changes what a file is said to be put together from, before it is sent.
pub(crate) type Edit = Box<dyn Fn(&mut serde_json::Value) + Send + Sync>;
