//! Codecs and containers for quantized model weights.
//!
//! Pure code: no network, no threads, no printing. Rooms, lowest floor first:
//!
//! - [`error`], [`dtype`]: what everything else speaks of.
//! - [`rounding`]: `f32` to integers and 16-bit floats, as the reference rounds.
//! - [`dispatch`]: the one place that selects a CPU feature set at run time.
//! - [`sha256`]: digests of one message or two at once.
//! - [`codec`]: one file per block format, and [`codec::CODECS`], the registry.
//! - [`layout`]: how a codec's byte streams become the tensors of a container.
//! - [`container`]: file formats: headers, metadata, tensor tables.

pub mod codec;
pub mod container;
pub mod dispatch;
pub mod dtype;
pub mod error;
pub mod layout;
pub mod rounding;
pub mod sha256;

pub use codec::{CODECS, Codec, Part};
pub use dtype::Dtype;
pub use error::{FormatError, Result};
pub use sha256::Sha256;
