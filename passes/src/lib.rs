//! The passes, their registry and the named pipelines.

pub mod shard;
