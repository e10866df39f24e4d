//! Fuzz targets: what must hold for any bytes. Each is a function that panics when it does not.
//!
//! Bytes either are refused, or what was read of them can be used as its type promises. Beyond that the fuzzer itself
//! watches for panics, arithmetic that overflows, hangs, and more than 2 GB of memory.

mod files;
mod formats;
mod models;
mod records;

/// A target: its name, which is that of its folder in `seeds/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("safetensors", formats::safetensors),
    ("gguf", formats::gguf),
    ("layout", formats::layout),
    ("split_set", formats::split_set),
    ("config", models::config),
    ("checkpoint", models::checkpoint),
    ("gguf_model", models::gguf_model),
    ("tokenizer", models::tokenizer),
    ("front_matter", records::front_matter),
    ("recipe", records::recipe),
    ("sums", records::sums),
    ("manifest", records::manifest),
    ("journal", records::journal),
    ("kept", records::kept),
    ("listing", records::listing),
    ("imatrix", records::imatrix),
];
