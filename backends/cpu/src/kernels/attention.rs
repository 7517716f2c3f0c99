//! Attention over packed trees and over paged caches: shapes, checks, and which rows a token sees.
//!
//! Token tensors are flat: q and out `[N, K, G, Dh]`, k and v `[N, K, Dh]`, with K key-value heads
//! of G query heads each. Token j is visible to token i iff `j ≤ i < subtree_end[j]`, in
//! depth-first preorder: a causal sequence, a batch of sequences and a rollout tree alike.

use super::Error;

/// Largest head size.
pub const MAX_HEAD_DIM: usize = 512;
/// Positions in one block of a cache.
pub const CACHE_BLOCK: usize = 16;

/// What attention kernels are generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heads {
    /// Floats of a head.
    pub dim: usize,
    /// Whether scores are capped.
    pub capped: bool,
}

/// How scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Multiplies q · k.
    pub scale: f32,
    /// Bends a scaled score s to `cap · tanh(s / cap)`.
    pub cap: Option<f32>,
    /// A token sees positions less than so many before its own.
    pub window: Option<u64>,
}

impl Scores {
    /// Scaled only.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, cap: None, window: None }
    }
}

/// Extents of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// N: tokens, or S: rows of a decode step.
    pub tokens: usize,
    /// K: key-value heads.
    pub kv_heads: usize,
    /// G: query heads of a key-value head.
    pub group: usize,
    /// Dh: floats of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Floats from a token to the next in k and v.
    pub fn kv_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Floats from a token to the next in q and out.
    pub fn q_stride(&self) -> usize {
        self.kv_stride() * self.group
    }

    /// Checks that `subtree_end` is a packed tree of this many tokens: each subtree ends behind its
    /// root, and no later than the subtree that it lies in.
    ///
    /// # Errors
    /// The first token whose subtree does not.
    pub fn check_tree(&self, subtree_end: &[i32]) -> Result<(), TreeError> {
        let tokens = self.tokens;
        if subtree_end.len() != tokens || i32::try_from(tokens).is_err() {
            return Err(TreeError::Length { tokens, entries: subtree_end.len() });
        }
        let mut enclosing = vec![tokens];
        for (token, &end) in subtree_end.iter().enumerate() {
            while enclosing.last().is_some_and(|&last| last <= token) {
                enclosing.pop();
            }
            let most = enclosing.last().copied().unwrap_or(tokens);
            let fits = usize::try_from(end).ok().filter(|&end| token < end && end <= most);
            let Some(fits) = fits else {
                return Err(TreeError::Subtree { token, end, most });
            };
            enclosing.push(fits);
        }
        Ok(())
    }

    /// Checks that positions grow along every path of a packed tree, which a window relies on.
    ///
    /// # Errors
    /// The first token that is not after its parent.
    pub fn check_positions(&self, subtree_end: &[i32], position: &[i32]) -> Result<(), TreeError> {
        if position.len() != self.tokens {
            return Err(TreeError::Length { tokens: self.tokens, entries: position.len() });
        }
        let mut path: Vec<usize> = Vec::new();
        for token in 0..self.tokens {
            while path.last().is_some_and(|&last| subtree_end[last] as usize <= token) {
                path.pop();
            }
            if path.last().is_some_and(|&parent| position[parent] >= position[token]) {
                return Err(TreeError::Position { token, position: position[token] });
            }
            path.push(token);
        }
        Ok(())
    }

    /// Floats of scratch memory for the backward kernel.
    pub fn backward_scratch_len(&self) -> usize {
        3 * self.tokens.next_multiple_of(super::emit::attention::BLOCK)
    }
}

/// Why `subtree_end` is not a packed tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not an entry a token.
    #[error("{tokens} tokens need as many subtree ends, got {entries}")]
    Length {
        /// Tokens.
        tokens: usize,
        /// Entries of `subtree_end`.
        entries: usize,
    },
    /// A token is not after its parent.
    #[error("token {token} is at position {position}, not after its parent")]
    Position {
        /// The token.
        token: usize,
        /// Its position.
        position: i32,
    },
    /// A subtree ends before its root or after the one around it.
    #[error("the subtree of token {token} ends at {end}, not after {token} and by {most}")]
    Subtree {
        /// The subtree's root.
        token: usize,
        /// Its entry.
        end: i32,
        /// The end of the subtree around it.
        most: usize,
    },
}

/// The cache of a decode step: `[blocks, 16, K, Dh]`, found through `[S, table_width]` block numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Blocks in the cache.
    pub blocks: usize,
    /// Blocks a row of the table lists.
    pub table_width: usize,
}

impl CacheShape {
    /// Checks what the paged kernels rely on: every position has a place in its row's blocks, and
    /// every block listed up to there exists.
    ///
    /// # Errors
    /// The first row that breaks it.
    pub fn check(
        &self,
        shape: &AttentionShape,
        block_table: &[i32],
        position: &[i32],
    ) -> Result<(), CacheError> {
        let (rows, width) = (shape.tokens, self.table_width);
        if position.len() != rows || Some(block_table.len()) != rows.checked_mul(width) {
            return Err(CacheError::Length { rows, table: block_table.len(), positions: position.len() });
        }
        if self.blocks > i32::MAX as usize / CACHE_BLOCK {
            return Err(CacheError::TooManyBlocks(self.blocks));
        }
        for (row, &at) in position.iter().enumerate() {
            let used = usize::try_from(at).ok().map(|at| at / CACHE_BLOCK + 1);
            let Some(used) = used.filter(|&used| used <= width) else {
                return Err(CacheError::Position { row, position: at, most: width * CACHE_BLOCK });
            };
            let listed = &block_table[row * width..row * width + used];
            let exists = |block: i32| usize::try_from(block).is_ok_and(|block| block < self.blocks);
            if let Some(&block) = listed.iter().find(|&&block| !exists(block)) {
                return Err(CacheError::Block { row, block, blocks: self.blocks });
            }
        }
        Ok(())
    }
}

/// Why a decode step's tables do not fit its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The arrays do not have the lengths of the shape.
    #[error("{rows} rows need as many positions and lists of blocks, got {positions} and {table} entries")]
    Length {
        /// Rows of the step.
        rows: usize,
        /// Entries of the block table.
        table: usize,
        /// Entries of the positions.
        positions: usize,
    },
    /// Places of the cache are counted in `i32`.
    #[error("a cache of {0} blocks is larger than places can count")]
    TooManyBlocks(usize),
    /// A position lies outside the blocks that its row may list.
    #[error("row {row} is at position {position}, not in 0..{most}")]
    Position {
        /// The row.
        row: usize,
        /// Its position.
        position: i32,
        /// Positions that the table has room for.
        most: usize,
    },
    /// A listed block does not exist.
    #[error("row {row} lists block {block} of a cache of {blocks}")]
    Block {
        /// The row.
        row: usize,
        /// The block.
        block: i32,
        /// Blocks of the cache.
        blocks: usize,
    },
}

/// The ancestors-or-self of each token of a packed tree in turn, in depth order.
///
/// A stack: going to the next token leaves the subtrees that end before it.
pub struct Ancestors<'a> {
    subtree_end: &'a [i32],
    stack: &'a mut [i32],
    depth: usize,
    next: usize,
}

impl<'a> Ancestors<'a> {
    /// Starts before the first token. `stack` has room for a token each.
    pub fn new(subtree_end: &'a [i32], stack: &'a mut [i32]) -> Self {
        Ancestors { subtree_end, stack, depth: 0, next: 0 }
    }

    /// The rows that the next token sees, itself last; `None` after the last token, or where the
    /// stack is too short.
    pub fn advance(&mut self) -> Option<&[i32]> {
        let token = self.next;
        self.subtree_end.get(token)?;
        let here = i32::try_from(token).ok()?;
        while self.depth > 0 && self.subtree_end[self.stack[self.depth - 1] as usize] <= here {
            self.depth -= 1;
        }
        *self.stack.get_mut(self.depth)? = here;
        self.depth += 1;
        self.next += 1;
        Some(&self.stack[..self.depth])
    }
}

/// Whether the kernels take heads of `dim` floats.
pub(super) fn check_head_dim(dim: usize) -> Result<(), Error> {
    if (1..=MAX_HEAD_DIM).contains(&dim) { Ok(()) } else { Err(Error::HeadDim(dim)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_follow_the_tree() {
        // 0 ─ 1 ─ 2        a second tree: 5 ─ 6
        //     └── 3 ─ 4
        let subtree_end = [5, 5, 3, 5, 5, 7, 7];
        let mut stack = [0; 7];
        let mut ancestors = Ancestors::new(&subtree_end, &mut stack);
        let expected: [&[i32]; 7] = [&[0], &[0, 1], &[0, 1, 2], &[0, 1, 3], &[0, 1, 3, 4], &[5], &[5, 6]];
        for rows in expected {
            assert_eq!(ancestors.advance(), Some(rows));
        }
        assert_eq!(ancestors.advance(), None);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let check = |subtree_end: &[i32], tokens| {
            AttentionShape { tokens, kv_heads: 1, group: 1, head_dim: 4 }.check_tree(subtree_end)
        };
        assert_eq!(check(&[5, 5, 3, 5, 5, 7, 7], 7), Ok(()));
        assert_eq!(check(&[], 0), Ok(()));
        assert_eq!(check(&[1], 2), Err(TreeError::Length { tokens: 2, entries: 1 }));
        let subtree = |token, end, most| Err(TreeError::Subtree { token, end, most });
        assert_eq!(check(&[2, 3, 3], 3), subtree(1, 3, 2), "crosses the subtree around it");
        assert_eq!(check(&[0, 2], 2), subtree(0, 0, 2), "does not hold itself");
        assert_eq!(check(&[1, -4], 2), subtree(1, -4, 2));
        assert_eq!(check(&[3, 2], 2), subtree(0, 3, 2));
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let shape = AttentionShape { tokens: 1, kv_heads: 1, group: 1, head_dim: 4 };
        let cache = CacheShape { blocks: 3, table_width: 2 };
        assert_eq!(cache.check(&shape, &[2, 0], &[31]), Ok(()));
        // Blocks beyond the position are not looked at.
        assert_eq!(cache.check(&shape, &[2, -1], &[15]), Ok(()));
        let refused = |table: &[i32], position: &[i32]| cache.check(&shape, table, position).is_err();
        assert!(refused(&[2, 0], &[32]) && refused(&[2, 0], &[-1]));
        assert!(refused(&[3, 0], &[0]) && refused(&[-1, 0], &[0]));
        assert!(refused(&[0], &[0]) && refused(&[0, 0], &[]));
    }
}
