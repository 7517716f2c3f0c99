//! Products of the plan: operands packed ahead, once a step or a part at a time, and parts shared by the team.

use std::ops::Range;

use t3c_runtime::{BlockTarget, StepKey};

use super::{
    packs,
    plan::{Instance, ValueId},
    prepare::{FusedPlan, Gemm},
    unsafe_run::{Follower, Local, Shared, Worker},
};
use crate::{
    Error,
    kernels::{Epilogue, GemmPlan, Output, Region, Task},
};

/// The packed second operand of a product, whole.
pub(super) type PackedB = *const f32;

impl<'a> Local<'a> {
    pub(super) fn task<'t>(&self, region: &'t Region, output: Output, thread: usize) -> Task<'t>
    where
        'a: 't,
    {
        Task {
            kernels: self.executable.kernels.gemm(),
            region,
            output,
            epilogue: Epilogue::Store,
            workspace: self.memory.scratch[thread],
        }
    }
}

impl Worker<'_> {
    /// A product, and what follows it row by row.
    pub(super) fn product(&self, gemm: &Gemm, instance: &Instance, followers: &[Follower<'_>]) {
        let output = Output::Planned { base: self.floats(instance.writes[0]) };
        let (a, b) = self.operands(gemm, &instance.reads);
        let all_followed = match self.packed(instance, 0) {
            Some(packed) => self.packed_product(&gemm.plan, a, packed, output, &gemm.plan.whole(), followers),
            None if gemm.plan.batches() > 1 => self.batched_product(&gemm.plan, (a, b), output),
            None => self.grouped_product(&gemm.plan, (a, b), output, followers),
        };
        if !all_followed {
            followers.iter().for_each(|follower| self.follow(follower));
        }
    }

    /// A product that is computed aside and added to its result, with the rounding of separate products.
    pub(super) fn added_product(&self, gemm: &Gemm, instance: &Instance) {
        let aside = Output::Planned { base: self.memory.aside };
        let (a, b) = self.operands(gemm, &instance.reads);
        match self.packed(instance, 0) {
            Some(packed) => self.packed_product(&gemm.plan, a, packed, aside, &gemm.plan.whole(), &[]),
            None if gemm.plan.batches() > 1 => self.batched_product(&gemm.plan, (a, b), aside),
            None => self.grouped_product(&gemm.plan, (a, b), aside, &[]),
        };
        let count = self.bytes(instance.writes[0]) / size_of::<f32>();
        // SAFETY: the result's place and the memory aside hold as many floats, and are different memory.
        unsafe {
            let sum = std::slice::from_raw_parts_mut(self.floats(instance.writes[0]), count);
            let part = std::slice::from_raw_parts(self.memory.aside, count);
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }

    pub(super) fn operands(&self, gemm: &Gemm, reads: &[ValueId]) -> (*const f32, *const f32) {
        let (a, b) = if gemm.swapped { (reads[1], reads[0]) } else { (reads[0], reads[1]) };
        (self.floats(a), self.floats(b))
    }

    /// The weight of product `number`, where it was packed ahead.
    pub(super) fn packed(&self, instance: &Instance, number: usize) -> Option<PackedB> {
        let pack = (*instance.packed.get(number)?)?;
        Some(self.memory.packed[pack])
    }

    /// A region of a product whose second operand is packed. Says whether the followers have run: they have where
    /// parts are blocks of rows.
    fn packed_product(
        &self,
        plan: &GemmPlan,
        a: *const f32,
        packed: PackedB,
        output: Output,
        region: &Region,
        followers: &[Follower<'_>],
    ) -> bool {
        let batches = region.batch.clone().map(|batch| Region { batch: batch..batch + 1, ..region.clone() });
        let parts: Vec<Region> = batches.flat_map(|batch| plan.parts(&batch, self.team.threads())).collect();
        let is_followed = parts.iter().all(|part| part.cols == (0..plan.cols()));
        let followers = if is_followed { followers } else { &[] };
        let (local, shared) = (self.local, Shared((a, packed, output, followers)));
        self.team.run(parts.len(), &|part, thread| {
            let (a, packed, output, followers) = shared.get();
            let rows = parts[part].rows.clone();
            // Blocks that stay in the second-level cache for those that follow.
            let step = if followers.is_empty() { rows.len().max(1) } else { plan.block_rows() };
            for first in rows.clone().step_by(step) {
                let part = Region { rows: first..rows.end.min(first + step), ..parts[part].clone() };
                let task = local.task(&part, output.of_part(region, &part), thread);
                // SAFETY: the plan was made for the operands' shapes, whose places hold them; the output holds the
                // region, of which this part writes its own elements; the scratch is this thread's and holds the
                // largest plan's workspace. Followers work on the part's rows, which are finished.
                unsafe {
                    plan.run_packed(&task, a, packed, &mut |_| {});
                    followers.iter().for_each(|follower| local.rows(follower, part.rows.clone(), thread));
                }
            }
        });
        is_followed
    }

    /// A batch of products, each packed by the thread that computes it.
    fn batched_product(&self, plan: &GemmPlan, operands: (*const f32, *const f32), output: Output) -> bool {
        let (local, shared) = (self.local, Shared((operands, output)));
        self.team.run(plan.batches(), &|batch, thread| {
            let ((a, b), output) = shared.get();
            let region = Region { batch: batch..batch + 1, ..plan.whole() };
            let task = local.task(&region, output, thread);
            // SAFETY: as above; a batch entry is written by the thread that took it.
            unsafe { plan.run(&task, a, b, &mut |_| {}) };
        });
        false
    }

    /// One product whose second operand the team packs, as many panels at a time as the shared memory holds. Says
    /// whether the followers have run.
    pub(super) fn grouped_product(
        &self,
        plan: &GemmPlan,
        (a, b): (*const f32, *const f32),
        output: Output,
        followers: &[Follower<'_>],
    ) -> bool {
        let (panels, group) = (plan.panels(), plan.panel_group().max(1));
        if panels <= group {
            self.pack_panels(plan, b, self.memory.shared, (0, 0..panels));
            return self.packed_product(plan, a, self.memory.shared, output, &plan.whole(), followers);
        }
        for first in (0..panels).step_by(group) {
            let group = first..panels.min(first + group);
            self.pack_panels(plan, b, self.memory.shared, (0, group.clone()));
            let region = Region { cols: plan.panel_columns(group), ..plan.whole() };
            let parts = plan.parts(&region, self.team.threads());
            let (local, shared) = (self.local, Shared((a, self.memory.shared, output)));
            self.team.run(parts.len(), &|part, thread| {
                let (a, packed, output) = shared.get();
                let task = local.task(&parts[part], output, thread);
                // SAFETY: as above; the shared memory holds the group's panels.
                unsafe { plan.run_panels(&task, a, packed, first) };
            });
        }
        false
    }

    /// Packs panels of a batch entry one after the other.
    pub(super) fn pack_panels(
        &self,
        plan: &GemmPlan,
        b: *const f32,
        to: *mut f32,
        (batch, panels): (usize, Range<usize>),
    ) {
        let (local, shared) = (self.local, Shared((b, to)));
        // A few panels a part: finding one takes less time than packing it.
        const STEP: usize = 4;
        self.team.run(panels.len().div_ceil(STEP), &|part, _| {
            let (b, to) = shared.get();
            let start = panels.start + part * STEP;
            let part = start..panels.end.min(start + STEP);
            let to = to.wrapping_add(plan.panels_len(start - panels.start));
            // SAFETY: the operand's place holds it, and the panels have room at their place in `to`.
            unsafe { plan.pack_panels(local.executable.kernels.gemm(), b, to, batch, part) };
        });
    }

    /// Packs a weight whose copy is out of date.
    pub(super) fn pack_weight(&self, pack: usize) {
        let executable = self.executable;
        let found = &executable.packs[pack];
        let Some(gemm) = packs::product(&executable.prepared, found.product) else { return };
        let (plan, panels) = (&gemm.plan, gemm.plan.panels());
        let shared = Shared((self.argument(found.argument), self.memory.packed[pack]));
        self.team.run(plan.batches() * panels, &|part, _| {
            let (weight, packed) = shared.get();
            let (batch, panel) = (part / panels, part % panels);
            let kernels = executable.kernels.gemm();
            // SAFETY: the argument holds the weight, and its copy the whole packed operand.
            unsafe { plan.pack_b(kernels, weight, packed, batch, panel..panel + 1) };
        });
    }

    /// The schedule's chunks in production order: each block is computed where the address space maps it, then
    /// announced to the tracker.
    pub(super) fn fused(&self, key: StepKey, fused: &FusedPlan, instance: &Instance) -> Result<(), Error> {
        for (prepared, before) in fused.before.iter().zip(&instance.readers) {
            self.step(key, prepared.as_ref(), before)?;
        }
        if let (Some(exchange), Some(complete)) = (&fused.exchange, fused.complete) {
            return self.exchange(exchange, instance.writes[complete], instance.writes[0]);
        }
        let mut shared = self.memory.shared;
        let mut operands = Vec::with_capacity(fused.products.len());
        for (number, gemm) in fused.products.iter().enumerate() {
            let (a, b) = self.operands(gemm, &instance.reads[2 * number..2 * number + 2]);
            let packed = self.packed(instance, number).unwrap_or_else(|| {
                let to = shared;
                shared = shared.wrapping_add(gemm.plan.packed_b_len().next_multiple_of(16));
                self.pack_panels(&gemm.plan, b, to, (0, 0..gemm.plan.panels()));
                to.cast_const()
            });
            operands.push((a, packed));
        }
        // SAFETY: the result's place holds the device's chunk, and nothing touches it until `finish` returns.
        let mut run = unsafe { self.device.begin_fused(key, self.floats(instance.writes[0]))? };
        for chunk in run.chunks() {
            for block in 0..chunk.blocks {
                let target = run.target(chunk.position, block)?;
                let range = run.block_range(chunk.position, block);
                match fused.complete {
                    Some(complete) => self.copy_block(fused, instance.writes[complete], &target, &range),
                    None => self.block(fused, &operands, &target, &range),
                }
                run.arrived(chunk.position, block)?;
            }
        }
        run.finish()?;
        Ok(())
    }

    /// One block of a contribution that is complete.
    fn copy_block(&self, fused: &FusedPlan, from: ValueId, target: &BlockTarget, range: &Range<usize>) {
        for outer in 0..fused.cut.outer {
            let row = fused.cut.row(outer, range);
            // SAFETY: the contribution's place holds all its rows, the target the block's at its stride, and the two
            // are different memory.
            unsafe {
                let to = target.start.add(outer * target.outer_stride);
                to.copy_from_nonoverlapping(self.floats(from).add(row.start), row.len());
            }
        }
    }

    /// One block of the contribution: the first product stores it, later ones are computed aside and added, with
    /// the rounding of separate products.
    fn block(
        &self,
        fused: &FusedPlan,
        operands: &[(*const f32, PackedB)],
        target: &BlockTarget,
        range: &Range<usize>,
    ) {
        for (index, (gemm, &(a, packed))) in fused.products.iter().zip(operands).enumerate() {
            let mut region = gemm.plan.whole();
            let scaled = range.start * fused.scale[index]..range.end * fused.scale[index];
            let row_stride;
            if fused.by_rows[index] {
                region.rows = scaled;
                row_stride = region.cols.len();
            } else {
                region.cols = scaled;
                row_stride = target.outer_stride;
            }
            let (rows, cols) = (region.rows.len(), region.cols.len());
            let dense = |base, row_stride| Output::Dense { base, row_stride, batch_stride: 0 };
            if index == 0 {
                self.packed_product(&gemm.plan, a, packed, dense(target.start, row_stride), &region, &[]);
                continue;
            }
            let aside = self.memory.aside;
            self.packed_product(&gemm.plan, a, packed, dense(aside, cols), &region, &[]);
            for row in 0..rows {
                // SAFETY: the target holds the block's rows at its stride, the memory aside holds them densely, and
                // the two are different memory.
                unsafe {
                    let sum = std::slice::from_raw_parts_mut(target.start.add(row * row_stride), cols);
                    let part = std::slice::from_raw_parts(aside.add(row * cols), cols);
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            }
        }
    }
}
