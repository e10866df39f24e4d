//! File formats: headers, metadata and tensor tables, read with suspicion.
//!
//! A container knows names, shapes, types and offsets; it never touches tensor bytes.
//! Readers take any [`std::io::Read`] and the length of the whole file, so that every
//! offset can be compared with what is really there. Writers return the header's bytes
//! together with the offset of each tensor; who writes the tensors needs nothing else.

pub mod gguf;
pub mod safetensors;
