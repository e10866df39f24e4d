//! Speed of every codec.
fn main() {}
