//! Fills in the address space of each `t3.track_and_trigger`: its chunks, and the block that one trigger moves.
//!
//! Why: the producer's code is not rewritten; its stores gain meaning from a map that says, for each chunk,
//! where they land, what the tracker counts and what the last update sets off (T3 paper, section 4.2).
//!
//! ```text
//! before  t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 (…)
//! after   t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 chunks = […] block = 128 (…)
//! ```
//!
//! The arithmetic is the schedule crate's. An op that is configured already stays as it is.

use melior::ir::attribute::ArrayAttribute;
use t3c_ir::{Op, TensorType, attributes::integer_attr, ffi, views::TrackAndTrigger, walk::walk};
use t3c_schedule::{CollectiveKind, configure_ring_reduce_scatter};

use crate::{
    group::Group,
    options,
    pass::{Pass, PassContext, PassError},
    remark::Kind,
};

/// Rows or columns of a product's tile: the usual one of large products.
pub const TILE: u64 = 128;
/// Blocks of a chunk, at most: enough to overlap transfers with production, few enough to keep triggers rare.
pub const BLOCKS: u64 = 8;

/// The pass.
#[derive(Clone, Debug)]
pub struct ConfigureAddressSpace {
    /// Indices along the scattered dimension that a tile of the product covers.
    pub tile: u64,
    /// Blocks of a chunk, at most.
    pub blocks: u64,
}

impl Pass for ConfigureAddressSpace {
    const NAME: &'static str = "t3-configure-address-space";
    const SUMMARY: &'static str = "Fill in chunks, thresholds, triggers and blocks of each fused op";
    const OPTIONS: &'static [&'static str] =
        &["tile=128: rows or columns of a product's tile", "blocks=8: blocks of a chunk, at most"];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self { tile: TILE, blocks: BLOCKS };
        for (key, value) in options::parse(Self::NAME, text, &["tile", "blocks"])? {
            let number = options::positive(Self::NAME, key, value)?;
            if key == "tile" { pass.tile = number } else { pass.blocks = number }
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        let unconfigured = walk(module).into_iter().filter_map(TrackAndTrigger::cast);
        for fused in unconfigured.filter(|fused| fused.chunks().is_none()) {
            if fused.collective() != CollectiveKind::ReduceScatter {
                let message = "expected reduce_scatter: no other collective has an address space yet";
                return Err(PassError::at(fused.0, message));
            }
            let group = Group::new(module, fused.0, fused.grid(), fused.axes())?;
            let partial = fused
                .contribution()
                .ok_or_else(|| PassError::at(fused.0, "expected a yielded contribution"))?;
            let chunk = TensorType::of(partial)?.shape[fused.dimension()] / u64::from(group.devices);
            let block = block_extent(chunk, self.tile, self.blocks);
            configure(fused.0, group.devices, block);
            let message = format!("{} chunks of {chunk}, blocks of {block}", group.devices);
            let numbers = vec![("chunk", chunk as f64), ("block", block as f64)];
            cx.remark(fused.0, Kind::Analysis, "address-space", message, 1, numbers, None);
        }
        Ok(())
    }
}

/// How many indices of a chunk of `chunk` indices one trigger moves: at least a tile, at most `blocks` blocks
/// a chunk, all of one size but the last, which may be shorter.
pub fn block_extent(chunk: u64, tile: u64, blocks: u64) -> u64 {
    let count = (chunk / tile.max(1)).clamp(1, blocks.max(1));
    chunk.div_ceil(count).max(1)
}

fn configure(fused: Op<'_, '_>, devices: u32, block: u64) {
    let context = ffi::context_of(fused);
    let chunks: Vec<_> = configure_ring_reduce_scatter(devices)
        .iter()
        .map(|chunk| ffi::chunk_attribute(context, chunk))
        .collect();
    ffi::set_attribute(fused, "chunks", ArrayAttribute::new(context, &chunks).into());
    ffi::set_attribute(fused, "block", integer_attr(context, block as i64));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_at_least_a_tile_and_at_most_the_chunk() {
        assert_eq!(block_extent(1024, 128, 8), 128);
        assert_eq!(block_extent(8192, 128, 8), 1024);
        assert_eq!(block_extent(300, 128, 8), 150);
        assert_eq!(block_extent(2, 128, 8), 2);
        assert_eq!(block_extent(0, 128, 8), 1);
    }

    proptest! {
        #[test]
        fn blocks_cover_the_chunk(chunk in 1u64..100_000, tile in 1u64..500, blocks in 1u64..20) {
            let block = block_extent(chunk, tile, blocks);
            prop_assert!(block >= 1 && block <= chunk);
            prop_assert!(chunk.div_ceil(block) <= blocks);
            prop_assert!(block >= tile.min(chunk));
        }
    }
}
