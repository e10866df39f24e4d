//! Tests of this container.
