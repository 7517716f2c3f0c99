//! How a dimension of a dense tensor is cut into chunks and blocks: plain index arithmetic.
//!
//! A tensor with shape `[.., extent, ..]` is seen as `outer × extent × inner`. A piece along the
//! extent is `outer` rows of `length × inner` contiguous elements; with `outer = 1` (the first dimension
//! is cut) it is one contiguous run.

use std::ops::Range;

use t3c_schedule::chunks::chunk_range;

/// A dense tensor seen around the dimension that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Product of the extents before the dimension.
    pub outer: usize,
    /// The dimension's extent.
    pub extent: usize,
    /// Product of the extents after it.
    pub inner: usize,
}

impl Cut {
    /// `shape` around `dimension`; `None` when there is no such dimension or the size overflows.
    pub fn of(shape: &[u64], dimension: usize) -> Option<Cut> {
        let product = |extents: &[u64]| {
            extents.iter().try_fold(1_usize, |size, &extent| size.checked_mul(usize::try_from(extent).ok()?))
        };
        let extent = usize::try_from(*shape.get(dimension)?).ok()?;
        let cut =
            Cut { outer: product(&shape[..dimension])?, extent, inner: product(&shape[dimension + 1..])? };
        product(shape).and_then(|size| size.checked_mul(size_of::<f64>())).map(|_| cut)
    }

    /// Elements of the whole tensor.
    pub fn elements(&self) -> usize {
        self.outer * self.extent * self.inner
    }

    /// Elements of a piece with `length` indices along the dimension.
    pub fn elements_of(&self, length: usize) -> usize {
        self.outer * length * self.inner
    }

    /// The indices of `chunk` when `devices` share the dimension.
    pub fn chunk(&self, devices: u32, chunk: u32) -> Range<usize> {
        let range = chunk_range(self.extent as u64, devices, chunk);
        range.start as usize..range.end as usize
    }

    /// The elements of row `outer` of the piece `range`, as a range of the whole tensor.
    pub fn row(&self, outer: usize, range: &Range<usize>) -> Range<usize> {
        let start = outer * self.extent;
        (start + range.start) * self.inner..(start + range.end) * self.inner
    }
}

/// How many blocks of `block` indices cover `length`.
pub fn block_count(length: usize, block: usize) -> usize {
    length.div_ceil(block)
}

/// The indices of `index`-th block within a chunk of `length` indices.
pub fn block_range(length: usize, block: usize, index: usize) -> Range<usize> {
    (index * block).min(length)..((index + 1) * block).min(length)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_cut_names_rows_of_the_whole_tensor() {
        let cut = Cut::of(&[2, 5, 3], 1).unwrap();
        assert_eq!(cut, Cut { outer: 2, extent: 5, inner: 3 });
        assert_eq!(cut.chunk(2, 1), 3..5);
        assert_eq!(cut.row(1, &(3..5)), 24..30);
        assert_eq!(Cut::of(&[2], 1), None);
        assert_eq!(Cut::of(&[u64::MAX, 2], 0), None);
    }

    #[test]
    fn blocks_cover_a_chunk() {
        assert_eq!(block_count(7, 3), 3);
        assert_eq!(block_range(7, 3, 2), 6..7);
        assert_eq!(block_count(0, 3), 0);
    }
}
