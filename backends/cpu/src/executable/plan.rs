//! A schedule laid out for execution: calls expanded, every buffer given a place.
//!
//! A repeated layer stands once in the schedule and is compiled once; here each call becomes its own list of
//! instances over its own buffers. Temporaries share one arena by liveness.

use t3c_ir::units::UnitKind;
use t3c_schedule::{BufferId, Compute, Element, Schedule, Step, StepKind, Work};

use crate::{
    Error,
    arena::{self, Request},
};

use super::prepare::streamed;

/// Index of a value of the expanded program.
pub type ValueId = usize;

/// Where a value lives on each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The caller's argument of this index.
    Argument(usize),
    /// The caller's result of this index.
    Result(usize),
    /// A byte offset in the device's arena.
    Arena(usize),
}

/// One execution of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Index of the program.
    pub program: usize,
    /// The step in it, or `None` for a copy of `reads[0]` to `writes[0]`.
    pub step: Option<usize>,
    /// Values read, in the order of the step's operands.
    pub reads: Vec<ValueId>,
    /// Values written.
    pub writes: Vec<ValueId>,
    /// The readers of a consumed gather, or what a fused step computes before its blocks, as instances of their own.
    pub readers: Vec<Instance>,
    /// For each product, which packed weight it reads, if it reads one.
    pub packed: Vec<Option<usize>>,
    /// Whether it treats rows alone and runs on each block of rows as the product before it finishes them.
    pub joined: bool,
}

/// A value's size and place.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Element type.
    pub element: Element,
    /// Extents on one device.
    pub shape: Vec<u64>,
    /// Where it lives.
    pub home: Home,
}

impl Value {
    /// Bytes on one device.
    pub fn bytes(&self) -> usize {
        (self.shape.iter().product::<u64>() * self.element.bytes()) as usize
    }
}

/// The expanded program.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// All values.
    pub values: Vec<Value>,
    /// All instances, in the schedule's order.
    pub instances: Vec<Instance>,
    /// The values of the entry's arguments.
    pub arguments: Vec<ValueId>,
    /// The values of the entry's results.
    pub results: Vec<ValueId>,
    /// Bytes of each device's arena.
    pub arena: usize,
}

impl Plan {
    /// Expands the calls of a schedule and places its buffers. `joins` says of the instances from a product on, with
    /// those that join it already, whether the last one joins it: they all run at the same time.
    ///
    /// # Errors
    /// When a program calls itself.
    pub fn new(schedule: &Schedule, joins: &dyn Fn(&[Instance]) -> bool) -> Result<Self, Error> {
        let mut expansion = Expansion { schedule, values: Vec::new(), instances: Vec::new() };
        let entry = &schedule.programs[schedule.entry];
        let mut bound = vec![None; entry.buffers.len()];
        for &argument in &entry.arguments {
            bound[argument] = Some(expansion.value(schedule.entry, argument));
        }
        let arguments: Vec<ValueId> =
            entry.arguments.iter().filter_map(|&argument| bound[argument]).collect();
        // A result that is an argument (a cache, written in place) stays where it is.
        let results: Vec<ValueId> = entry
            .results
            .iter()
            .map(|&result| bound[result].unwrap_or_else(|| expansion.value(schedule.entry, result)))
            .collect();
        expansion.program(schedule.entry, bound, &results, 0)?;
        let mut first = 0;
        for last in 1..expansion.instances.len() {
            if joins(&expansion.instances[first..=last]) {
                expansion.instances[last].joined = true;
            } else {
                first = last;
            }
        }
        Ok(expansion.finish(arguments, results))
    }
}

/// Deeper nesting than this is a cycle.
const DEEPEST_CALL: usize = 64;

struct Expansion<'s> {
    schedule: &'s Schedule,
    values: Vec<(Element, Vec<u64>)>,
    instances: Vec<Instance>,
}

impl Expansion<'_> {
    fn value(&mut self, program: usize, buffer: BufferId) -> ValueId {
        let buffer = &self.schedule.programs[program].buffers[buffer];
        self.values.push((buffer.element, buffer.shape.clone()));
        self.values.len() - 1
    }

    /// Appends the instances of a program whose arguments are bound and whose results go to `results`.
    fn program(
        &mut self,
        program: usize,
        mut bound: Vec<Option<ValueId>>,
        results: &[ValueId],
        depth: usize,
    ) -> Result<(), Error> {
        let schedule = self.schedule;
        let body = &schedule.programs[program];
        if depth > DEEPEST_CALL {
            return Err(Error::Unsupported {
                location: body.name.clone(),
                what: "a program that calls itself".into(),
                expected: "calls without a cycle".into(),
            });
        }
        let mut copies = Vec::new();
        for (&buffer, &result) in body.results.iter().zip(results) {
            match bound[buffer] {
                // A cache: the schedule gives the argument and the result one buffer.
                Some(source) if source == result => {}
                // An argument or a value returned twice: the caller wants a copy of its own.
                Some(source) => copies.push((source, result)),
                None => bound[buffer] = Some(result),
            }
        }
        for (buffer, place) in bound.iter_mut().enumerate() {
            if place.is_none() {
                *place = Some(self.value(program, buffer));
            }
        }
        let bound: Vec<ValueId> = bound.into_iter().flatten().collect();
        for step in &body.steps {
            self.step(program, step, &bound, depth)?;
        }
        for (source, result) in copies {
            self.instances.push(Instance {
                program,
                step: None,
                reads: vec![source],
                writes: vec![result],
                readers: Vec::new(),
                packed: Vec::new(),
                joined: false,
            });
        }
        Ok(())
    }

    fn step(&mut self, program: usize, step: &Step, bound: &[ValueId], depth: usize) -> Result<(), Error> {
        let map = |buffers: &[BufferId]| buffers.iter().map(|&buffer| bound[buffer]).collect::<Vec<_>>();
        if let StepKind::Call { program: callee, arguments, results } = &step.kind {
            let body = &self.schedule.programs[*callee];
            let mut inner = vec![None; body.buffers.len()];
            for (&buffer, value) in body.arguments.iter().zip(map(arguments)) {
                inner[buffer] = Some(value);
            }
            return self.program(*callee, inner, &map(results), depth + 1);
        }
        let (reads, writes) = operands(step);
        let (reads, writes) = (map(&reads), map(&writes));
        // A copy needs no code.
        let is_copy = matches!(&step.kind, StepKind::Compute(Compute { work: Work::Copy, kernel: None, .. }));
        let consumers: &[Compute] = match &step.kind {
            StepKind::Consume(consume) => &consume.consumers,
            StepKind::Fused(fused) => &fused.producers[..streamed(fused)],
            _ => &[],
        };
        let reader = |reader: &Compute| Instance {
            program,
            step: Some(step.id),
            reads: map(&reader.reads),
            writes: map(&reader.writes),
            readers: Vec::new(),
            packed: Vec::new(),
            joined: false,
        };
        let readers = consumers.iter().map(reader).collect();
        let step = (!is_copy).then_some(step.id);
        let (packed, joined) = (Vec::new(), false);
        self.instances.push(Instance { program, step, reads, writes, readers, packed, joined });
        Ok(())
    }

    fn finish(self, arguments: Vec<ValueId>, results: Vec<ValueId>) -> Plan {
        let mut homes: Vec<Option<Home>> = vec![None; self.values.len()];
        for (index, &argument) in arguments.iter().enumerate() {
            homes[argument] = Some(Home::Argument(index));
        }
        for (index, &result) in results.iter().enumerate() {
            homes[result].get_or_insert(Home::Result(index));
        }
        let requests = self.lifetimes();
        let temporaries: Vec<ValueId> = (0..self.values.len())
            .filter(|&value| homes[value].is_none() && requests[value].is_some())
            .collect();
        let wanted: Vec<Request> = temporaries.iter().filter_map(|&value| requests[value]).collect();
        let (offsets, arena) = arena::place(&wanted);
        for (&value, offset) in temporaries.iter().zip(offsets) {
            homes[value] = Some(Home::Arena(offset));
        }
        let values = self
            .values
            .into_iter()
            .zip(homes)
            .map(|((element, shape), home)| Value { element, shape, home: home.unwrap_or(Home::Arena(0)) })
            .collect();
        Plan { values, instances: self.instances, arguments, results, arena }
    }

    /// From the first to the last instance that touches each value.
    fn lifetimes(&self) -> Vec<Option<Request>> {
        let mut requests: Vec<Option<Request>> = vec![None; self.values.len()];
        let mut time = 0;
        for instance in &self.instances {
            time += usize::from(!instance.joined);
            for &value in instance.reads.iter().chain(&instance.writes) {
                let (element, shape) = &self.values[value];
                let bytes = (shape.iter().product::<u64>() * element.bytes()) as usize;
                requests[value].get_or_insert(Request { start: time, end: time, bytes }).end = time;
            }
        }
        requests
    }
}

/// Whether local work is this unit.
pub fn is_unit(compute: &Compute, kind: UnitKind) -> bool {
    matches!(&compute.work, Work::Unit { name, .. } if name == kind.name())
}

/// Buffers that a step reads and writes.
pub fn operands(step: &Step) -> (Vec<BufferId>, Vec<BufferId>) {
    match &step.kind {
        StepKind::Compute(compute) => (compute.reads.clone(), compute.writes.clone()),
        StepKind::Fused(fused) => {
            let (before, products) = fused.producers.split_at(streamed(fused));
            let reads = products.iter().chain(before).flat_map(|producer| producer.reads.clone());
            let writes = before.iter().flat_map(|producer| producer.writes.clone());
            (reads.collect(), std::iter::once(fused.result).chain(writes).collect())
        }
        StepKind::Collective(collective) => (vec![collective.input], vec![collective.output]),
        StepKind::Consume(consume) => {
            let readers = || consume.consumers.iter();
            let reads = readers().flat_map(|reader| reader.reads.clone());
            let writes = readers().flat_map(|reader| reader.writes.clone());
            let (input, output) = (consume.collective.input, consume.collective.output);
            (std::iter::once(input).chain(reads).collect(), std::iter::once(output).chain(writes).collect())
        }
        StepKind::Transfer { buffer, .. } => (vec![*buffer], Vec::new()),
        StepKind::Call { arguments, results, .. } => (arguments.clone(), results.clone()),
    }
}
