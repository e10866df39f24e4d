//! Measures of a model's quality on a text.

mod perplexity;
mod windows;

pub use perplexity::{Perplexity, perplexity};
pub use windows::{Bos, Windows};
