//! The `requant` command.
fn main() {}
