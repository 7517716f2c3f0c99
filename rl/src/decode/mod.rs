//! Batched decoding with a paged cache: what a model must offer, and how blocks are shared.
//!
//! A cache block holds the keys and values of [`BLOCK`] positions in every layer. Sequences refer
//! to blocks through tables, so forks share the blocks of their common prefix; a block that others
//! still read is copied before it is written.

mod blocks;
mod sample;

pub use blocks::{BlockAllocator, BlockTable, OutOfBlocks};
pub use sample::Distribution;

use crate::task::Token;

/// Positions in one cache block.
pub const BLOCK: usize = 16;

/// Block 0 belongs to nobody: padding rows write there.
pub const SCRATCH: u32 = 0;

/// The rows of one decode call. Row s writes its key and value at position `position[s]` of its
/// block table and attends over positions 0 to `position[s]` of it. All rows write before any
/// reads, so several rows may be consecutive positions of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodeRows {
    /// The token of each row.
    pub tokens: Vec<Token>,
    /// Its position.
    pub position: Vec<i32>,
    /// `width` block ids a row, row-major; unused entries are [`SCRATCH`].
    pub block_table: Vec<i32>,
    /// Blocks in a row of the table.
    pub width: usize,
}

impl DecodeRows {
    /// No rows, with `width` blocks a row.
    pub fn new(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    /// Number of rows, padding included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.position.clear();
        self.block_table.clear();
    }

    /// Adds a row that writes `position` of a sequence.
    pub fn push(&mut self, token: Token, position: usize, table: &BlockTable) {
        self.tokens.push(token);
        self.position.push(position as i32);
        self.block_table.extend(table.blocks().iter().map(|block| *block as i32));
        self.block_table.resize(self.tokens.len() * self.width, SCRATCH as i32);
    }

    /// Adds padding rows up to `rows`: token 0 at position 0 of the scratch block.
    pub fn pad(&mut self, rows: usize) {
        self.tokens.resize(rows, 0);
        self.position.resize(rows, 0);
        self.block_table.resize(rows * self.width, SCRATCH as i32);
    }
}

/// What decodes: a model with its paged cache.
pub trait Decoder {
    /// How it may fail.
    type Error: std::error::Error + Send + Sync + 'static;

    /// One forward over `rows`. Leaves in `logits` a row of the vocabulary's size for each row, in
    /// order; the buffer is reused between calls.
    fn decode(&mut self, rows: &DecodeRows, logits: &mut Vec<f32>) -> Result<(), Self::Error>;

    /// Copies cache blocks (from, to) in every layer. No block is both a source and a target.
    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), Self::Error>;
}

/// The sizes with which a decoder is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeShape {
    /// Numbers of rows of a call, ascending; a call is padded to the next one.
    pub rows: Vec<usize>,
    /// Cache blocks, the scratch block included.
    pub blocks: usize,
    /// Blocks of the longest sequence.
    pub width: usize,
    /// Sequences that may be live at once.
    pub live: usize,
}

impl DecodeShape {
    /// The shape for `live` sequences of up to `context` positions: enough blocks for all of them
    /// with nothing shared, so that a rollout cannot run out.
    pub fn new(rows: Vec<usize>, live: usize, context: usize) -> Self {
        let width = context.div_ceil(BLOCK);
        Self { rows, blocks: live * width + 1, width, live }
    }

    /// The most rows of a call.
    pub fn most_rows(&self) -> usize {
        self.rows.iter().copied().max().unwrap_or(1)
    }

    /// The padded size for `rows` rows.
    pub fn padded(&self, rows: usize) -> usize {
        self.rows.iter().copied().filter(|size| *size >= rows).min().unwrap_or(rows)
    }
}
