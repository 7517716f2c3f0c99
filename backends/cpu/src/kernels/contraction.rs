//! A contraction over any number of dimensions, as offsets into its three operands.
//!
//! `C[batch, m, n] = Σ_k A[batch, m, k] · B[batch, k, n]`, where each of the four letters stands
//! for any number of dimensions, read through strides. The product works on collapsed extents:
//! the dimensions of a letter in row-major order, the last one fastest. A table a letter and
//! operand gives the offset of each collapsed index, and knows where neighbours are adjacent.

use std::ops::Range;

use super::Error;

/// One dimension of a contraction, with its strides in elements.
///
/// The stride of an operand that the dimension's group does not touch (`c` in `k`, `b` in `m`,
/// `a` in `n`) is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim {
    /// How many values the index takes.
    pub extent: usize,
    /// Stride in A.
    pub a: isize,
    /// Stride in B.
    pub b: isize,
    /// Stride in C.
    pub c: isize,
}

/// The four groups of dimensions. Any of them may be empty: its extent is then 1.
///
/// Fastest where the last dimension of `n` has stride 1 in C, and each of A and B has stride 1
/// in the last dimension of one of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contraction {
    /// Dimensions of all three operands.
    pub batch: Vec<Dim>,
    /// Dimensions of A and C: rows.
    pub m: Vec<Dim>,
    /// Dimensions of B and C: columns, along which kernels are vectorised.
    pub n: Vec<Dim>,
    /// Dimensions of A and B, summed in row-major order.
    pub k: Vec<Dim>,
}

impl Contraction {
    /// `C[m, n] = Σ A[m, k] · B[k, n]`, dense and row-major, either input transposed on request.
    pub fn matrix(m: usize, n: usize, k: usize, a_transposed: bool, b_transposed: bool) -> Self {
        let stride = |extent: usize| extent as isize;
        let (a_m, a_k) = if a_transposed { (1, stride(m)) } else { (stride(k), 1) };
        let (b_k, b_n) = if b_transposed { (1, stride(k)) } else { (stride(n), 1) };
        Contraction {
            batch: Vec::new(),
            m: vec![Dim { extent: m, a: a_m, b: 0, c: stride(n) }],
            n: vec![Dim { extent: n, a: 0, b: b_n, c: 1 }],
            k: vec![Dim { extent: k, a: a_k, b: b_k, c: 0 }],
        }
    }
}

/// Offsets of a collapsed index into one operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    offsets: Vec<i64>,
    /// How many of the next offsets, this one included, follow each other by 1.
    runs: Vec<usize>,
}

impl Offsets {
    /// The offsets of `dims`, row-major, by the stride that `stride` picks.
    pub(super) fn new(
        dims: &[Dim],
        what: &'static str,
        stride: impl Fn(&Dim) -> isize,
    ) -> Result<Self, Error> {
        let overflow = || Error::Overflow(what);
        let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(d.extent)).ok_or_else(overflow)?;
        let mut offsets = vec![0i64];
        offsets.try_reserve(count).map_err(|_| overflow())?;
        for dim in dims {
            let steps = (0..dim.extent)
                .map(|i| i64::try_from(i).ok()?.checked_mul(i64::try_from(stride(dim)).ok()?))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(overflow)?;
            offsets = offsets
                .iter()
                .flat_map(|&outer| steps.iter().map(move |&inner| outer.checked_add(inner)))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(overflow)?;
        }
        Ok(Self::of_list(offsets))
    }

    /// Any offsets.
    pub(super) fn of_list(offsets: Vec<i64>) -> Self {
        let mut runs = vec![1; offsets.len()];
        for i in (1..offsets.len()).rev() {
            if offsets[i] == offsets[i - 1] + 1 {
                runs[i - 1] = runs[i] + 1;
            }
        }
        Offsets { offsets, runs }
    }

    /// The collapsed extent.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// The offset of one index.
    pub(super) fn at(&self, index: usize) -> i64 {
        self.offsets[index]
    }

    /// The offsets of a range.
    pub(super) fn slice(&self, range: Range<usize>) -> &[i64] {
        &self.offsets[range]
    }

    /// Whether the offsets of `range` follow each other by 1.
    pub(super) fn is_adjacent(&self, range: Range<usize>) -> bool {
        range.is_empty() || self.runs[range.start] >= range.len()
    }

    /// The least and greatest offset; `None` of an empty index.
    pub(super) fn extremes(&self) -> Option<(i64, i64)> {
        Some((*self.offsets.iter().min()?, *self.offsets.iter().max()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(extent: usize, a: isize) -> Dim {
        Dim { extent, a, b: 0, c: 0 }
    }

    #[test]
    fn several_dimensions_collapse_row_major() {
        let offsets = Offsets::new(&[dim(2, 100), dim(3, 1)], "A", |d| d.a).expect("fits");
        assert_eq!(offsets.slice(0..6), [0, 1, 2, 100, 101, 102]);
        assert!(offsets.is_adjacent(0..3) && offsets.is_adjacent(3..6));
        assert!(!offsets.is_adjacent(1..4));
        assert_eq!(offsets.extremes(), Some((0, 102)));
    }

    #[test]
    fn no_dimension_is_one_index_and_extent_zero_is_none() {
        assert_eq!(Offsets::new(&[], "A", |d| d.a).expect("fits").len(), 1);
        let empty = Offsets::new(&[dim(4, 1), dim(0, 1)], "A", |d| d.a).expect("fits");
        assert_eq!((empty.len(), empty.extremes()), (0, None));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let huge = [dim(usize::MAX, 1), dim(2, 1)];
        assert!(matches!(Offsets::new(&huge, "A", |d| d.a), Err(Error::Overflow("A"))));
        assert!(Offsets::new(&[dim(3, isize::MAX)], "A", |d| d.a).is_err());
    }
}
