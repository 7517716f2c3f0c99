//! Memory that several devices write in turn, and the arithmetic on it.
//!
//! Rust's borrows cannot express who may touch a block when: the protocol's trackers and credits do.
//! So blocks are raw pointers here, and [`combine`], [`write_rows`] state as their contract what the
//! protocol guarantees. Under `loom` every access also goes through an [`Access`] cell, which fails the
//! model when two accesses are not ordered.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use t3c_schedule::Reduction;

/// A cache line's worth of alignment, and an AVX-512 vector's.
const ALIGNMENT: usize = 64;

/// Zeroed, aligned floats that devices share.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<f32>,
    elements: usize,
}

// SAFETY: a buffer hands out pointers only; whoever reads or writes through them answers for ordering.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `elements` zeros.
    pub fn new(elements: usize) -> Self {
        let start = match Self::layout(elements) {
            Some(layout) => {
                // SAFETY: `layout` returns no layout of size zero.
                let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
                NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
            }
            None => NonNull::dangling(),
        };
        Buffer { start, elements }
    }

    /// The address of the element at `offset`.
    ///
    /// # Panics
    /// If `offset` lies outside the buffer.
    pub fn at(&self, offset: usize) -> *mut f32 {
        assert!(offset <= self.elements, "element {offset} of a buffer of {}", self.elements);
        // SAFETY: checked to lie in the allocation, or one past its end.
        unsafe { self.start.as_ptr().add(offset) }
    }

    fn layout(elements: usize) -> Option<Layout> {
        let bytes = elements.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0)?;
        Layout::from_size_align(bytes, ALIGNMENT).ok()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.elements) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

/// The rows of a block in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first element.
    pub start: *mut f32,
    /// Rows.
    pub count: usize,
    /// Contiguous elements of a row.
    pub length: usize,
    /// Elements from one row's start to the next one's.
    pub stride: usize,
}

impl Rows {
    /// No rows.
    pub const NONE: Rows = Rows { start: std::ptr::null_mut(), count: 0, length: 0, stride: 0 };

    /// As few rows as possible: one, where they follow on each other.
    fn collapsed(self, others: &[Rows]) -> (usize, usize) {
        let dense = |rows: &Rows| rows.stride == rows.length || rows.count <= 1;
        if dense(&self) && others.iter().all(dense) {
            (1, self.count * self.length)
        } else {
            (self.count, self.length)
        }
    }

    fn row(&self, index: usize) -> *mut f32 {
        self.start.wrapping_add(index * self.stride)
    }
}

/// Types whose every bit pattern is a value, so that devices may show each other their bytes.
///
/// # Safety
/// The type has no padding, no invalid values and no interior mutability.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: a primitive number.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}

/// The bytes of `values`.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `T` has no padding; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// `bytes` as values; `None` when their size or address is not a multiple of `T`'s.
pub fn values_of<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: every bit pattern is a `T`.
    let (before, values, after) = unsafe { bytes.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// `target = (sources[0] ∘ sources[1]) ∘ …`, elementwise in that order.
///
/// # Panics
/// If a source has another length than `target`.
pub fn combine_slices(target: &mut [f32], sources: &[&[f32]], reduction: Reduction) {
    let length = target.len();
    let row = |start: *mut f32| Rows { start, count: 1, length, stride: length };
    let sources: Vec<Rows> = sources
        .iter()
        .map(|source| {
            assert_eq!(source.len(), length, "summands of one length");
            row(source.as_ptr().cast_mut())
        })
        .collect();
    // SAFETY: `target` is borrowed exclusively, so it overlaps no source; lengths were checked; sources
    // are only read.
    unsafe { combine(row(target.as_mut_ptr()), &sources, reduction) }
}

/// Marks a block's accesses for the model checker; nothing in a normal build.
#[derive(Debug, Default)]
pub struct Access {
    #[cfg(loom)]
    cell: loom::cell::UnsafeCell<()>,
}

#[cfg(loom)]
// SAFETY: the cell holds no data; sharing it is what lets loom see unordered accesses.
unsafe impl Sync for Access {}

impl Access {
    /// Runs `read`, which reads the block.
    #[inline]
    pub fn read<R>(&self, read: impl FnOnce() -> R) -> R {
        #[cfg(loom)]
        return self.cell.with(|_| read());
        #[cfg(not(loom))]
        read()
    }

    /// Runs `write`, which writes the block.
    #[inline]
    pub fn write<R>(&self, write: impl FnOnce() -> R) -> R {
        #[cfg(loom)]
        return self.cell.with_mut(|_| write());
        #[cfg(not(loom))]
        write()
    }
}

/// Memory of one block: dense, and large enough for it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The first element.
    pub start: *mut f32,
    /// Marks accesses for the model checker.
    pub access: &'a Access,
}

/// Calls `write` with the index and the elements of each row.
///
/// # Safety
/// The rows are valid memory that nothing else reads or writes during the call.
pub unsafe fn write_rows(rows: Rows, mut write: impl FnMut(usize, &mut [f32])) {
    for index in 0..rows.count {
        // SAFETY: the caller owns the rows; distinct rows do not overlap, since `stride >= length`.
        write(index, unsafe { std::slice::from_raw_parts_mut(rows.row(index), rows.length) });
    }
}

/// The elements summed at a time: they stay in registers and first-level cache.
const STRIP: usize = 64;

/// `target = (sources[0] + sources[1]) + …`, elementwise in that order (or the maximum).
///
/// `target` may be one of the sources. No intermediate sum leaves the core.
///
/// # Safety
/// All have `target`'s count and length and are valid memory; nothing writes the sources, and nothing
/// else touches `target`, during the call. `target` and each source are equal or do not overlap.
pub unsafe fn combine(target: Rows, sources: &[Rows], reduction: Reduction) {
    let (count, length) = target.collapsed(sources);
    for index in 0..count {
        let to = target.row(index);
        match (sources, reduction) {
            ([only], _) if only.row(index) == to => {}
            ([first, second], Reduction::Sum) => {
                // SAFETY: the caller's contract, for this row.
                unsafe { add(to, first.row(index), second.row(index), length) }
            }
            (_, Reduction::Sum) => {
                // SAFETY: the caller's contract, for this row.
                unsafe { fold(to, sources, index, length, |left, right| left + right) }
            }
            (_, Reduction::Max) => {
                // SAFETY: the caller's contract, for this row.
                unsafe { fold(to, sources, index, length, maximum) }
            }
        }
    }
}

/// `to = first + second`.
///
/// # Safety
/// As [`combine`], for one row.
unsafe fn add(to: *mut f32, first: *const f32, second: *const f32, length: usize) {
    let mut at = 0;
    while at + STRIP <= length {
        // SAFETY: `at + STRIP <= length`; arrays of floats need a float's alignment only. Both sources
        // are read before `to` is written, so `to` may be either.
        unsafe {
            let left = first.add(at).cast::<[f32; STRIP]>().read();
            let right = second.add(at).cast::<[f32; STRIP]>().read();
            let sum: [f32; STRIP] = std::array::from_fn(|lane| left[lane] + right[lane]);
            to.add(at).cast::<[f32; STRIP]>().write(sum);
        }
        at += STRIP;
    }
    for at in at..length {
        // SAFETY: `at < length`.
        unsafe { to.add(at).write(first.add(at).read() + second.add(at).read()) }
    }
}

/// `to = (sources[0] ∘ sources[1]) ∘ …` for the row at `index` of each source.
///
/// # Safety
/// As [`combine`], for one row.
unsafe fn fold(
    to: *mut f32,
    sources: &[Rows],
    index: usize,
    length: usize,
    apply: impl Fn(f32, f32) -> f32 + Copy,
) {
    for at in (0..length).step_by(STRIP) {
        let lanes = STRIP.min(length - at);
        let mut strip = [0.0_f32; STRIP];
        for (place, source) in sources.iter().enumerate() {
            // SAFETY: `at + lanes <= length`.
            let part = unsafe { std::slice::from_raw_parts(source.row(index).add(at), lanes) };
            for (sum, &value) in strip.iter_mut().zip(part) {
                *sum = if place == 0 { value } else { apply(*sum, value) };
            }
        }
        // SAFETY: `at + lanes <= length`; the slices of the sources are gone.
        unsafe { std::ptr::copy_nonoverlapping(strip.as_ptr(), to.add(at), lanes) }
    }
}

/// The larger of two values; not a number if either is not (IEEE 754-2019 `maximum`, as `arith.maximumf`).
fn maximum(left: f32, right: f32) -> f32 {
    if left.is_nan() || left > right || (left == right && right.is_sign_negative()) { left } else { right }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn rows(values: &mut [f32], count: usize, length: usize, stride: usize) -> Rows {
        assert!(count == 0 || (count - 1) * stride + length <= values.len());
        Rows { start: values.as_mut_ptr(), count, length, stride }
    }

    #[test]
    fn sums_strided_rows_in_order_and_in_place() {
        for length in [1, 7, 64, 131] {
            let stride = length + 3;
            let value = |device: usize, at: usize| (device * 1000 + at) as f32 * 1.1 + 1e6 / (at + 1) as f32;
            let mut parts: Vec<Vec<f32>> =
                (0..4).map(|device| (0..2 * length).map(|at| value(device, at)).collect()).collect();
            let mut target = vec![-1.0; 2 * stride];
            let to = rows(&mut target, 2, length, stride);
            let sources: Vec<Rows> = parts.iter_mut().map(|part| rows(part, 2, length, length)).collect();
            for used in [2, 4] {
                // SAFETY: distinct vectors.
                unsafe { combine(to, &sources[..used], Reduction::Sum) }
                for at in 0..2 * length {
                    let want = (1..used).fold(value(0, at), |sum, device| sum + value(device, at));
                    // SAFETY: inside `target`.
                    let got = unsafe { to.row(at / length).add(at % length).read() };
                    assert_eq!(got.to_bits(), want.to_bits());
                }
            }
            // SAFETY: the target is the last source.
            unsafe { combine(sources[3], &sources, Reduction::Sum) }
            let want = ((value(0, 0) + value(1, 0)) + value(2, 0)) + value(3, 0);
            assert_eq!(parts[3][0].to_bits(), want.to_bits());
        }
    }

    #[test]
    fn maximum_propagates_what_is_not_a_number() {
        assert!(maximum(f32::NAN, 1.0).is_nan() && maximum(1.0, f32::NAN).is_nan());
        assert_eq!(maximum(-0.0, 0.0).to_bits(), 0.0_f32.to_bits());
        assert_eq!(maximum(2.0, 1.0), 2.0);
    }
}
