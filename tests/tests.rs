//! Integration tests, one binary. What belongs where:
//!
//! - `maker`: makes small checkpoints of any kind, whole or broken. No tests.
//! - `hostile`: one broken checkpoint per error of the catalogue.

mod hostile;
mod maker;
