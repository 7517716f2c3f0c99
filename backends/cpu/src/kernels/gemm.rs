//! Matrix products: the plan of one contraction, from which any part of C is computed.
//!
//! A plan is made once for a shape and holds no data. [`GemmPlan::run`] packs B and computes a
//! region of C; [`GemmPlan::pack_b`] and [`GemmPlan::run_packed`] do the two halves apart, for
//! weights that are packed once and for threads that share one packed B.
//!
//! **Batch invariance.** Element (m, n) is the sum over blocks of [`Blocking::kc`] terms, each
//! summed from zero in ascending k, added in ascending order. Nothing else enters: not M, N, the
//! region, the place in it, the threads, whether B was packed ahead, or whether the epilogue
//! updates a tile in place or through a padded copy.

use std::ops::Range;

use super::cache::{Blocking, blocking, largest_block, largest_group};
use super::contraction::Offsets;
use super::{Contraction, Error, Machine};

/// Most floats of a micro-kernel's block of C.
pub(super) const MAX_TILE: usize = 512;
/// Most rows of a micro-kernel's block of C.
pub(super) const MAX_ROWS: usize = 32;

/// A part of C, in collapsed indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Batch entries.
    pub batch: Range<usize>,
    /// Rows.
    pub rows: Range<usize>,
    /// Columns.
    pub cols: Range<usize>,
}

/// Where the region's elements go.
#[derive(Clone, Copy, Debug)]
pub enum Output {
    /// The contraction's own C: element (batch, row, col) at its strides from `base`.
    Planned {
        /// Address of C's element (0, 0, 0).
        base: *mut f32,
    },
    /// A dense buffer for this region alone, such as a neighbour's receive buffer.
    Dense {
        /// Address of the region's first element.
        base: *mut f32,
        /// Floats from a row to the next.
        row_stride: usize,
        /// Floats from a batch entry to the next.
        batch_stride: usize,
    },
}

impl Output {
    /// The output of `part`, a part of `region`, whose output this is.
    pub fn of_part(self, region: &Region, part: &Region) -> Output {
        match self {
            Output::Planned { .. } => self,
            Output::Dense { base, row_stride, batch_stride } => {
                let batch = (part.batch.start - region.batch.start) * batch_stride;
                let row = (part.rows.start - region.rows.start) * row_stride;
                let base = base.wrapping_add(batch + row + part.cols.start - region.cols.start);
                Output::Dense { base, row_stride, batch_stride }
            }
        }
    }
}

/// How a packed B lies in memory and where its elements come from: equal layouts of one tensor are equal copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    k: Offsets,
    n: Offsets,
    batch: Vec<i64>,
    nr: usize,
}

/// A finished block of rows, all of the region's columns: its stores are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileDone {
    /// The batch entry.
    pub batch: usize,
    /// The rows.
    pub rows: Range<usize>,
    /// The columns, those of the region.
    pub cols: Range<usize>,
}

/// One contraction's offsets and block sizes, for one machine.
#[derive(Clone, Debug)]
pub struct GemmPlan {
    pub(super) a_m: Offsets,
    pub(super) a_k: Offsets,
    pub(super) b_k: Offsets,
    pub(super) b_n: Offsets,
    pub(super) c_m: Offsets,
    pub(super) c_n: Offsets,
    /// Offsets of each batch entry into A, B and C.
    pub(super) batch: Vec<[i64; 3]>,
    pub(super) blocking: Blocking,
    pub(super) mr: usize,
    pub(super) nr: usize,
}

impl GemmPlan {
    /// Plans `contraction` for kernels of `machine`.
    pub fn new(contraction: &Contraction, machine: &Machine) -> Result<Self, Error> {
        for dim in &contraction.batch {
            if dim.c == 0 && dim.extent > 1 {
                return Err(Error::AliasedOutput(dim.extent));
            }
        }
        Self::ragged(contraction, machine)
    }

    /// As [`GemmPlan::new`], where entries of the batch may write the same C: whoever runs it gives each entry
    /// rows of its own.
    pub fn ragged(contraction: &Contraction, machine: &Machine) -> Result<Self, Error> {
        let Contraction { batch, m, n, k } = contraction;
        for dim in m.iter().chain(n) {
            if dim.c == 0 && dim.extent > 1 {
                return Err(Error::AliasedOutput(dim.extent));
            }
        }
        let batch_a = Offsets::new(batch, "A", |d| d.a)?;
        let batch_b = Offsets::new(batch, "B", |d| d.b)?;
        let batch_c = Offsets::new(batch, "C", |d| d.c)?;
        let batch = (0..batch_a.len()).map(|i| [batch_a.at(i), batch_b.at(i), batch_c.at(i)]).collect();
        let a_k = Offsets::new(k, "A", |d| d.a)?;
        let plan = GemmPlan {
            blocking: blocking(machine, a_k.len()),
            a_m: Offsets::new(m, "A", |d| d.a)?,
            a_k,
            b_k: Offsets::new(k, "B", |d| d.b)?,
            b_n: Offsets::new(n, "B", |d| d.b)?,
            c_m: Offsets::new(m, "C", |d| d.c)?,
            c_n: Offsets::new(n, "C", |d| d.c)?,
            batch,
            mr: machine.tile.rows,
            nr: machine.tile_columns(),
        };
        plan.check_sizes()?;
        Ok(plan)
    }

    /// The product of some rows of two matrices of `m` and `n` columns: `C[i, j] = Σ_r A[r, i] · B[r, j]`, summed
    /// in the order of `rows`.
    pub fn of_rows(rows: &[usize], (m, n): (usize, usize), machine: &Machine) -> Result<Self, Error> {
        let matrix = Contraction::matrix(m, n, 0, true, false);
        let mut plan = Self::new(&matrix, machine)?;
        let offsets = |columns: usize| -> Result<Offsets, Error> {
            let at = |&row: &usize| row.checked_mul(columns).and_then(|at| i64::try_from(at).ok());
            let list = rows.iter().map(at).collect::<Option<_>>();
            list.map(Offsets::of_list).ok_or(Error::Overflow("rows"))
        };
        (plan.a_k, plan.b_k) = (offsets(m)?, offsets(n)?);
        plan.blocking = blocking(machine, rows.len());
        plan.check_sizes()?;
        Ok(plan)
    }

    /// Floats that a product of at most `rows` rows, with `n` columns, may need: of each thread, and for the packed
    /// panels of a group.
    pub fn most_scratch_of_rows(rows: usize, n: usize, machine: &Machine) -> [usize; 2] {
        let nr = machine.tile_columns();
        [largest_block(machine), largest_group(machine, rows).min(n.div_ceil(nr) * nr * rows)]
    }

    fn check_sizes(&self) -> Result<(), Error> {
        let packed = (self.panels() * self.nr)
            .checked_mul(self.depth().max(1))
            .and_then(|floats| floats.checked_mul(self.batches().max(1)))
            .and_then(|floats| floats.checked_mul(size_of::<f32>()));
        packed.map(|_| ()).ok_or(Error::Overflow("packed B"))
    }

    /// Lets the hook run after every `rows` rows (rounded up to the micro-kernel's) instead of
    /// after as many as the caches hold. Results do not change.
    pub fn with_block_rows(mut self, rows: usize) -> Self {
        self.blocking.mc = rows.max(1).next_multiple_of(self.mr).min(self.blocking.mc);
        self
    }

    /// Collapsed extent of the batch dimensions.
    pub fn batches(&self) -> usize {
        self.batch.len()
    }

    /// Collapsed M.
    pub fn rows(&self) -> usize {
        self.a_m.len()
    }

    /// Collapsed N.
    pub fn cols(&self) -> usize {
        self.b_n.len()
    }

    /// Collapsed K.
    pub fn depth(&self) -> usize {
        self.a_k.len()
    }

    /// All of C.
    pub fn whole(&self) -> Region {
        Region { batch: 0..self.batches(), rows: 0..self.rows(), cols: 0..self.cols() }
    }

    /// Panels of B: blocks of columns that are packed together.
    pub fn panels(&self) -> usize {
        self.cols().div_ceil(self.nr)
    }

    /// Floats of B packed whole, all batch entries.
    pub fn packed_b_len(&self) -> usize {
        self.batches() * self.packed_b_batch_len()
    }

    pub(super) fn packed_b_batch_len(&self) -> usize {
        self.panels() * self.nr * self.depth()
    }

    /// Rows that are computed together, while a block of A stays in the second-level cache.
    pub fn block_rows(&self) -> usize {
        self.blocking.mc
    }

    /// How [`GemmPlan::pack_b`] lays B out.
    pub fn packed_layout(&self) -> PackedLayout {
        let batch = self.batch.iter().map(|offsets| offsets[1]).collect();
        PackedLayout { k: self.b_k.clone(), n: self.b_n.clone(), batch, nr: self.nr }
    }

    /// Panels of B that are packed together where B is not packed ahead.
    pub fn panel_group(&self) -> usize {
        self.blocking.panels.min(self.panels())
    }

    /// Floats of so many panels.
    pub fn panels_len(&self, panels: usize) -> usize {
        panels * self.nr * self.depth()
    }

    /// The columns of a range of panels.
    pub fn panel_columns(&self, panels: Range<usize>) -> Range<usize> {
        (panels.start * self.nr).min(self.cols())..(panels.end * self.nr).min(self.cols())
    }

    /// The panels that hold a range of columns.
    pub fn panels_of(&self, cols: Range<usize>) -> Range<usize> {
        cols.start / self.nr..cols.end.div_ceil(self.nr)
    }

    /// Cuts a region of one batch entry into parts for `threads` that may run at once: rows where there are
    /// enough, else panels of columns. One part where there is too little work to share.
    pub fn parts(&self, region: &Region, threads: usize) -> Vec<Region> {
        /// Multiply-adds that take less time than waking a thread.
        const SMALL: usize = 1 << 17;
        let (rows, cols) = (region.rows.len(), region.cols.len());
        let work = rows.saturating_mul(cols).saturating_mul(self.depth());
        if threads <= 1 || work < SMALL {
            return vec![region.clone()];
        }
        let tiles = rows.div_ceil(self.mr);
        if tiles >= 4 * threads {
            // No more than a block of the second-level cache each, and equal.
            let blocks = rows.div_ceil(self.blocking.mc).next_multiple_of(threads);
            let step = tiles.div_ceil(blocks) * self.mr;
            return cut(&region.rows, step).map(|rows| Region { rows, ..region.clone() }).collect();
        }
        let panels = self.panels_of(region.cols.clone());
        let step = panels.len().div_ceil(4 * threads).max(1);
        cut(&panels, step)
            .map(|panels| {
                let cols = self.panel_columns(panels);
                let cols = cols.start.max(region.cols.start)..cols.end.min(region.cols.end);
                Region { cols, ..region.clone() }
            })
            .collect()
    }

    /// Floats of scratch memory that [`GemmPlan::run_packed`] needs, one piece a thread.
    pub fn packed_workspace_len(&self) -> usize {
        let rows = self.blocking.mc.min(self.rows().next_multiple_of(self.mr));
        rows * self.blocking.kc.min(self.depth())
    }

    /// Floats of scratch memory that [`GemmPlan::run`] needs, one piece a thread.
    pub fn workspace_len(&self) -> usize {
        let panels = self.blocking.panels.min(self.panels());
        self.packed_workspace_len().next_multiple_of(16) + panels * self.nr * self.depth()
    }

    /// Floats before and after the base address that each operand is read or written at:
    /// `[A, B, C]`, as ranges of offsets; empty where nothing is touched.
    pub fn spans(&self) -> [Range<i64>; 3] {
        let span = |operand: usize, parts: [&Offsets; 2]| {
            let batch = self.batch.iter().map(|offsets| offsets[operand]);
            let bounds = [batch.clone().min().zip(batch.max()), parts[0].extremes(), parts[1].extremes()];
            let sum = bounds.into_iter().try_fold((0, 0), |(low, high), bound| {
                bound.map(|(least, greatest)| (low + least, high + greatest))
            });
            sum.map_or(0..0, |(low, high)| low..high + 1)
        };
        [span(0, [&self.a_m, &self.a_k]), span(1, [&self.b_k, &self.b_n]), span(2, [&self.c_m, &self.c_n])]
    }

    /// The ranges of K that one pass each sums; one empty range where K is 0.
    pub(super) fn k_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (depth, kc) = (self.depth(), self.blocking.kc);
        (0..depth.div_ceil(kc).max(1)).map(move |i| i * kc..depth.min((i + 1) * kc))
    }
}

/// Pieces of `range` of `step` each, the last one shorter.
fn cut(range: &Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(step.max(1)).map(move |start| start..end.min(start + step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_region_once() {
        let machine = Machine::host().expect("host");
        for (m, n, k) in [(512, 512, 512), (1, 1000, 700), (7, 64, 5000), (1000, 3, 300), (3, 3, 3)] {
            let plan = GemmPlan::new(&Contraction::matrix(m, n, k, false, true), &machine).expect("plan");
            for threads in [1, 2, 3, 16] {
                let whole = plan.whole();
                let mut seen = vec![0; m * n];
                for part in plan.parts(&whole, threads) {
                    for row in part.rows {
                        part.cols.clone().for_each(|col| seen[row * n + col] += 1);
                    }
                }
                assert!(seen.iter().all(|&count| count == 1), "{m}x{n}x{k}, {threads} threads");
            }
        }
    }
}
