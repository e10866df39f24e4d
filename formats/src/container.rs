//! File formats: headers, metadata and tensor tables, read with suspicion.
