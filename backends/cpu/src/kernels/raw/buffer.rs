//! Floats on cache-line boundaries, which kernels read fastest.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a cache line and of the widest vector.
const ALIGNMENT: usize = 64;

/// A fixed number of floats, aligned to 64 bytes, zero at first.
pub struct AlignedFloats {
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, as `Vec<f32>` does.
unsafe impl Send for AlignedFloats {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for AlignedFloats {}

impl AlignedFloats {
    /// `len` zeros. Aborts where memory is exhausted, as `Vec` does.
    ///
    /// # Panics
    /// Where `len` floats do not fit the address space, as `Vec::with_capacity`.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout has at least one element, so it is not empty.
        let data = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(data.cast()) else { handle_alloc_error(layout) };
        AlignedFloats { data, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<f32>(len.max(1))
            .and_then(|layout| layout.align_to(ALIGNMENT))
            .expect("capacity overflow")
    }
}

impl Drop for AlignedFloats {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout, and freed here alone.
        unsafe { dealloc(self.data.as_ptr().cast(), Self::layout(self.len)) };
    }
}

impl Deref for AlignedFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised floats that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        for len in [0, 1, 17, 4096] {
            let mut buffer = AlignedFloats::zeroed(len);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.len() == len && buffer.iter().all(|&x| x == 0.0));
            buffer.fill(1.0);
        }
    }
}
