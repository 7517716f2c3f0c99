//! Runs a [`GemmPlan`]: packs operands through their offsets and walks C in blocks.
//!
//! ```text
//! for each group of panels of B (one, unless B is larger than the workspace allows)
//!   pack it                                                    skipped where B was packed ahead
//!   for each block of mc rows
//!     for each block of kc terms
//!       pack mc × kc of A                                      stays in the second-level cache
//!       for each panel, for each mr rows: micro-kernel         the panel stays in the first level
//!     hook: these rows are finished
//! ```

use std::ops::Range;
use std::sync::Arc;

use super::jit::Jit;
use super::pack::{Packer, Panel, pack_any};
use crate::kernels::emit::micro::{Epilogue, Shape};
use crate::kernels::gemm::{GemmPlan, MAX_ROWS, MAX_TILE, Output, Region, TileDone};
use crate::kernels::{Error, Machine, names};

type MicroKernel = unsafe extern "C" fn(i64, *const f32, *const f32, *mut f32, *const i64);

/// A compiled micro-kernel of one shape, the epilogues in the order of [`Epilogue::ALL`].
struct Micro {
    rows: usize,
    cols: usize,
    code: [MicroKernel; 2],
}

/// The compiled kernels of a matrix product.
pub struct GemmKernels {
    /// At full width, from MR rows down.
    by_height: Vec<Micro>,
    /// With MR rows, from one vector up.
    narrow: Vec<Micro>,
    pack_a: Packer,
    pack_b: Packer,
    _code: Arc<Jit>,
}

impl GemmKernels {
    /// Looks up what `Kernels` compiled for `machine`.
    pub(in crate::kernels) fn new(code: &Arc<Jit>, machine: &Machine) -> Result<Self, Error> {
        let micro = |shape: Shape, epilogue| -> Result<MicroKernel, Error> {
            // SAFETY: `emit_micro_kernel` gave this name exactly this signature, and `_code` keeps it.
            unsafe { code.function(&names::micro(shape, epilogue)) }
        };
        let (mut by_height, mut narrow) = (Vec::new(), Vec::new());
        for shape in names::shapes(machine.tile) {
            let [store, update] = Epilogue::ALL.map(|epilogue| micro(shape, epilogue));
            let (rows, cols) = (shape.rows, shape.vectors * machine.lanes);
            let is_narrow = shape.vectors < shape.panel_vectors;
            let list = if is_narrow { &mut narrow } else { &mut by_height };
            list.push(Micro { rows, cols, code: [store?, update?] });
        }
        Ok(GemmKernels {
            by_height,
            narrow,
            pack_a: Packer::new(code, machine.tile.rows)?,
            pack_b: Packer::new(code, machine.tile_columns())?,
            _code: code.clone(),
        })
    }

    /// Height of the panel that `rows` rows of A are packed in.
    fn height(&self, rows: usize) -> usize {
        self.fitting(rows).rows
    }

    /// The lowest kernel of full width that takes `rows`.
    fn fitting(&self, rows: usize) -> &Micro {
        let fits = self.by_height.iter().rev().find(|micro| micro.rows >= rows);
        fits.unwrap_or(&self.by_height[0])
    }

    /// The smallest kernel that takes `rows`, packed in a panel of their height, and `cols`.
    fn micro(&self, rows: usize, cols: usize) -> &Micro {
        let full = self.fitting(rows);
        let fits = self.narrow.iter().find(|micro| micro.rows == full.rows && micro.cols >= cols);
        fits.unwrap_or(full)
    }
}

/// What one thread computes, with what, and where to.
#[derive(Clone, Copy)]
pub struct Task<'t> {
    /// The compiled kernels.
    pub kernels: &'t GemmKernels,
    /// The part of C.
    pub region: &'t Region,
    /// Where its elements go.
    pub output: Output,
    /// Whether they are stored or added.
    pub epilogue: Epilogue,
    /// The thread's scratch memory; aligned to 64 bytes it is fastest.
    pub workspace: *mut f32,
}

impl GemmPlan {
    /// Packs `panels` of batch entry `batch` of B into `packed`, at their place in the whole.
    ///
    /// Threads may pack different panels of one buffer at once.
    ///
    /// # Safety
    /// `b` is B's base address, readable over the plan's span; `packed` has
    /// [`GemmPlan::packed_b_len`] floats, of which nobody else touches these panels' meanwhile.
    /// `kernels` and the plan are for the same machine; indices are in range.
    pub unsafe fn pack_b(
        &self,
        kernels: &GemmKernels,
        b: *const f32,
        packed: *mut f32,
        batch: usize,
        panels: Range<usize>,
    ) {
        // SAFETY: the batch entry's part of `packed` is inside it; the rest is the caller's promise.
        unsafe {
            let packed = packed.add(batch * self.packed_b_batch_len());
            let to = packed.add(panels.start * self.nr * self.depth());
            self.pack_panels(kernels, b, to, batch, panels);
        }
    }

    /// Packs `panels` one after the other from `to` on.
    ///
    /// # Safety
    /// As [`GemmPlan::pack_b`], with room for these panels at `to`.
    pub unsafe fn pack_panels(
        &self,
        kernels: &GemmKernels,
        b: *const f32,
        to: *mut f32,
        batch: usize,
        panels: Range<usize>,
    ) {
        let source = b.wrapping_offset(self.batch[batch][1] as isize);
        for (i, panel) in panels.enumerate() {
            let first = panel * self.nr;
            let panel = Panel {
                lines: &self.b_n,
                range: first..self.cols().min(first + self.nr),
                steps: &self.b_k,
                depth: 0..self.depth(),
            };
            // SAFETY: by the caller's promise; a panel takes nr × K floats.
            unsafe { kernels.pack_b.pack(&panel, source, to.add(i * self.nr * self.depth())) };
        }
    }

    /// Computes the task's region of C from A and B. `done` is called after each finished block of rows.
    ///
    /// # Safety
    /// - The task's kernels and this plan are for the same machine, and its region is inside the plan.
    /// - `a` and `b` are base addresses, readable over the plan's spans.
    /// - The task's output is writable for the region (initialised where the epilogue updates),
    ///   and nobody else touches those elements meanwhile. It overlaps neither an input nor the
    ///   workspace.
    /// - The workspace has [`GemmPlan::workspace_len`] floats of this thread's own.
    pub unsafe fn run(&self, task: &Task, a: *const f32, b: *const f32, done: &mut dyn FnMut(TileDone)) {
        let Task { region, kernels, .. } = *task;
        let block_of_a = self.packed_workspace_len().next_multiple_of(16);
        // SAFETY: the workspace holds a block of A, then the packed panels.
        let data = unsafe { task.workspace.add(block_of_a) };
        let panels = region.cols.start / self.nr..region.cols.end.div_ceil(self.nr);
        for batch in region.batch.clone() {
            let target = Target { task, batch };
            for first in panels.clone().step_by(self.blocking.panels) {
                let group = first..panels.end.min(first + self.blocking.panels);
                let cols =
                    region.cols.start.max(group.start * self.nr)..region.cols.end.min(group.end * self.nr);
                let mut ignored = |_| {};
                let is_last = group.end == panels.end;
                let done: &mut dyn FnMut(TileDone) = if is_last { done } else { &mut ignored };
                // SAFETY: by the caller's promise; the group fits the workspace.
                unsafe {
                    self.pack_panels(kernels, b, data, batch, group);
                    self.columns(&target, a, PackedPanels { data, first }, cols, done);
                }
            }
        }
    }

    /// As [`GemmPlan::run`], with B packed by [`GemmPlan::pack_b`].
    ///
    /// # Safety
    /// As [`GemmPlan::run`], but `packed` is the whole packed B, which may be shared, and the
    /// workspace needs [`GemmPlan::packed_workspace_len`] floats.
    pub unsafe fn run_packed(
        &self,
        task: &Task,
        a: *const f32,
        packed: *const f32,
        done: &mut dyn FnMut(TileDone),
    ) {
        let cols = task.region.cols.clone();
        if cols.is_empty() {
            return;
        }
        for batch in task.region.batch.clone() {
            // SAFETY: by the caller's promise; the batch entry's part is inside `packed`.
            unsafe {
                let data = packed.add(batch * self.packed_b_batch_len());
                let packed = PackedPanels { data, first: 0 };
                self.columns(&Target { task, batch }, a, packed, cols.clone(), done);
            }
        }
    }

    /// As [`GemmPlan::run_packed`], with only some panels packed, from `first` on, those of the task's columns
    /// among them; its region has one batch entry.
    ///
    /// # Safety
    /// As [`GemmPlan::run_packed`], for the panels that the task needs.
    pub unsafe fn run_panels(&self, task: &Task, a: *const f32, packed: *const f32, first: usize) {
        let (batch, cols) = (task.region.batch.start, task.region.cols.clone());
        if cols.is_empty() {
            return;
        }
        let packed = PackedPanels { data: packed, first };
        // SAFETY: by the caller's promise.
        unsafe { self.columns(&Target { task, batch }, a, packed, cols, &mut |_| {}) };
    }

    /// Computes the region's rows of the columns `cols`.
    ///
    /// # Safety
    /// As [`GemmPlan::run_packed`], where `packed` holds the panels of `cols`.
    unsafe fn columns(
        &self,
        target: &Target,
        a: *const f32,
        packed: PackedPanels,
        cols: Range<usize>,
        done: &mut dyn FnMut(TileDone),
    ) {
        let Task { region, kernels, workspace, .. } = *target.task;
        let a = a.wrapping_offset(self.batch[target.batch][0] as isize);
        for first in region.rows.clone().step_by(self.blocking.mc) {
            let rows = first..region.rows.end.min(first + self.blocking.mc);
            for depth in self.k_blocks() {
                let is_first = depth.start == 0;
                let epilogue = if is_first { target.task.epilogue } else { Epilogue::Update };
                // SAFETY: by the caller's promise.
                unsafe {
                    self.pack_a(kernels, a, workspace, rows.clone(), depth.clone());
                    let pass = Pass { plan: self, kernels, target, depth, epilogue };
                    pass.block(workspace, packed, rows.clone(), cols.clone());
                }
            }
            done(TileDone { batch: target.batch, rows, cols: region.cols.clone() });
        }
    }

    /// Packs `rows` × `depth` of A in panels of MR rows, the last one of its kernel's height.
    ///
    /// # Safety
    /// `a` is the batch entry's base address; `to` has [`GemmPlan::packed_workspace_len`] floats.
    unsafe fn pack_a(
        &self,
        kernels: &GemmKernels,
        a: *const f32,
        to: *mut f32,
        rows: Range<usize>,
        depth: Range<usize>,
    ) {
        for (i, first) in rows.clone().step_by(self.mr).enumerate() {
            let range = first..rows.end.min(first + self.mr);
            let height = kernels.height(range.len());
            let panel = Panel { lines: &self.a_m, range, steps: &self.a_k, depth: depth.clone() };
            // SAFETY: panel `i` begins after `i` full ones; by the caller's promise there is room.
            unsafe {
                let to = to.add(i * self.mr * depth.len());
                if height == self.mr {
                    kernels.pack_a.pack(&panel, a, to);
                } else {
                    pack_any(&panel, height, a, to);
                }
            }
        }
    }
}

/// Packed panels of B: `data` begins with panel `first`.
#[derive(Clone, Copy)]
struct PackedPanels {
    data: *const f32,
    first: usize,
}

/// A task's batch entry.
struct Target<'t> {
    task: &'t Task<'t>,
    batch: usize,
}

impl Target<'_> {
    /// Address of element (row, col).
    fn address(&self, plan: &GemmPlan, row: usize, col: usize) -> *mut f32 {
        match self.task.output {
            Output::Planned { base } => {
                let batch = plan.batch[self.batch][2];
                base.wrapping_offset((batch + plan.c_m.at(row) + plan.c_n.at(col)) as isize)
            }
            Output::Dense { base, row_stride, batch_stride } => {
                let batch = (self.batch - self.task.region.batch.start) * batch_stride;
                let row = (row - self.task.region.rows.start) * row_stride;
                base.wrapping_add(batch + row + col - self.task.region.cols.start)
            }
        }
    }

    /// Whether the columns lie side by side.
    fn is_adjacent(&self, plan: &GemmPlan, cols: Range<usize>) -> bool {
        matches!(self.task.output, Output::Dense { .. }) || plan.c_n.is_adjacent(cols)
    }

    /// Floats from row `first` to row `first + i`.
    fn row_offset(&self, plan: &GemmPlan, first: usize, i: usize) -> i64 {
        match self.task.output {
            Output::Planned { .. } => plan.c_m.at(first + i) - plan.c_m.at(first),
            Output::Dense { row_stride, .. } => (i * row_stride) as i64,
        }
    }
}

/// One block of K over one block of rows.
struct Pass<'p> {
    plan: &'p GemmPlan,
    kernels: &'p GemmKernels,
    target: &'p Target<'p>,
    depth: Range<usize>,
    epilogue: Epilogue,
}

impl Pass<'_> {
    /// Runs the micro-kernel over every tile.
    ///
    /// # Safety
    /// `a` holds the packed rows, `packed` the panels of `cols`, and the target is writable.
    unsafe fn block(&self, a: *const f32, packed: PackedPanels, rows: Range<usize>, cols: Range<usize>) {
        let GemmPlan { mr, nr, .. } = *self.plan;
        for panel in cols.start / nr..cols.end.div_ceil(nr) {
            let tile_cols = cols.start.max(panel * nr)..cols.end.min((panel + 1) * nr);
            let skipped = tile_cols.start - panel * nr;
            let from = ((panel - packed.first) * self.plan.depth() + self.depth.start) * nr;
            for (i, first) in rows.clone().step_by(mr).enumerate() {
                let tile_rows = first..rows.end.min(first + mr);
                // SAFETY: both panels are packed at these places, by the caller's promise.
                unsafe {
                    let (a, b) = (a.add(i * mr * self.depth.len()), packed.data.add(from));
                    self.tile(a, b, tile_rows, tile_cols.clone(), skipped);
                }
            }
        }
    }

    /// One tile: in place, or through a padded copy where it is not a whole one with adjacent columns.
    ///
    /// # Safety
    /// `a` and `b` are packed panels; the target is writable for these rows and columns, the
    /// first of which is column `skipped` of the panel.
    unsafe fn tile(
        &self,
        a: *const f32,
        b: *const f32,
        rows: Range<usize>,
        cols: Range<usize>,
        skipped: usize,
    ) {
        let (plan, k) = (self.plan, self.depth.len() as i64);
        let micro = self.kernels.micro(rows.len(), skipped + cols.len());
        let mut offsets = [0i64; MAX_ROWS];
        let is_whole = (rows.len(), cols.len()) == (micro.rows, micro.cols);
        if is_whole && self.target.is_adjacent(plan, cols.clone()) {
            for (i, offset) in offsets.iter_mut().take(micro.rows).enumerate() {
                *offset = self.target.row_offset(plan, rows.start, i);
            }
            let c = self.target.address(plan, rows.start, cols.start);
            let kernel = micro.code[self.epilogue as usize];
            // SAFETY: the kernel's contract holds: packed panels, a whole tile of adjacent columns.
            unsafe { kernel(k, a, b, c, offsets.as_ptr()) };
            return;
        }
        let mut padded = [0f32; MAX_TILE];
        for (i, offset) in offsets.iter_mut().take(micro.rows).enumerate() {
            *offset = (i * micro.cols) as i64;
        }
        let store = micro.code[Epilogue::Store as usize];
        // SAFETY: as above; `padded` has room for the largest tile (checked by a test of shapes).
        unsafe { store(k, a, b, padded.as_mut_ptr(), offsets.as_ptr()) };
        for (i, row) in rows.enumerate() {
            let sums = &padded[i * micro.cols + skipped..][..cols.len()];
            // SAFETY: by the caller's promise these elements are ours to write.
            unsafe { self.copy_row(sums, row, cols.clone()) };
        }
    }

    /// Runs the epilogue for one row of sums.
    ///
    /// # Safety
    /// The target is writable for `cols` of `row`.
    unsafe fn copy_row(&self, sums: &[f32], row: usize, cols: Range<usize>) {
        let finish = |c: *mut f32, sum: f32| {
            // SAFETY: `c` is an element of the row, by the caller's promise ours to write.
            unsafe {
                *c = match self.epilogue {
                    Epilogue::Store => sum,
                    Epilogue::Update => *c + sum,
                };
            }
        };
        if self.target.is_adjacent(self.plan, cols.clone()) {
            let first = self.target.address(self.plan, row, cols.start);
            for (j, &sum) in sums.iter().enumerate() {
                finish(first.wrapping_add(j), sum);
            }
        } else {
            for (&sum, col) in sums.iter().zip(cols) {
                finish(self.target.address(self.plan, row, col), sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
