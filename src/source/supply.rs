//! Sources whose files come and go: each is brought before it is read, and released afterwards.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crate::error::Result;

/// Brings the files of a source one after the other and lets go of them.
///
/// File numbers are those of [`super::Source::files`].
pub trait Supply: Sync {
    /// Most bytes of brought files that may be present at once.
    fn limit_bytes(&self) -> u64;

    /// Bytes of the limit that a file takes while it is present; 0 for one that needs no room of ours.
    fn room_bytes(&self, file: usize) -> u64;

    /// Whether the file is to be brought once though no job needs it any more: it is to stay on this machine, and an
    /// earlier run whose jobs have read it has lost it or was not asked to keep it.
    fn is_owed(&self, file: usize) -> bool;

    /// Brings a file whole and verified; from then on it can be read. `on_bytes` is told what came.
    ///
    /// # Errors
    /// When it cannot be had, and [`crate::Error::Interrupted`] once `stop` is set.
    fn bring(&self, file: usize, stop: &AtomicBool, on_bytes: &(dyn Fn(u64) + Sync)) -> Result<()>;

    /// Whether these bytes were kept, now or by an earlier run.
    fn is_kept(&self, file: usize, range: &Range<u64>) -> bool;

    /// Keeps a small range of a brought file readable after its release, across runs.
    ///
    /// # Errors
    /// When it cannot be read or written.
    fn keep(&self, file: usize, range: Range<u64>) -> Result<()>;

    /// Nothing needs the file any more.
    ///
    /// # Errors
    /// When it cannot be removed, or moved to where it is to stay.
    fn release(&self, file: usize) -> Result<()>;

    /// The result is final: removes what was kept for later runs.
    ///
    /// # Errors
    /// When something cannot be removed.
    fn finish(&self) -> Result<()>;
}
