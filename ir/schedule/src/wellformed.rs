//! Whether a schedule is one that a backend can run: indices in range, an order without cycles that
//! covers every shared buffer, shapes that agree, and the invariants of every address space.

use std::collections::BTreeSet;

use crate::{
    Buffer, BufferId, Collective, CollectiveKind, Compute, Consume, Contraction, Error, Fused, Program,
    SCHEMA, Schedule, Step, StepError, StepKind, Work, arrivals, chunks::chunk_range, effects::effects,
    invariants,
};

/// The most bytes of a buffer, operations of a contraction, and devices of a grid that the arithmetic
/// on schedules is safe for.
const LARGEST: u64 = 1 << 60;

/// Checks everything that a schedule must satisfy; the first violation is the error.
pub fn verify(schedule: &Schedule) -> Result<(), Error> {
    verify_structure(schedule)?;
    verify_address_spaces(schedule)
}

/// Checks the invariants of every fused step's address space and trackers.
pub fn verify_address_spaces(schedule: &Schedule) -> Result<(), Error> {
    for program in &schedule.programs {
        for (index, step) in program.steps.iter().enumerate() {
            let checked = match &step.kind {
                StepKind::Fused(fused) => verify_trackers(schedule, fused),
                StepKind::Consume(consume) => verify_consume(schedule, consume),
                _ => continue,
            };
            checked.map_err(|error| at(program, index, step, error))?;
        }
    }
    Ok(())
}

fn verify_trackers(schedule: &Schedule, fused: &Fused) -> Result<(), StepError> {
    let devices = schedule.grid.group_size(&fused.collective.axes);
    match fused.collective.kind {
        CollectiveKind::ReduceScatter => invariants::verify_address_space(&fused.chunks, devices)?,
        CollectiveKind::AllToAll => invariants::verify_exchange(&fused.chunks, devices)?,
        _ => return Ok(()),
    }
    invariants::tracked_blocks_fire_once(fused, devices)
}

fn verify_consume(schedule: &Schedule, consume: &Consume) -> Result<(), StepError> {
    if consume.arrivals.is_empty() {
        return Ok(());
    }
    if consume.block == 0 {
        return Err(StepError::EmptyBlock);
    }
    let devices = schedule.grid.group_size(&consume.collective.axes);
    Ok(arrivals::verify_arrivals(consume.collective.kind, &consume.arrivals, devices)?)
}

fn at(program: &Program, index: usize, step: &Step, error: StepError) -> Error {
    let (program, location) = (program.name.clone(), step.location.clone());
    Error::Step { program, step: index, location, error: Box::new(error) }
}

/// Checks what any reader of a schedule relies on: indices, order, shapes, and that the chunks of a
/// fused step partition its output among devices that exist. Whether its trackers ever fire is left to
/// [`verify_address_spaces`].
pub fn verify_structure(schedule: &Schedule) -> Result<(), Error> {
    if schedule.schema != SCHEMA {
        return Err(Error::Schema { found: schedule.schema.clone() });
    }
    if let Some(axis) = schedule.grid.axes.iter().find(|axis| axis.size == 0) {
        return Err(Error::EmptyAxis { axis: axis.name.clone() });
    }
    let sizes = schedule.grid.axes.iter().map(|axis| u64::from(axis.size));
    if !is_product_at_most(sizes, u64::from(u32::MAX)) {
        return Err(Error::TooLarge { what: "the grid".to_owned() });
    }
    let programs = schedule.programs.len();
    if schedule.entry >= programs {
        return Err(Error::NoProgram { at: "the entry".to_owned(), program: schedule.entry, programs });
    }
    calls_do_not_recur(schedule)?;
    schedule.programs.iter().try_for_each(|program| verify_program(schedule, program))
}

fn verify_program(schedule: &Schedule, program: &Program) -> Result<(), Error> {
    for buffer in &program.buffers {
        let factors = buffer.shape.iter().copied().chain([buffer.element.bytes()]);
        if !is_product_at_most(factors, LARGEST) {
            let what = format!("buffer `{}` of program `{}`", buffer.name, program.name);
            return Err(Error::TooLarge { what });
        }
    }
    let buffers = program.buffers.len();
    if let Some(&buffer) = program.arguments.iter().chain(&program.results).find(|&&b| b >= buffers) {
        return Err(Error::Interface { program: program.name.clone(), buffer, buffers });
    }
    for (index, step) in program.steps.iter().enumerate() {
        verify_step(schedule, program, index, step).map_err(|error| at(program, index, step, error))?;
    }
    no_cycle_of_waits(program)?;
    for (index, step) in program.steps.iter().enumerate() {
        if let Some(&after) = step.after.iter().find(|&&after| after >= index) {
            return Err(at(program, index, step, StepError::WaitsForLater { after }));
        }
    }
    shared_buffers_are_ordered(schedule, program)
}

/// No steps of `program` wait for each other.
pub fn no_cycle_of_waits(program: &Program) -> Result<(), Error> {
    let mut waiting: Vec<usize> = program.steps.iter().map(|step| step.after.len()).collect();
    let mut waiters = vec![Vec::new(); program.steps.len()];
    for (id, step) in program.steps.iter().enumerate() {
        for &after in &step.after {
            waiters[after].push(id);
        }
    }
    let mut ready: Vec<usize> = (0..waiting.len()).filter(|&id| waiting[id] == 0).collect();
    while let Some(done) = ready.pop() {
        for &id in &waiters[done] {
            waiting[id] -= 1;
            if waiting[id] == 0 {
                ready.push(id);
            }
        }
    }
    let steps: Vec<usize> = (0..waiting.len()).filter(|&id| waiting[id] > 0).collect();
    if steps.is_empty() {
        return Ok(());
    }
    Err(Error::CycleOfWaits { program: program.name.clone(), steps })
}

/// Two steps that share a buffer, one of them writing it, are ordered by `after`.
pub fn shared_buffers_are_ordered(schedule: &Schedule, program: &Program) -> Result<(), Error> {
    let needed = crate::effects::dependencies(schedule, program);
    for (id, step) in program.steps.iter().enumerate() {
        let missing: Vec<usize> = needed[id].iter().copied().filter(|n| !step.after.contains(n)).collect();
        if missing.is_empty() {
            continue;
        }
        let ancestors = ancestors(program, id);
        for other in missing {
            if !ancestors.contains(&other) {
                let theirs: BTreeSet<BufferId> = effects(schedule, &program.steps[other]).buffers().collect();
                let shared = effects(schedule, step).buffers().find(|b| theirs.contains(b));
                return Err(Error::Step {
                    program: program.name.clone(),
                    step: id,
                    location: step.location.clone(),
                    error: Box::new(StepError::MissingDependency {
                        step: other,
                        buffer: shared.unwrap_or(0),
                    }),
                });
            }
        }
    }
    Ok(())
}

fn ancestors(program: &Program, id: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = program.steps[id].after.clone();
    while let Some(step) = open.pop() {
        if found.insert(step) {
            open.extend(&program.steps[step].after);
        }
    }
    found
}

fn calls_do_not_recur(schedule: &Schedule) -> Result<(), Error> {
    /// Depth-first: 0 unseen, 1 open, 2 finished.
    fn visit(schedule: &Schedule, program: usize, state: &mut [u8]) -> Result<(), Error> {
        match state[program] {
            2 => return Ok(()),
            1 => return Err(Error::Recursion { program: schedule.programs[program].name.clone() }),
            _ => state[program] = 1,
        }
        for (index, step) in schedule.programs[program].steps.iter().enumerate() {
            if let StepKind::Call { program: callee, .. } = step.kind {
                if callee >= schedule.programs.len() {
                    let at = format!("program `{}`, step {index}", schedule.programs[program].name);
                    return Err(Error::NoProgram { at, program: callee, programs: schedule.programs.len() });
                }
                visit(schedule, callee, state)?;
            }
        }
        state[program] = 2;
        Ok(())
    }
    let mut state = vec![0; schedule.programs.len()];
    (0..schedule.programs.len()).try_for_each(|program| visit(schedule, program, &mut state))
}

fn verify_step(schedule: &Schedule, program: &Program, index: usize, step: &Step) -> Result<(), StepError> {
    if step.id != index {
        return Err(StepError::Id { id: step.id });
    }
    if let Some(&after) = step.after.iter().find(|&&after| after >= program.steps.len()) {
        return Err(StepError::NoStep { after });
    }
    let buffers = program.buffers.len();
    if let Some(buffer) = effects(schedule, step).buffers().find(|&b| b >= buffers) {
        return Err(StepError::NoBuffer { buffer, buffers });
    }
    match &step.kind {
        StepKind::Compute(compute) => verify_compute(program, compute),
        StepKind::Collective(collective) => verify_collective(schedule, program, collective),
        StepKind::Fused(fused) => verify_fused(schedule, program, fused),
        StepKind::Consume(consume) => {
            verify_collective(schedule, program, &consume.collective)?;
            consume.consumers.iter().try_for_each(|consumer| verify_compute(program, consumer))
        }
        StepKind::Transfer { to, .. } => {
            let devices = schedule.grid.devices();
            if *to == 0 || *to >= devices {
                return Err(StepError::TransferTarget { to: *to, devices });
            }
            Ok(())
        }
        StepKind::Call { program: callee, arguments, results } => {
            let callee = &schedule.programs[*callee];
            agree(program, callee, "arguments", arguments, &callee.arguments)?;
            agree(program, callee, "results", results, &callee.results)
        }
    }
}

fn agree(
    program: &Program,
    callee: &Program,
    what: &str,
    given: &[BufferId],
    taken: &[BufferId],
) -> Result<(), StepError> {
    if given.len() != taken.len() {
        let what = format!("{what} of `{}`", callee.name);
        return Err(StepError::Count { what, found: given.len(), expected: taken.len() });
    }
    for (number, (&given, &taken)) in given.iter().zip(taken).enumerate() {
        let (given, taken) = (&program.buffers[given], &callee.buffers[taken]);
        if given.shape != taken.shape {
            return Err(StepError::Shape {
                what: format!("number {number} of the {what} of `{}`", callee.name),
                found: given.shape.clone(),
                expected: taken.shape.clone(),
            });
        }
    }
    Ok(())
}

fn verify_compute(program: &Program, compute: &Compute) -> Result<(), StepError> {
    let Work::Contraction(contraction) = &compute.work else { return Ok(()) };
    let count = |what: &str, found: usize, expected: usize| {
        if found == expected {
            return Ok(());
        }
        Err(StepError::Count { what: format!("{what} of a contraction"), found, expected })
    };
    count("operands", compute.reads.len(), 2)?;
    count("results", compute.writes.len(), 1)?;
    if !is_product_at_most(contraction.extents.iter().copied(), LARGEST) {
        return Err(StepError::TooLarge);
    }
    let buffers = [compute.reads[0], compute.reads[1], compute.writes[0]];
    for ((operand, map), buffer) in ['a', 'b', 'c'].into_iter().zip(maps(contraction)).zip(buffers) {
        let loops = contraction.extents.len();
        if let Some(&index) = map.iter().find(|&&index| index >= loops) {
            return Err(StepError::NoLoop { operand, index, loops });
        }
        let expected: Vec<u64> = map.iter().map(|&index| contraction.extents[index]).collect();
        shape_is(&program.buffers[buffer], expected)?;
    }
    Ok(())
}

/// Whether the product of the factors that are not zero stays in range; so a zero hides no overflow.
fn is_product_at_most(factors: impl Iterator<Item = u64>, largest: u64) -> bool {
    factors
        .filter(|&factor| factor > 0)
        .try_fold(1u64, |product, factor| product.checked_mul(factor).filter(|&p| p <= largest))
        .is_some()
}

fn maps(contraction: &Contraction) -> [&Vec<usize>; 3] {
    [&contraction.a, &contraction.b, &contraction.c]
}

fn shape_is(buffer: &Buffer, expected: Vec<u64>) -> Result<(), StepError> {
    if buffer.shape == expected {
        return Ok(());
    }
    Err(StepError::Shape { what: buffer.name.clone(), found: buffer.shape.clone(), expected })
}

fn group_size(schedule: &Schedule, collective: &Collective) -> Result<u32, StepError> {
    let axes = schedule.grid.axes.len();
    if let Some(&axis) = collective.axes.iter().find(|&&axis| axis >= axes) {
        return Err(StepError::NoAxis { axis, axes });
    }
    Ok(schedule.grid.group_size(&collective.axes))
}

fn verify_collective(schedule: &Schedule, program: &Program, c: &Collective) -> Result<(), StepError> {
    let devices = group_size(schedule, c)?;
    let (input, output) = (&program.buffers[c.input], &program.buffers[c.output]);
    let (whole, part) = match c.kind {
        CollectiveKind::AllReduce => return shape_is(output, input.shape.clone()),
        CollectiveKind::ReduceScatter | CollectiveKind::AllSlice => (input, output),
        CollectiveKind::AllGather => (output, input),
        CollectiveKind::AllToAll => {
            shape_is(output, exchanged_shape(&input.shape, c, devices)?)?;
            // Padded rows need not move.
            return if c.bytes <= input.bytes() { Ok(()) } else { bytes_are(c, input) };
        }
    };
    let part_shape = chunk_shape(&whole.shape, c.dimension, devices)?;
    shape_is(part, part_shape)?;
    bytes_are(c, whole)
}

fn bytes_are(collective: &Collective, whole: &Buffer) -> Result<(), StepError> {
    if collective.bytes == whole.bytes() {
        return Ok(());
    }
    Err(StepError::Bytes { found: collective.bytes, expected: whole.bytes() })
}

/// The shape of a device's result of an all-to-all.
fn exchanged_shape(operand: &[u64], c: &Collective, devices: u32) -> Result<Vec<u64>, StepError> {
    let mut shape = chunk_shape(operand, c.dimension, devices)?;
    let (dimension, rank) = (c.concatenate.unwrap_or(c.dimension), shape.len());
    let extent = shape.get_mut(dimension).ok_or(StepError::NoDimension { dimension, rank })?;
    *extent = extent.saturating_mul(u64::from(devices));
    Ok(shape)
}

/// The shape of a device's chunk. A program is the same for all devices, so where the devices do not
/// divide the dimension the buffer holds the largest chunk.
fn chunk_shape(whole: &[u64], dimension: usize, devices: u32) -> Result<Vec<u64>, StepError> {
    let rank = whole.len();
    let mut shape = whole.to_vec();
    let extent = shape.get_mut(dimension).ok_or(StepError::NoDimension { dimension, rank })?;
    let largest = chunk_range(*extent, devices.max(1), 0);
    *extent = largest.end - largest.start;
    Ok(shape)
}

fn verify_fused(schedule: &Schedule, program: &Program, fused: &Fused) -> Result<(), StepError> {
    let devices = group_size(schedule, &fused.collective)?;
    fused.producers.iter().try_for_each(|producer| verify_compute(program, producer))?;
    let last_written = fused.producers.last().and_then(|producer| producer.writes.first());
    let Some(&partial) = last_written else {
        let what = "results of the producers of a fused step".to_owned();
        return Err(StepError::Count { what, found: 0, expected: 1 });
    };
    shape_is(&program.buffers[partial], fused.shape.clone())?;
    let expected = match fused.collective.kind {
        CollectiveKind::ReduceScatter => Some(chunk_shape(&fused.shape, fused.dimension, devices)?),
        CollectiveKind::AllToAll => Some(exchanged_shape(&fused.shape, &fused.collective, devices)?),
        _ => None,
    };
    if let Some(expected) = expected {
        shape_is(&program.buffers[fused.result], expected)?;
        invariants::chunks_partition_the_output(&fused.chunks, devices)?;
        invariants::distances_stay_in_the_group(&fused.chunks, devices)?;
        if fused.block == 0 {
            return Err(StepError::EmptyBlock);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{AddressSpaceError, testing};

    fn broken(change: impl Fn(&mut Schedule)) -> Error {
        let mut schedule = testing::gemm_reduce_scatter(8, 6, 4, 4);
        change(&mut schedule);
        verify(&schedule).unwrap_err()
    }

    fn broken_step(change: impl Fn(&mut Program)) -> StepError {
        match broken(|schedule| change(&mut schedule.programs[0])) {
            Error::Step { error, .. } => *error,
            other => panic!("{other}"),
        }
    }

    fn fused(program: &mut Program) -> &mut Fused {
        match &mut program.steps[0].kind {
            StepKind::Fused(fused) => fused,
            _ => unreachable!(),
        }
    }

    #[test]
    fn each_fault_of_a_schedule_has_its_name() {
        assert!(matches!(broken(|s| s.schema = "t3c.schedule/0".into()), Error::Schema { .. }));
        assert!(matches!(broken(|s| s.grid.axes[0].size = 0), Error::EmptyAxis { .. }));
        assert!(matches!(broken(|s| s.programs[0].buffers[0].shape[0] = u64::MAX), Error::TooLarge { .. }));
        assert!(matches!(broken(|s| s.entry = 1), Error::NoProgram { program: 1, .. }));
        assert!(matches!(broken(|s| s.programs[0].results.push(9)), Error::Interface { buffer: 9, .. }));
        let call = |program| StepKind::Call { program, arguments: vec![0, 1], results: vec![4] };
        assert!(matches!(broken(|s| s.programs[0].steps[1].kind = call(3)), Error::NoProgram { .. }));
        assert!(matches!(broken(|s| s.programs[0].steps[1].kind = call(0)), Error::Recursion { .. }));
        assert!(matches!(broken(|s| s.programs[0].steps[0].after = vec![1]), Error::CycleOfWaits { .. }));
    }

    #[test]
    fn each_fault_of_a_step_has_its_name() {
        use StepError::*;
        assert_eq!(broken_step(|p| p.steps[1].id = 7), Id { id: 7 });
        assert_eq!(broken_step(|p| p.steps[1].after = vec![2]), NoStep { after: 2 });
        assert_eq!(broken_step(|p| p.steps[1].after.clear()), MissingDependency { step: 0, buffer: 3 });
        assert_eq!(broken_step(|p| fused(p).result = 9), NoBuffer { buffer: 9, buffers: 5 });
        assert_eq!(broken_step(|p| fused(p).block = 0), EmptyBlock);
        assert!(matches!(broken_step(|p| fused(p).producers.clear()), Count { .. }));
        assert_eq!(broken_step(|p| fused(p).dimension = 2), NoDimension { dimension: 2, rank: 2 });
        assert_eq!(broken_step(|p| fused(p).collective.axes[0] = 1), NoAxis { axis: 1, axes: 1 });
        assert!(matches!(broken_step(|p| p.buffers[0].shape[0] = 9), Shape { .. }));
        assert!(matches!(broken_step(|p| p.buffers[3].shape[0] = 3), Shape { .. }));
        assert_eq!(
            broken_step(|p| fused(p).chunks[1].threshold = 1),
            AddressSpace(AddressSpaceError::WrongThreshold { relative: 2, threshold: 1, arrivals: 2 })
        );
        let wrong_bytes = |p: &mut Program| match &mut p.steps[1].kind {
            StepKind::Collective(collective) => collective.bytes = 1,
            _ => unreachable!(),
        };
        assert_eq!(broken_step(wrong_bytes), Bytes { found: 1, expected: 96 });
    }

    #[test]
    fn an_error_names_program_step_and_location() {
        let text = broken(|s| fused(&mut s.programs[0]).block = 0).to_string();
        assert_eq!(text, "program `main`, step 0 (gemm): a trigger moves blocks of 0 indices");
    }

    proptest! {
        #[test]
        fn sub_layers_of_any_shape_verify(m in 1u64..300, n in 1u64..300, k in 1u64..50, devices in 2u32..18) {
            verify(&testing::gemm_reduce_scatter(m, n, k, devices)).unwrap();
            verify(&testing::gemm_all_reduce(m, n, k, devices)).unwrap();
        }
    }
}
