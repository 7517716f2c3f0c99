//! Test memory that ends where the process may not read: a load beyond it stops the test.

use std::ops::Deref;

/// Floats whose last one is followed by a page without access, and whose first one follows another.
pub struct Guarded {
    map: *mut u8,
    map_len: usize,
    start: *const f32,
    len: usize,
}

impl Guarded {
    /// A copy of `values`, up against the page behind it.
    pub fn new(values: &[f32]) -> Self {
        let bytes = size_of_val(values);
        // SAFETY: `sysconf` has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let inside = bytes.next_multiple_of(page);
        let map_len = inside + 2 * page;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping; both guard pages are inside it; the copy fits between them.
        unsafe {
            let map = libc::mmap(std::ptr::null_mut(), map_len, access, kind, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let map = map.cast::<u8>();
            for guard in [map, map.add(page + inside)] {
                assert_eq!(libc::mprotect(guard.cast(), page, libc::PROT_NONE), 0);
            }
            let start = map.add(page + inside - bytes).cast::<f32>();
            start.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Guarded { map, map_len, start, len: values.len() }
        }
    }

    /// The first float, to be written through.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.start.cast_mut()
    }
}

impl Deref for Guarded {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised floats inside the mapping, which lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` and is unmapped here alone.
        unsafe { libc::munmap(self.map.cast(), self.map_len) };
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.deref().fmt(f)
    }
}
