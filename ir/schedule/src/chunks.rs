//! Chunk ranges: how a dimension is divided among the devices of a group.

use std::ops::Range;

/// The half-open range of `chunk` when `extent` is divided among `devices`.
///
/// Even when `devices` divides `extent`; otherwise the first `extent mod devices` chunks hold one more.
pub fn chunk_range(extent: u64, devices: u32, chunk: u32) -> Range<u64> {
    let (devices, chunk) = (u64::from(devices), u64::from(chunk));
    let (share, rest) = (extent / devices, extent % devices);
    let start = chunk * share + chunk.min(rest);
    start..start + share + u64::from(chunk < rest)
}

/// Whether `devices` equal chunks cover `extent`: what a `shard` collective on static shapes needs.
pub fn divides(extent: u64, devices: u32) -> bool {
    devices != 0 && extent.is_multiple_of(u64::from(devices))
}

/// The blocks of a chunk: `block` indices each, the last one what remains. A tracker fires once a block.
pub fn blocks(range: Range<u64>, block: u64) -> impl Iterator<Item = Range<u64>> {
    let block = block.max(1);
    let count = (range.end - range.start).div_ceil(block);
    (0..count).map(move |index| {
        let start = range.start + index * block;
        start..start.saturating_add(block).min(range.end)
    })
}

/// The outermost dimension that `devices` divides: its shards are contiguous in memory.
pub fn scatter_dimension(shape: &[u64], devices: u32) -> Option<usize> {
    shape.iter().position(|&extent| extent > 0 && divides(extent, devices))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_partition_the_extent() {
        for extent in [0, 1, 7, 12, 97] {
            for devices in 1..9 {
                let mut next = 0;
                for chunk in 0..devices {
                    let range = chunk_range(extent, devices, chunk);
                    assert_eq!(range.start, next);
                    next = range.end;
                }
                assert_eq!(next, extent);
            }
        }
    }

    #[test]
    fn the_outermost_divisible_dimension_is_scattered() {
        assert_eq!(scatter_dimension(&[6, 16], 4), Some(1));
        assert_eq!(scatter_dimension(&[3, 5], 4), None);
    }
}
