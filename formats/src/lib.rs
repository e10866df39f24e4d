//! Codecs and containers for quantized model weights.
//!
//! Pure code: no network, no threads, no printing. Rooms, lowest floor first:
//!
//! - [`error`], [`dtype`]: what everything else speaks of.
//! - [`rounding`]: `f32` to integers and 16-bit floats, as the reference rounds.
//! - [`dispatch`]: the one place that selects a CPU feature set at run time.
//! - [`sha256`]: digests of one message or two at once.
//! - [`codec`]: one file per block format, and [`codec::CODECS`], the registry.
//! - [`feedback`]: rounding that makes up for what earlier columns have lost, inside any format.
//! - [`layout`]: how a codec's byte streams become the tensors of a container.
//! - [`container`]: file formats: headers, metadata, tensor tables.
//!
//! A codec turns rows of `f32` into bytes and back:
//!
//! ```
//! use requant_formats::codec;
//!
//! let q4_0 = codec::find("Q4_0").ok_or("no such codec")?;
//! let weights: Vec<f32> = (0..64).map(|i| (i as f32 * 0.1).sin()).collect();
//! // Two blocks of 32 weights: a half as the scale, and 32 codes of 4 bits.
//! let mut blocks = vec![0; 2 * 18];
//! q4_0.encode(&weights, &mut [&mut blocks]);
//! let mut decoded = vec![0.0; 64];
//! q4_0.decode(&[&blocks], &mut decoded);
//! assert!(weights.iter().zip(&decoded).all(|(weight, back)| (weight - back).abs() < 0.08));
//! # Ok::<(), &str>(())
//! ```

pub mod codec;
pub mod container;
pub mod dispatch;
pub mod dtype;
pub mod error;
pub mod feedback;
pub mod layout;
pub mod rounding;
pub mod sha256;

pub use codec::{CODECS, Codec, Ladder, Part, Scales, TwoLevels, Units};
pub use dtype::Dtype;
pub use error::{FormatError, Result};
pub use sha256::Sha256;
