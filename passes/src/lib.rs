//! The passes, their registry and the named pipelines.
