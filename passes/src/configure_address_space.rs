//! Fills in the address space of each `t3.track_and_trigger` and the arrivals of each `t3.consume`: the chunks, and
//! the block that one trigger moves.
//!
//! Why: the producer's code is not rewritten; its stores gain meaning from a map that says, for each chunk,
//! where they land, what the tracker counts and what the last update sets off (T3 paper, section 4.2).
//!
//! ```text
//! before  t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 (…)
//! after   t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 chunks = […] block = 128 (…)
//! after   t3.consume all_gather on @grid axes = [0] dim = 0 arrivals = […] block = 128 (…)
//! ```
//!
//! Needs: t3 operations of a reduce-scatter, all-gather or all-to-all; dimensions divide by the devices, as their
//! verifier demands (`t3-split-all-reduce` declines others by `indivisible`). Guarantees: maps that satisfy the
//! schedule crate's invariants on any number of devices. The arithmetic is that crate's. An op that is configured
//! already stays as it is.
//!
//! `algorithm=ring` (the default) passes chunks from neighbour to neighbour; `direct` stores each chunk at its owner,
//! which adds the contributions in ring order, for machines whose devices are all connected. An all-to-all is
//! always direct.

use melior::ir::{BlockLike, ValueLike, attribute::ArrayAttribute};
use t3c_ir::{
    Op, TensorType,
    attributes::integer_attr,
    ffi,
    views::{Consume, TrackAndTrigger},
    walk::walk,
};
use t3c_schedule::{Algorithm, configure_address_space, configure_arrivals};

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
    /// How chunks travel.
    pub algorithm: Algorithm,
}

impl Pass for ConfigureAddressSpace {
    const NAME: &'static str = "t3-configure-address-space";
    const SUMMARY: &'static str =
        "Fill in chunks, thresholds, triggers, arrivals and blocks of each fused op";
    const OPTIONS: &'static [&'static str] = &[
        "tile=128: rows or columns of a product's tile",
        "blocks=8: blocks of a chunk, at most",
        "algorithm=ring: ring, from neighbour to neighbour, or direct, straight to the owner",
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self { tile: TILE, blocks: BLOCKS, algorithm: Algorithm::Ring };
        for (key, value) in options::parse(Self::NAME, text, &["tile", "blocks", "algorithm"])? {
            match key {
                "tile" => pass.tile = options::positive(Self::NAME, key, value)?,
                "blocks" => pass.blocks = options::positive(Self::NAME, key, value)?,
                _ => pass.algorithm = algorithm(value)?,
            }
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        for op in walk(module) {
            if let Some(fused) = TrackAndTrigger::cast(op).filter(|fused| fused.chunks().is_none()) {
                self.producer(module, fused, cx)?;
            }
            if let Some(consume) = Consume::cast(op).filter(|consume| consume.arrivals().is_none()) {
                self.readers(module, consume, cx)?;
            }
        }
        Ok(())
    }
}

fn algorithm(value: &str) -> Result<Algorithm, PassError> {
    match value {
        "ring" => Ok(Algorithm::Ring),
        "direct" => Ok(Algorithm::Direct),
        _ => Err(PassError::Option {
            pass: ConfigureAddressSpace::NAME,
            option: format!("algorithm={value}"),
            expected: "ring or direct".to_owned(),
        }),
    }
}

impl ConfigureAddressSpace {
    fn producer<'c, 'a>(
        &self,
        module: Op<'c, 'a>,
        fused: TrackAndTrigger<'c, 'a>,
        cx: &PassContext,
    ) -> Result<(), PassError> {
        let (op, kind) = (fused.0, fused.collective());
        let group = Group::new(module, op, fused.grid(), fused.axes())?;
        let no_space = || PassError::at(op, format!("no address space performs {kind} chunk by chunk"));
        let chunks = configure_address_space(kind, self.algorithm, group.devices).ok_or_else(no_space)?;
        let partial =
            fused.contribution().ok_or_else(|| PassError::at(op, "expected a yielded contribution"))?;
        let extent = TensorType::of(partial)?.shape[fused.dimension()];
        let context = ffi::context_of(op);
        let chunks: Vec<_> = chunks.iter().map(|chunk| ffi::chunk_attribute(context, chunk)).collect();
        ffi::set_attribute(op, "chunks", ArrayAttribute::new(context, &chunks).into());
        self.block(op, extent, &group, "chunks", cx);
        Ok(())
    }

    fn readers<'c, 'a>(
        &self,
        module: Op<'c, 'a>,
        consume: Consume<'c, 'a>,
        cx: &PassContext,
    ) -> Result<(), PassError> {
        let (op, kind) = (consume.0, consume.collective());
        let group = Group::new(module, op, consume.grid(), consume.axes())?;
        let no_arrivals = || PassError::at(op, format!("the parts of {kind} do not arrive one by one"));
        let arrivals = configure_arrivals(kind, self.algorithm, group.devices).ok_or_else(no_arrivals)?;
        let body = consume.body().ok_or_else(|| PassError::at(op, "expected a region"))?;
        let whole = TensorType::from_mlir(body.argument(0)?.r#type())?;
        let context = ffi::context_of(op);
        let arrivals: Vec<_> =
            arrivals.iter().map(|arrival| ffi::arrival_attribute(context, arrival)).collect();
        ffi::set_attribute(op, "arrivals", ArrayAttribute::new(context, &arrivals).into());
        self.block(op, whole.shape[consume.part_dimension()], &group, "parts", cx);
        Ok(())
    }

    /// Sets the block, for chunks along a dimension of `extent` indices.
    fn block(&self, op: Op<'_, '_>, extent: u64, group: &Group, what: &str, cx: &PassContext) {
        let chunk = extent / u64::from(group.devices);
        let block = block_extent(chunk, self.tile, self.blocks);
        ffi::set_attribute(op, "block", integer_attr(ffi::context_of(op), block as i64));
        let message = format!("{} {what} of {chunk}, blocks of {block}", group.devices);
        let numbers = vec![("chunk", chunk as f64), ("block", block as f64)];
        cx.remark(op, Kind::Analysis, "address-space", message, 1, numbers, None);
    }
}

/// How many indices of a chunk of `chunk` indices one trigger moves: at least a tile, at most `blocks` blocks
/// a chunk, all of one size but the last, which may be shorter.
pub fn block_extent(chunk: u64, tile: u64, blocks: u64) -> u64 {
    let count = (chunk / tile.max(1)).clamp(1, blocks.max(1));
    chunk.div_ceil(count).max(1)
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
