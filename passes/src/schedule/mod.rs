//! Reads the schedule off a module: the plain data that the simulator times and the CPU backend runs.
//!
//! Why: the schedule is the only thing that leaves MLIR. Each function but units and kernels is a program, each
//! tensor a buffer, each operation a step, in program order:
//!
//! ```text
//! product                        Compute, a contraction; its zero fill is no step: kernels start from zero
//! call of a unit or kernel       Compute, with the function's symbol; operands and results are its reads and writes
//! call of another function       Call
//! shard collective               Collective
//! t3.track_and_trigger           Fused: its region's products and calls, products of one sum into one buffer
//! t3.consume                     Consume, likewise
//! ```
//!
//! Needs: `t3-outline` and `t3-configure-address-space` before. Guarantees: the schedule satisfies its invariants
//! (`t3c_schedule::verify`), reads back from its JSON, and is the same on every run.
//!
//! A value that a callee updates in place (a cache) has one buffer before and after, in every caller: where a
//! caller still needs the old value, a copy comes first. Anything else is an error.

mod regions;

use std::collections::HashMap;

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Generic, Op, TensorType, Val,
    context::render_location,
    ffi,
    function::{Function, Port, callee, entry, functions, grid},
    units::{UnitKind, unit_of},
    views::{Collective, Consume, TrackAndTrigger},
    walk,
};
use t3c_schedule::{
    self as plan, Algorithm, Buffer, BufferId, CollectiveKind, Compute, Contraction, Grid, Program, SCHEMA,
    Schedule, Step, StepKind, Work,
};

use crate::{
    calls::call_counts,
    find_pairs::moved_bytes,
    group::Group,
    options,
    outline::{is_program, kernel_kind},
    pass::{Pass, PassContext, PassError},
    producers::chain_of_products,
    products::product_of,
};

/// The pass: it changes nothing and says whether the module has a schedule.
#[derive(Clone, Debug)]
pub struct CheckSchedule;

impl Pass for CheckSchedule {
    const NAME: &'static str = "t3-schedule";
    const SUMMARY: &'static str = "Check that the module can be read off as a schedule";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        let schedule = schedule(module)?;
        let steps: usize = schedule.programs.iter().map(|program| program.steps.len()).sum();
        let message = format!("{} programs, {steps} steps", schedule.programs.len());
        cx.analysis(module, "schedule", message);
        Ok(())
    }
}

/// The schedule of a module, checked.
///
/// # Errors
/// When an operation has no step (with its location), or the schedule would break one of its invariants.
pub fn schedule(module: Op<'_, '_>) -> Result<Schedule, PassError> {
    call_counts(module)?;
    let grid = grid(module).map_or(Grid { axes: vec![] }, |(_, grid)| grid);
    let mut exporter = Exporter { module, programs: vec![], index: HashMap::new() };
    let entry = exporter.program(entry(module)?)?;
    let mut schedule = Schedule { schema: SCHEMA.to_owned(), grid, programs: exporter.programs, entry };
    plan::connect(&mut schedule);
    plan::verify(&schedule).map_err(|error| PassError::Schedule(error.to_string()))?;
    Ok(schedule)
}

/// The functions that `t3c_schedule::Compute::kernel` may name: kernels and units.
pub fn kernels<'c, 'a>(module: Op<'c, 'a>) -> Vec<Function<'c, 'a>> {
    functions(module).into_iter().filter(|function| !is_program(*function)).collect()
}

struct Exporter<'c, 'a> {
    module: Op<'c, 'a>,
    programs: Vec<Program>,
    index: HashMap<String, usize>,
}

/// A program while it is written.
#[derive(Default)]
struct Draft {
    buffers: Vec<Buffer>,
    /// The buffer of each value, by key.
    of: HashMap<usize, BufferId>,
    /// Names of returned values, by key.
    names: HashMap<usize, String>,
    steps: Vec<Step>,
}

impl Draft {
    fn new_buffer(&mut self, name: String, r#type: TensorType) -> BufferId {
        self.buffers.push(Buffer { name, element: r#type.element, shape: r#type.shape });
        self.buffers.len() - 1
    }

    /// A new buffer for a value that `op` computes.
    fn define(&mut self, value: Val<'_, '_>, op: Op<'_, '_>) -> Result<BufferId, PassError> {
        let key = ffi::value_key(value);
        let name = self.names.get(&key).cloned().unwrap_or_else(|| render_location(op.location()));
        let id = self.new_buffer(name, TensorType::of(value)?);
        self.of.insert(key, id);
        Ok(id)
    }

    fn buffer(&self, value: Val<'_, '_>, user: Op<'_, '_>) -> Result<BufferId, PassError> {
        self.of.get(&ffi::value_key(value)).copied().ok_or_else(|| {
            let maker = ffi::value_owner(value).map_or("an argument".to_owned(), walk::name);
            PassError::at(
                user,
                format!("reads the result of {maker}, which is no step: run t3-outline first"),
            )
        })
    }

    fn push(&mut self, location: String, kind: StepKind) {
        let id = self.steps.len();
        self.steps.push(Step { id, after: vec![], location, kind });
    }

    /// A copy of a buffer, as a step.
    fn copy(&mut self, from: BufferId, location: &str) -> BufferId {
        let buffer = self.buffers[from].clone();
        self.buffers.push(buffer);
        let to = self.buffers.len() - 1;
        let compute = Compute { work: Work::Copy, kernel: None, reads: vec![from], writes: vec![to] };
        self.push(location.to_owned(), StepKind::Compute(compute));
        to
    }
}

impl<'c, 'a> Exporter<'c, 'a> {
    /// The index of a function's program. Callees come before their callers.
    fn program(&mut self, function: Function<'c, 'a>) -> Result<usize, PassError> {
        let name = function.name();
        if let Some(&index) = self.index.get(&name) {
            return Ok(index);
        }
        let mut draft = Draft::default();
        let mut arguments = Vec::new();
        for (number, (value, port)) in
            function.arguments().into_iter().zip(function.argument_ports()?).enumerate()
        {
            let id = draft.new_buffer(port_name(&port, "argument", number), port.r#type);
            draft.of.insert(ffi::value_key(value), id);
            arguments.push(id);
        }
        for (number, (value, port)) in
            function.results().into_iter().zip(function.result_ports()?).enumerate()
        {
            let name = port_name(&port, "result", number);
            draft.names.entry(ffi::value_key(value)).or_insert(name);
        }
        let body = function.body().ok_or_else(|| PassError::at(function.0, "has no body to run"))?;
        for op in walk::operations(body) {
            self.step(op, &mut draft)?;
        }
        let terminator = function.terminator().unwrap_or(function.0);
        let location = render_location(terminator.location());
        let mut results = Vec::new();
        for value in function.results() {
            let id = draft.buffer(value, terminator)?;
            // Each result has a buffer of its own.
            results.push(if results.contains(&id) { draft.copy(id, &location) } else { id });
        }
        let Draft { buffers, steps, .. } = draft;
        self.programs.push(Program { name: name.clone(), buffers, arguments, results, steps });
        self.index.insert(name, self.programs.len() - 1);
        Ok(self.programs.len() - 1)
    }

    fn step(&mut self, op: Op<'c, 'a>, draft: &mut Draft) -> Result<(), PassError> {
        let location = render_location(op.location());
        if let Some((product, contraction)) = product_of(op) {
            let compute = product_compute(op, &product, contraction, draft)?;
            draft.push(location, StepKind::Compute(compute));
        } else if let Some(collective) = Collective::cast(op) {
            let step = self.collective(collective, draft)?;
            draft.push(location, StepKind::Collective(step));
        } else if let Some(fused) = TrackAndTrigger::cast(op) {
            let step = self.fused(fused, draft)?;
            draft.push(location, StepKind::Fused(step));
        } else if let Some(consume) = Consume::cast(op) {
            let step = self.consume(consume, draft)?;
            draft.push(location, StepKind::Consume(step));
        } else if let Some(function) = callee(self.module, op) {
            self.call(op, function, draft)?;
        } else if !walk::is(op, "func.return") && !starts_products(op) {
            let message = format!("{} is no step: run t3-outline first", walk::name(op));
            return Err(PassError::at(op, message));
        }
        Ok(())
    }

    fn call(
        &mut self,
        op: Op<'c, 'a>,
        function: Function<'c, 'a>,
        draft: &mut Draft,
    ) -> Result<(), PassError> {
        let location = render_location(op.location());
        let work = work(function)?;
        let program = match work {
            Some(_) => None,
            None => Some(self.program(function)?),
        };
        let in_place = match program {
            Some(index) => returned_arguments(&self.programs[index]),
            None => updated_in_place(function),
        };
        let values: Vec<Val<'c, 'a>> = op.operands().collect();
        let mut arguments =
            values.iter().map(|value| draft.buffer(*value, op)).collect::<Result<Vec<_>, _>>()?;
        for &(_, argument) in &in_place {
            let others = arguments.iter().filter(|&&id| id == arguments[argument]).count();
            if others > 1 || ffi::uses(values[argument]).len() > 1 {
                arguments[argument] = draft.copy(arguments[argument], &location);
            }
        }
        let mut results = Vec::new();
        for (number, result) in op.results().enumerate() {
            let shared = in_place.iter().find(|(result, _)| *result == number);
            results.push(match shared {
                Some(&(_, argument)) => {
                    draft.of.insert(ffi::value_key(result.into()), arguments[argument]);
                    arguments[argument]
                }
                None => draft.define(result.into(), op)?,
            });
        }
        let kind = match (work, program) {
            (Some(work), _) => {
                let kernel = Some(function.name());
                StepKind::Compute(Compute { work, kernel, reads: arguments, writes: results })
            }
            (None, program) => StepKind::Call { program: program.unwrap_or(0), arguments, results },
        };
        draft.push(location, kind);
        Ok(())
    }

    fn collective(&self, view: Collective<'c, 'a>, draft: &mut Draft) -> Result<plan::Collective, PassError> {
        let group = Group::of(self.module, view)?;
        let input = draft.buffer(view.input()?, view.op)?;
        let output = draft.define(view.result()?, view.op)?;
        let whole = if view.kind == CollectiveKind::AllGather { output } else { input };
        Ok(plan::Collective {
            kind: view.kind,
            axes: group.axes,
            dimension: view.dimension().unwrap_or(0),
            concatenate: view.concatenate(),
            reduction: view.reduction(),
            bytes: match view.kind {
                CollectiveKind::AllToAll => moved_bytes(view.op, view.input()?),
                _ => draft.buffers[whole].bytes(),
            },
            algorithm: algorithm(view.kind),
            input,
            output,
        })
    }
}

/// Reduce-scatters and gathers travel the ring; an all-reduce that was not split sums in device order.
fn algorithm(kind: CollectiveKind) -> Algorithm {
    match kind {
        CollectiveKind::ReduceScatter | CollectiveKind::AllGather => Algorithm::Ring,
        CollectiveKind::AllReduce | CollectiveKind::AllToAll | CollectiveKind::AllSlice => Algorithm::Direct,
    }
}

fn port_name(port: &Port, role: &str, number: usize) -> String {
    if port.name.is_empty() { format!("{role} {number}") } else { port.name.clone() }
}

fn reads(op: Op<'_, '_>, product: &Generic<'_, '_>, draft: &Draft) -> Result<Vec<BufferId>, PassError> {
    product.inputs.iter().map(|input| draft.buffer(*input, op)).collect()
}

fn product_compute(
    op: Op<'_, '_>,
    product: &Generic<'_, '_>,
    contraction: Contraction,
    draft: &mut Draft,
) -> Result<Compute, PassError> {
    let reads = reads(op, product, draft)?;
    let write = draft.define(op.result(0)?.into(), op)?;
    Ok(Compute { work: Work::Contraction(contraction), kernel: None, reads, writes: vec![write] })
}

/// Whether an operation only serves products as the zero that they start from.
fn starts_products(op: Op<'_, '_>) -> bool {
    let known = ["linalg.fill", "tensor.empty", "arith.constant"].iter().any(|name| walk::is(op, name));
    known
        && op.results().all(|result| {
            ffi::uses(result.into()).into_iter().all(|(user, number)| match product_of(user) {
                Some((product, _)) => product.inputs.len() == number,
                None if chain_of_products(user).is_some() => number + 1 == user.operand_count(),
                None => starts_products(user),
            })
        })
}

/// What a call of `function` does, where it is one step: a unit or a kernel.
fn work(function: Function<'_, '_>) -> Result<Option<Work>, PassError> {
    if let Some(name) = function.unit() {
        let unit = unit_of(function)
            .ok_or_else(|| PassError::at(function.0, format!("`{name}` is no unit that a backend knows")))?;
        return Ok(Some(Work::Unit { name: unit.label(), flops: unit.flops() }));
    }
    Ok(kernel_kind(function).map(|kind| match kind.as_str() {
        "constant" => Work::Copy,
        _ => Work::Loops { flops: flops(function) },
    }))
}

fn flops(kernel: Function<'_, '_>) -> u64 {
    let generics = walk::walk(kernel.0).into_iter().filter(|op| walk::is(*op, "linalg.generic"));
    generics.filter_map(|op| Generic::read(op).ok()).map(|generic| generic.flops()).sum()
}

/// (result, argument) of what a unit updates in place.
fn updated_in_place(function: Function<'_, '_>) -> Vec<(usize, usize)> {
    match unit_of(function).map(|unit| unit.kind) {
        Some(UnitKind::AttentionPaged) => vec![(1, 3), (2, 4)],
        _ => vec![],
    }
}

/// (result, argument) of the arguments that a program returns, updated or not.
fn returned_arguments(program: &Program) -> Vec<(usize, usize)> {
    let argument = |id: &BufferId| program.arguments.iter().position(|argument| argument == id);
    let results = program.results.iter().enumerate();
    results.filter_map(|(number, id)| argument(id).map(|argument| (number, argument))).collect()
}

#[cfg(test)]
mod tests {
    use t3c_ir::{
        Builder, Context, Element, Location, Module,
        function::{Signature, add_function},
        units::{Unit, ensure},
    };

    use super::*;

    /// A private function `layer` that attends with a cache and returns it, and a `main` that calls it; `keeps`
    /// adds the old cache to what `main` returns.
    fn decode<'c>(context: &'c Context, keeps: bool) -> Module<'c> {
        let location = Location::unknown(context.mlir());
        let module = context.module(location);
        let q = TensorType::new([2, 1, 1, 2, 4], Element::F32);
        let unit = Unit::attention_paged(&q, 3, 2);
        let symbol = ensure(module.op(), &unit).unwrap();
        let ports = |types: &[TensorType]| types.iter().map(|r#type| Port::new("", r#type.clone())).collect();
        for (name, callee) in [("layer", symbol.as_str()), ("main", "layer")] {
            let public = name == "main";
            let mut results = unit.results.clone();
            if public && keeps {
                results.push(unit.arguments[3].clone());
            }
            let signature = Signature {
                name: name.into(),
                arguments: ports(&unit.arguments),
                results: ports(&results),
                public,
                unit: None,
            };
            let (op, block) = add_function(&module, &signature, location).unwrap();
            let arguments = Function(op).arguments();
            let b = Builder::at_end(context.mlir(), block, location);
            let mut values = b.call(callee, &arguments, &unit.results).unwrap();
            if public && keeps {
                values.push(arguments[3]);
            }
            b.ret(&values).unwrap();
        }
        module.verify().unwrap();
        module
    }

    #[test]
    fn a_cache_is_updated_in_place_through_calls() {
        let context = Context::new();
        let module = decode(&context, false);
        let schedule = schedule(module.op()).unwrap();
        let main = &schedule.programs[schedule.entry];
        assert_eq!(main.results[1..], main.arguments[3..5]);
        assert_eq!(main.steps.len(), 1);
        let layer = &schedule.programs[0];
        assert_eq!(layer.results[1..], layer.arguments[3..5]);
        let StepKind::Compute(compute) = &layer.steps[0].kind else { panic!("{:?}", layer.steps[0]) };
        assert!(matches!(&compute.work, Work::Unit { name, .. } if name == "attention_paged"));
        assert_eq!((compute.writes[1], compute.writes[2]), (compute.reads[3], compute.reads[4]));
        assert!(function_names(&module).contains(compute.kernel.as_ref().unwrap()));
    }

    #[test]
    fn a_cache_that_is_still_needed_is_copied_first() {
        let context = Context::new();
        let module = decode(&context, true);
        let schedule = schedule(module.op()).unwrap();
        let main = &schedule.programs[schedule.entry];
        let StepKind::Compute(copy) = &main.steps[0].kind else { panic!("{:?}", main.steps[0]) };
        assert_eq!((copy.work.clone(), copy.reads.clone()), (Work::Copy, vec![main.arguments[3]]));
        assert_eq!(main.results[1], copy.writes[0]);
        assert_eq!(main.results[3], main.arguments[3]);
    }

    fn function_names(module: &Module<'_>) -> Vec<String> {
        kernels(module.op()).into_iter().map(|kernel| kernel.name()).collect()
    }

    #[test]
    fn two_compilers_run_on_two_threads() {
        let compile = |repeats: usize| {
            for _ in 0..repeats {
                let context = Context::new();
                let mut module = decode(&context, false);
                let mut remarks = Vec::new();
                crate::run_passes(&mut module, &crate::pipelines::schedule(), &mut remarks).unwrap();
                assert_eq!(remarks.len(), 1, "{remarks:?}");
            }
        };
        std::thread::scope(|scope| {
            let threads = [scope.spawn(|| compile(3)), scope.spawn(|| compile(3))];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
