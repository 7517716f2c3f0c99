//! Who owns which cache block: counts of references, tables, copy on write.

use thiserror::Error;

use super::{BLOCK, SCRATCH};

/// All cache blocks are in use.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("all {blocks} cache blocks are in use")]
pub struct OutOfBlocks {
    /// How many there are.
    pub blocks: usize,
}

/// Which blocks hold a sequence, in order of position.
///
/// Made and dropped only through a [`BlockAllocator`], which counts the references.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<u32>,
    length: usize,
}

impl BlockTable {
    /// The block of each 16 positions.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Positions written, or about to be.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// Counts the tables that refer to each block.
#[derive(Clone, Debug)]
pub struct BlockAllocator {
    references: Vec<u32>,
    free: Vec<u32>,
}

impl BlockAllocator {
    /// An allocator over `blocks` blocks, the first of which is the scratch block.
    pub fn new(blocks: usize) -> Self {
        let mut references = vec![0; blocks];
        if let Some(scratch) = references.get_mut(SCRATCH as usize) {
            *scratch = 1;
        }
        Self { references, free: (1..blocks as u32).rev().collect() }
    }

    /// Blocks that some table refers to.
    pub fn in_use(&self) -> usize {
        self.references.len().saturating_sub(1) - self.free.len()
    }

    /// Makes the next position of `table` writable and returns it. A block that others share is
    /// replaced: the pair (shared, own) is added to `copies`, to be carried out before the write.
    pub fn append(
        &mut self,
        table: &mut BlockTable,
        copies: &mut Vec<(u32, u32)>,
    ) -> Result<usize, OutOfBlocks> {
        let position = table.length;
        let index = position / BLOCK;
        if index == table.blocks.len() {
            let block = self.take()?;
            table.blocks.push(block);
        } else {
            let shared = table.blocks[index];
            if self.references[shared as usize] > 1 {
                let own = self.take()?;
                self.references[shared as usize] -= 1;
                table.blocks[index] = own;
                copies.push((shared, own));
            }
        }
        table.length += 1;
        Ok(position)
    }

    /// A second table of the same sequence. Nothing is copied.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        for block in &table.blocks {
            self.references[*block as usize] += 1;
        }
        BlockTable { blocks: table.blocks.clone(), length: table.length }
    }

    /// Gives up a table; blocks that no other refers to become free.
    pub fn release(&mut self, table: BlockTable) {
        for block in table.blocks {
            let references = &mut self.references[block as usize];
            *references -= 1;
            if *references == 0 {
                self.free.push(block);
            }
        }
    }

    fn take(&mut self) -> Result<u32, OutOfBlocks> {
        let block = self.free.pop().ok_or(OutOfBlocks { blocks: self.references.len() })?;
        self.references[block as usize] = 1;
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(allocator: &mut BlockAllocator, table: &mut BlockTable, count: usize) -> Vec<(u32, u32)> {
        let mut copies = Vec::new();
        for _ in 0..count {
            allocator.append(table, &mut copies).unwrap();
        }
        copies
    }

    #[test]
    fn forks_share_full_blocks_and_copy_the_partial_one() {
        let mut allocator = BlockAllocator::new(10);
        let mut prompt = BlockTable::default();
        assert_eq!(write(&mut allocator, &mut prompt, 20), []);
        let mut fork = allocator.fork(&prompt);
        assert_eq!(allocator.in_use(), 2);
        let (first, second) = (prompt.blocks()[0], prompt.blocks()[1]);
        assert_eq!(write(&mut allocator, &mut fork, 1), [(second, fork.blocks()[1])]);
        assert_eq!(fork.blocks()[0], first);
        // The last reader of a block writes in place.
        assert_eq!(write(&mut allocator, &mut prompt, 1), []);
        allocator.release(prompt);
        allocator.release(fork);
        assert_eq!(allocator.in_use(), 0);
    }

    #[test]
    fn running_out_is_an_error() {
        let mut allocator = BlockAllocator::new(2);
        let (mut table, mut copies) = (BlockTable::default(), Vec::new());
        for _ in 0..BLOCK {
            allocator.append(&mut table, &mut copies).unwrap();
        }
        assert_eq!(allocator.append(&mut table, &mut copies), Err(OutOfBlocks { blocks: 2 }));
    }

    proptest! {
        /// Against plain vectors: whatever is forked, written and released, each table reads back
        /// its own sequence, and no block is lost.
        #[test]
        fn tables_read_what_they_wrote(actions in prop::collection::vec((0u8..4, 0usize..8), 1..200)) {
            let mut allocator = BlockAllocator::new(400);
            let mut cache = vec![[0u64; BLOCK]; 400];
            let mut live: Vec<(BlockTable, Vec<u64>)> = vec![(BlockTable::default(), vec![])];
            let mut copies = Vec::new();
            for (time, (action, which)) in actions.into_iter().enumerate() {
                let which = which % live.len();
                match action {
                    0 | 1 => {
                        for part in 0..7 {
                            let (table, expected) = &mut live[which];
                            copies.clear();
                            let position = allocator.append(table, &mut copies).unwrap();
                            for (from, to) in &copies {
                                cache[*to as usize] = cache[*from as usize];
                            }
                            let value = (time * 10 + part) as u64;
                            let block = table.blocks()[position / BLOCK];
                            cache[block as usize][position % BLOCK] = value;
                            expected.push(value);
                        }
                    }
                    2 if live.len() < 8 => {
                        let fork = (allocator.fork(&live[which].0), live[which].1.clone());
                        live.push(fork);
                    }
                    _ if live.len() > 1 => allocator.release(live.swap_remove(which).0),
                    _ => {}
                }
                for (table, expected) in &live {
                    for (position, value) in expected.iter().enumerate() {
                        let block = table.blocks()[position / BLOCK] as usize;
                        prop_assert_eq!(cache[block][position % BLOCK], *value);
                    }
                }
            }
            for (table, _) in live {
                allocator.release(table);
            }
            prop_assert_eq!(allocator.in_use(), 0);
        }
    }
}
