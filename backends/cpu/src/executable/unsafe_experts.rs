//! Mixtures of experts in the plan: routing, and products of ragged groups of rows.

use super::{
    plan::{Instance, ValueId},
    prepare::{GroupedGradPlan, GroupedPlan},
    unsafe_run::{Shared, Worker},
};
use crate::{
    Error,
    kernels::{
        GemmPlan, Output, Region,
        experts::{Grouped, Routed, Routing},
    },
};

impl Worker<'_> {
    /// Which rows go to which expert.
    pub(super) fn route(&self, routing: &Routing, instance: &Instance) {
        let ints = |value: ValueId| {
            // SAFETY: the result's place holds it, no other result overlaps it, and nothing else reads it yet.
            unsafe { std::slice::from_raw_parts_mut(self.place(value).cast::<i32>(), self.bytes(value) / 4) }
        };
        let (read, writes) = (instance.reads[0], &instance.writes);
        // SAFETY: the operand's place holds floats that nothing writes during this step.
        let scores =
            unsafe { std::slice::from_raw_parts(self.floats(read).cast_const(), self.bytes(read) / 4) };
        let [source, expert, offsets] = [0, 1, 2].map(|result| ints(writes[result]));
        routing.run(scores, Routed { source, expert, offsets });
    }

    fn checked_offsets(
        &self,
        grouped: &Grouped,
        value: ValueId,
        location: &dyn Fn() -> String,
    ) -> Result<&[i32], Error> {
        let offsets = self.ints(value);
        let problem = |entry| format!("entry {entry} of the experts' offsets is out of order or range");
        grouped
            .check(offsets)
            .map_err(|entry| Error::Tokens { location: location(), problem: problem(entry) })?;
        Ok(offsets)
    }

    /// Each row times the matrix of its expert; padding is zero.
    pub(super) fn grouped(
        &self,
        prepared: &GroupedPlan,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let (gemm, grouped) = (&prepared.gemm, &prepared.grouped);
        let (plan, out) = (&gemm.plan, self.floats(instance.writes[0]));
        let offsets = self.checked_offsets(grouped, instance.reads[2], location)?;
        for rows in grouped.padding(offsets) {
            // SAFETY: the result's place holds `cols` floats for every row of every group and slot.
            unsafe { out.add(rows.start * plan.cols()).write_bytes(0, rows.len() * plan.cols()) };
        }
        let (a, b) = self.operands(gemm, &instance.reads);
        let output = Output::Planned { base: out };
        let region = |(expert, rows)| Region { batch: expert..expert + 1, rows, cols: 0..plan.cols() };
        let pieces: Vec<Region> = grouped.pieces(offsets).map(region).collect();
        let Some(packed) = self.packed(instance, 0) else {
            self.experts_in_turn(plan, (a, b), output, &pieces);
            return Ok(());
        };
        let parts: Vec<Region> =
            pieces.iter().flat_map(|piece| plan.parts(piece, self.team.threads())).collect();
        let (local, shared) = (self.local, Shared((a, packed, output)));
        self.team.run(parts.len(), &|part, thread| {
            let (a, packed, output) = shared.get();
            let task = local.task(&parts[part], output, thread);
            // SAFETY: the plan was made for the operands' shapes, whose places hold them; the pieces' rows are
            // disjoint and inside; the scratch is this thread's.
            unsafe { plan.run_packed(&task, a, packed, &mut |_| {}) };
        });
        Ok(())
    }

    /// The same with matrices that are packed when their turn comes.
    fn experts_in_turn(
        &self,
        plan: &GemmPlan,
        (a, b): (*const f32, *const f32),
        output: Output,
        pieces: &[Region],
    ) {
        for expert in 0..plan.batches() {
            let own: Vec<&Region> = pieces.iter().filter(|piece| piece.batch.start == expert).collect();
            if own.is_empty() {
                continue;
            }
            self.pack_panels(plan, b, self.memory.shared, (expert, 0..plan.panels()));
            let parts: Vec<Region> =
                own.into_iter().flat_map(|piece| plan.parts(piece, self.team.threads())).collect();
            let (local, shared) = (self.local, Shared((a, self.memory.shared, output)));
            self.team.run(parts.len(), &|part, thread| {
                let (a, packed, output) = shared.get();
                let task = local.task(&parts[part], output, thread);
                // SAFETY: as above; the shared memory holds the expert's panels.
                unsafe { plan.run_panels(&task, a, packed, 0) };
            });
        }
    }

    /// The gradient of the matrices: for each expert the product of its rows.
    pub(super) fn grouped_grad(
        &self,
        prepared: &GroupedGradPlan,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let GroupedGradPlan { grouped, features: (wide, narrow) } = *prepared;
        let offsets = self.checked_offsets(&grouped, instance.reads[2], location)?;
        let [x, dy] = [0, 1].map(|operand| self.floats(instance.reads[operand]).cast_const());
        let out = self.floats(instance.writes[0]);
        let mut rows = vec![Vec::new(); grouped.slots * grouped.experts];
        for (expert, piece) in grouped.pieces(offsets) {
            rows[expert].extend(piece);
        }
        for (expert, rows) in rows.iter().enumerate() {
            let plan = GemmPlan::of_rows(rows, (wide, narrow), self.executable.kernels.machine())?;
            let base = out.wrapping_add(expert * wide * narrow);
            self.grouped_product(&plan, (dy, x), Output::Planned { base }, &[]);
        }
        Ok(())
    }
}
