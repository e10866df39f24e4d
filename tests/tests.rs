//! Integration tests, one binary. What belongs where:
//!
//! - `maker`: makes small checkpoints of any kind, whole or broken. No tests.
//! - `hostile`: one broken checkpoint per error of the catalogue.
//! - `mlx`: the fixture converted to MLX, against mlx-lm's files.

mod hostile;
mod maker;
#[cfg(test)]
mod mlx;
