//! `requant`: one streaming pass from a huge FP8 checkpoint to a 4-bit model that can be trusted.
//!
//! Rooms, lowest floor first (a module imports strictly lower floors only):
//!
//! | floor | rooms |
//! |---|---|
//! | S0 | [`error`], [`disk`], [`small`], `fingerprint`, `frontier`, `human`, `inside`, `lock` |
//! | S1 | [`source`], [`arch`], [`tokenizer`] |
//! | S2 | [`checkpoint`] |
//! | S3 | [`plan`], [`weights`] |
//! | S4 | `pipeline`, [`model`] |
//! | S5 | [`evaluate`], [`fetch`], [`checksums`] |
//! | S6 | `cli` |

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod arch;
pub mod artifact;
pub mod checkpoint;
pub mod checksums;

pub mod cli;
pub mod disk;
pub mod error;
pub mod evaluate;
pub mod fetch;
mod fingerprint;
mod frontier;
#[doc(hidden)]
pub mod fuzzing;
mod human;
mod inside;
mod lock;
pub mod model;
pub mod pipeline;
pub mod plan;

pub mod small;
pub mod source;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
