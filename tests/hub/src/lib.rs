//! A local Hugging Face hub with faults, for tests: the read API of the real one, on three ports of this machine.
//!
//! [`Hub::start`] serves [`Repo`]s to any client that honours `HF_ENDPOINT`; [`Fault`]s make it misbehave;
//! [`Hub::requests`] says what it was asked. [`simulate`] makes a full-size checkpoint without a disk.

mod api;
mod connection;
mod content;
mod delivery;
mod digest;
mod fault;
mod files;
mod http;
mod hub;
mod peer;
mod record;
mod repo;
mod routes;
pub mod simulate;
mod throttle;
mod xet;

pub use content::{Bytes, Content, DiskFile};
pub use digest::{git_blob_oid, sha256_hex};
pub use fault::{Action, Fault};
pub use hub::Hub;
pub use peer::cached;
pub use record::{Host, Request};
pub use repo::{Commit, Gate, GateMode, Repo, RepoFile};
pub use xet::Cut;
