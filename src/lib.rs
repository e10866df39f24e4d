//! `requant`: one streaming pass from a huge FP8 checkpoint to a 4-bit model that can be trusted.
//!
//! Rooms, lowest floor first (a module imports strictly lower floors only):
//!
//! | floor | rooms |
//! |---|---|
//! | S0 | [`error`], [`disk`], [`small`], `fingerprint`, `frontier`, `human`, `inside`, `lock`, `shell` |
//! | S1 | [`source`], [`family`], [`tokenizer`] |
//! | S2 | [`checkpoint`], [`artifact`], [`imatrix`] |
//! | S3 | [`opened`] |
//! | S4 | [`plan`] |
//! | S5 | `pipeline`, [`model`] |
//! | S6 | [`calibration`], [`evaluate`], [`fetch`], [`checksums`], `contents` |
//! | S7 | [`sensitivity`], `card`, `html_report` |
//! | S8 | `cli` |

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod artifact;
pub mod calibration;
mod card;
pub mod checkpoint;
pub mod checksums;

pub mod cli;
mod contents;
pub mod disk;
pub mod error;
pub mod evaluate;
pub mod family;
pub mod fetch;
mod fingerprint;
mod frontier;
#[doc(hidden)]
pub mod fuzzing;
mod html_report;
mod human;
pub mod imatrix;
mod inside;
mod lock;
pub mod model;
pub mod opened;
pub mod pipeline;
pub mod plan;
pub mod sensitivity;
mod shell;
pub mod small;
pub mod source;
pub mod tokenizer;

pub use error::{Error, Result};
