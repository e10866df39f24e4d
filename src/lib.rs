//! requant
