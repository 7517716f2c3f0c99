//! Which buffers a step reads and writes, and the order that follows.

use std::collections::BTreeSet;

use crate::{BufferId, Collective, Compute, Program, Schedule, Step, StepId, StepKind};

/// The buffers that a step touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Read.
    pub reads: BTreeSet<BufferId>,
    /// Written, wholly or in part.
    pub writes: BTreeSet<BufferId>,
}

impl Effects {
    fn compute(&mut self, compute: &Compute) {
        self.reads.extend(&compute.reads);
        self.writes.extend(&compute.writes);
    }

    fn collective(&mut self, collective: &Collective) {
        self.reads.insert(collective.input);
        self.writes.insert(collective.output);
    }

    /// All buffers.
    pub fn buffers(&self) -> impl Iterator<Item = BufferId> {
        self.reads.union(&self.writes).copied()
    }
}

/// The buffers that `step` touches. A call writes its results, and those of its arguments that the
/// callee writes in place, such as a cache.
pub fn effects(schedule: &Schedule, step: &Step) -> Effects {
    // More nested calls than programs are a recursion, which `verify` reports.
    effects_within(schedule, step, schedule.programs.len())
}

fn effects_within(schedule: &Schedule, step: &Step, depth: usize) -> Effects {
    let mut effects = Effects::default();
    match &step.kind {
        StepKind::Compute(compute) => effects.compute(compute),
        StepKind::Collective(collective) => effects.collective(collective),
        StepKind::Fused(fused) => {
            fused.producers.iter().for_each(|producer| effects.compute(producer));
            effects.writes.insert(fused.result);
            // What a producer writes, a later one may read: that order is inside the step.
            effects.reads = &effects.reads - &effects.writes;
        }
        StepKind::Consume(consume) => {
            effects.collective(&consume.collective);
            consume.consumers.iter().for_each(|consumer| effects.compute(consumer));
            effects.reads = &effects.reads - &effects.writes;
        }
        StepKind::Transfer { buffer, .. } => {
            effects.reads.insert(*buffer);
            effects.writes.insert(*buffer);
        }
        StepKind::Call { program, arguments, results } => {
            effects.reads.extend(arguments);
            effects.writes.extend(results);
            if depth > 0
                && let Some(callee) = schedule.programs.get(*program)
            {
                let written = written_arguments(schedule, callee, depth - 1);
                effects.writes.extend(arguments.iter().zip(written).filter(|(_, w)| *w).map(|(&a, _)| a));
            }
        }
    }
    effects
}

/// For each argument of `program`, whether the program writes it.
fn written_arguments(schedule: &Schedule, program: &Program, depth: usize) -> Vec<bool> {
    let mut written = BTreeSet::new();
    for step in &program.steps {
        written.extend(effects_within(schedule, step, depth).writes);
    }
    program.arguments.iter().map(|argument| written.contains(argument)).collect()
}

/// For each step of `program`, in list order, the earlier steps it must wait for: the last writer of
/// what it reads, and the last writer and the readers since of what it writes.
pub fn dependencies(schedule: &Schedule, program: &Program) -> Vec<Vec<StepId>> {
    let mut last_writer: Vec<Option<StepId>> = vec![None; program.buffers.len()];
    let mut readers: Vec<Vec<StepId>> = vec![Vec::new(); program.buffers.len()];
    let mut all = Vec::with_capacity(program.steps.len());
    for (id, step) in program.steps.iter().enumerate() {
        let effects = effects(schedule, step);
        let mut after = BTreeSet::new();
        let known = |buffer: &&BufferId| **buffer < program.buffers.len();
        for &buffer in effects.reads.iter().filter(known) {
            after.extend(last_writer[buffer]);
            readers[buffer].push(id);
        }
        for &buffer in effects.writes.iter().filter(known) {
            after.extend(last_writer[buffer]);
            after.extend(readers[buffer].drain(..));
            last_writer[buffer] = Some(id);
        }
        after.remove(&id);
        all.push(after.into_iter().collect());
    }
    all
}

/// Fills in [`Step::id`] and [`Step::after`] of every step.
pub fn connect(schedule: &mut Schedule) {
    for index in 0..schedule.programs.len() {
        let dependencies = dependencies(schedule, &schedule.programs[index]);
        for (id, (step, after)) in schedule.programs[index].steps.iter_mut().zip(dependencies).enumerate() {
            step.id = id;
            step.after = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_gather_waits_for_its_reduce_scatter() {
        let schedule = testing::gemm_reduce_scatter(8, 8, 8, 4);
        let after = dependencies(&schedule, &schedule.programs[0]);
        assert_eq!(after, [vec![], vec![0]]);
    }

    #[test]
    fn a_rewritten_buffer_waits_for_its_readers() {
        let mut schedule = testing::gemm_reduce_scatter(8, 8, 8, 4);
        let program = &mut schedule.programs[0];
        let result = program.results[0];
        let copy = |reads: Vec<_>, writes: Vec<_>| Step {
            id: 0,
            after: vec![],
            location: String::new(),
            kind: StepKind::Compute(Compute { work: crate::Work::Copy, kernel: None, reads, writes }),
        };
        program.steps.push(copy(vec![result], vec![0]));
        program.steps.push(copy(vec![1], vec![result]));
        connect(&mut schedule);
        let steps = &schedule.programs[0].steps;
        assert_eq!(steps[2].after, [0, 1], "writes what the product reads, reads what the gather writes");
        assert_eq!(steps[3].after, [1, 2], "the last writer and the reader since");
    }

    #[test]
    fn a_call_writes_the_arguments_that_its_callee_writes() {
        let mut schedule = testing::gemm_reduce_scatter(8, 8, 8, 4);
        let mut caller = schedule.programs[0].clone();
        schedule.programs[0].arguments = vec![0, 1, schedule.programs[0].results[0]];
        caller.steps.truncate(1);
        caller.steps[0].kind = StepKind::Call { program: 0, arguments: vec![0, 1, 2], results: vec![3] };
        schedule.programs.push(caller);
        let effects = effects(&schedule, &schedule.programs[1].steps[0]);
        assert_eq!(effects.writes.into_iter().collect::<Vec<_>>(), [2, 3]);
    }
}
