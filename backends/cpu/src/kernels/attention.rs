//! Attention.
/// Largest head size.
pub const MAX_HEAD_DIM: usize = 512;
