//! Packs lines of a matrix into panels: by the compiled kernels where the strides allow, else
//! element by element.

use std::ops::Range;
use std::sync::Arc;

use super::jit::Jit;
use crate::kernels::contraction::Offsets;
use crate::kernels::{Error, names};

type PackKernel = unsafe extern "C" fn(i64, *const f32, *const i64, *mut f32);

/// Steps that one transposition takes: it visits the panel once for every eight lines, and so
/// much of it stays in the first-level cache.
const ACROSS: usize = 64;

/// Compiled packing for panels of one width.
#[derive(Clone, Copy)]
pub(super) struct Packer {
    width: usize,
    along: PackKernel,
    across: PackKernel,
}

/// The lines of a matrix that go into one panel, and the steps along them.
pub(super) struct Panel<'p> {
    pub(super) lines: &'p Offsets,
    pub(super) range: Range<usize>,
    pub(super) steps: &'p Offsets,
    pub(super) depth: Range<usize>,
}

impl Packer {
    /// Looks up the kernels for panels of `width` lines.
    pub(super) fn new(code: &Arc<Jit>, width: usize) -> Result<Self, Error> {
        let (along, across) = (names::pack_along(width), names::pack_across(width));
        // SAFETY: `emit_pack_*` gave these names exactly this signature; who holds this keeps the code.
        let (along, across) = unsafe { (code.function(&along)?, code.function(&across)?) };
        Ok(Packer { width, along, across })
    }

    /// Packs a panel of `self.width` lines, those beyond the range as zeros.
    ///
    /// # Safety
    /// Every line and step of `panel` is readable from `source`, and `to` has room for the panel.
    pub(super) unsafe fn pack(&self, panel: &Panel, source: *const f32, to: *mut f32) {
        let (range, depth) = (panel.range.clone(), panel.depth.clone());
        let k = depth.len() as i64;
        if depth.is_empty() {
            return;
        }
        if range.len() == self.width && panel.lines.is_adjacent(range.clone()) {
            let source = source.wrapping_offset(panel.lines.at(range.start) as isize);
            let steps = panel.steps.slice(depth);
            // SAFETY: the lines are consecutive from `source + steps[p]`, by the caller's promise readable.
            unsafe { (self.along)(k, source, steps.as_ptr(), to) };
        } else if range.len() == self.width && panel.steps.is_adjacent(depth.clone()) {
            let source = source.wrapping_offset(panel.steps.at(depth.start) as isize);
            let lines = panel.lines.slice(range);
            for first in (0..depth.len()).step_by(ACROSS) {
                let (source, k) = (source.wrapping_add(first), ACROSS.min(depth.len() - first));
                // SAFETY: the steps are consecutive from `source + lines[i]`, by the caller's promise readable.
                unsafe {
                    let to = to.add(first * self.width);
                    (self.across)(k as i64, source, lines.as_ptr(), to);
                }
            }
        } else {
            // SAFETY: by the caller's promise.
            unsafe { pack_any(panel, self.width, source, to) };
        }
    }
}

/// Packs element by element, for edges and for strides without a run.
///
/// # Safety
/// As [`Packer::pack`], for a panel of `width` lines.
pub(super) unsafe fn pack_any(panel: &Panel, width: usize, source: *const f32, to: *mut f32) {
    let lines = panel.lines.slice(panel.range.clone());
    for (p, &step) in panel.steps.slice(panel.depth.clone()).iter().enumerate() {
        for i in 0..width {
            // SAFETY: (p, i) is inside the panel; the source element is one the caller promised.
            unsafe {
                let element =
                    lines.get(i).map_or(0.0, |line| *source.wrapping_offset((line + step) as isize));
                *to.add(p * width + i) = element;
            }
        }
    }
}
