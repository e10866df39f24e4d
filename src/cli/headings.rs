//! Headings under which `--help` groups options.

use clap::Arg;

/// Types of tensors, and the size that follows.
pub(super) const TYPES: &str = "Types and size";
/// Better than rounded.
pub(super) const CALIBRATION: &str = "Calibration";
/// What the result is held against.
pub(super) const CHECKS: &str = "Checks";
/// README.md of a result.
pub(super) const CARD: &str = "Model card";
/// Models that are somewhere else.
pub(super) const REMOTE: &str = "Hub and object stores";
/// Work that is dealt out.
pub(super) const SHARES: &str = "Several machines";
/// What a run may use.
pub(super) const RESOURCES: &str = "Threads, memory, disk";

/// `arguments` under `heading`.
pub(super) fn under(
    heading: &'static str,
    arguments: impl IntoIterator<Item = Arg>,
) -> impl Iterator<Item = Arg> {
    arguments.into_iter().map(move |argument| argument.help_heading(heading))
}
