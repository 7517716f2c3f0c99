//! Executables: a schedule compiled for the host, run over named tensors on one worker a device.
//!
//! The schedule's steps run in its order. A fused step's products write each block where the address space says,
//! tell the tracker, and the arrival that meets the threshold moves the block on: the plain collective is gone.

mod emit;
mod exchange;
mod packs;
mod plan;
mod prepare;
mod state;
#[cfg(test)]
mod tests;
mod unsafe_attention;
mod unsafe_experts;
mod unsafe_products;
mod unsafe_run;

use std::{sync::Arc, time::Duration};

use t3c_ir::{Context, Module, Splits, TensorType, function::functions};
use t3c_runtime::Runtime;
use t3c_schedule::{Element, Grid, Schedule};

pub use emit::native_code;
pub use plan::{Home, Instance, Plan, Value, ValueId};
pub use state::State;

use crate::{
    Error,
    kernels::{Isa, Jit, JitBuilder, Kernels, Machine},
    lower::lower,
    unsafe_memory::Aligned,
    unsafe_team::Team,
};
use packs::Pack;
use prepare::{Preparation, Prepared};

/// How an executable is made.
#[derive(Debug, Default)]
pub struct Options {
    /// The instruction set, where not the host's best.
    pub isa: Option<Isa>,
    /// How long a wait for another device may last.
    pub timeout: Option<Duration>,
    /// Whether to record what the trackers do.
    pub trace: bool,
    /// Threads of each device; 0 for the machine's cores divided among the devices. Results do not depend on it.
    pub threads: usize,
    /// Random delays at every store, for tests.
    pub delays: Option<t3c_runtime::Delays>,
}

/// An argument or result of the entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The whole tensor's type.
    pub r#type: TensorType,
    /// How it is divided among the devices.
    pub split: Splits,
}

/// A compiled schedule.
pub struct Executable {
    grid: Grid,
    plan: Plan,
    prepared: Vec<Vec<Option<Prepared>>>,
    locations: Vec<Vec<String>>,
    arguments: Vec<Port>,
    results: Vec<Port>,
    runtime: Runtime,
    kernels: Kernels,
    teams: Vec<Team>,
    arenas: Vec<Aligned>,
    scratch: Vec<Vec<ThreadMemory>>,
    shared: Vec<Aligned>,
    asides: Vec<Aligned>,
    packs: Vec<Pack>,
    stack_entries: usize,
}

/// What each thread of a device has to itself.
struct ThreadMemory {
    floats: Aligned,
    stack: Aligned,
}

impl std::fmt::Debug for Executable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executable")
            .field("arguments", &self.arguments)
            .field("results", &self.results)
            .finish()
    }
}

impl Executable {
    /// Compiles `schedule`, whose kernels are functions of `module`.
    ///
    /// # Errors
    /// When a step has no native code, or compiling fails; the text names the place in the model.
    pub fn new(
        context: &Context,
        module: &Module<'_>,
        schedule: &Schedule,
        options: Options,
    ) -> Result<Self, Error> {
        check_elements(schedule)?;
        let machine = match options.isa {
            Some(isa) => Machine::with_isa(isa)?,
            None => Machine::host()?,
        };
        let mut jit = JitBuilder::new(&machine)?;
        let symbols = prepare::kernel_symbols(schedule);
        let all = functions(module.op());
        let kernels: Vec<_> = symbols
            .iter()
            .filter_map(|symbol| all.iter().copied().find(|function| function.name() == *symbol))
            .collect();
        let units = prepare::units(module);
        let compiled = lower(context, &kernels, &mut jit)?;
        let heads = prepare::heads(schedule, &units);
        Kernels::emit(&mut jit, &heads)?;
        let code: Arc<Jit> = Arc::new(jit.finish()?);
        let kernels = Kernels::from_code(&machine, &heads, Arc::clone(&code))?;
        let preparation =
            Preparation { schedule, machine: &machine, compiled: &compiled, code: &code, units: &units };
        let prepared = preparation.all()?;
        let mut plan = Plan::new(schedule, &|instances| prepare::joins(&prepared, instances))?;
        let runtime_options =
            t3c_runtime::Options { timeout: options.timeout, trace: options.trace, delays: options.delays };
        let devices = schedule.grid.devices();
        let scratch_floats = prepare::scratch_floats(&prepared, &machine);
        let stack_entries = prepare::stack_entries(&prepared);
        let entry = &schedule.programs[schedule.entry];
        let function = t3c_ir::function::entry(module.op())?;
        let (argument_ports, result_ports) = (function.argument_ports()?, function.result_ports()?);
        if (argument_ports.len(), result_ports.len()) != (entry.arguments.len(), entry.results.len()) {
            return Err(t3c_ir::Error::at(function.0, "does not match its schedule").into());
        }
        let arguments = whole_ports(&argument_ports, "in", &schedule.grid)?;
        let results = whole_ports(&result_ports, "out", &schedule.grid)?;
        let packs = packs::find_packs(&mut plan, &prepared, (&arguments, &results));
        let threads = threads_of(options.threads, devices);
        let per_device = |bytes: usize| (0..devices).map(|_| Aligned::zeroed(bytes)).collect::<Vec<_>>();
        let thread = || ThreadMemory {
            floats: Aligned::zeroed(scratch_floats * 4),
            stack: Aligned::zeroed(stack_entries * 4),
        };
        Ok(Self {
            arguments,
            results,
            runtime: Runtime::new(schedule, runtime_options)?,
            locations: schedule
                .programs
                .iter()
                .map(|program| program.steps.iter().map(|step| step.location.clone()).collect())
                .collect(),
            grid: schedule.grid.clone(),
            teams: (0..devices).map(|_| Team::new(threads)).collect(),
            arenas: per_device(plan.arena),
            scratch: (0..devices).map(|_| (0..threads).map(|_| thread()).collect()).collect(),
            shared: per_device(prepare::shared_floats(&prepared, &machine) * 4),
            asides: per_device(prepare::aside_floats(&prepared) * 4),
            packs,
            stack_entries,
            plan,
            prepared,
            kernels,
        })
    }

    /// What the entry takes.
    pub fn arguments(&self) -> &[Port] {
        &self.arguments
    }

    /// What the entry returns.
    pub fn results(&self) -> &[Port] {
        &self.results
    }

    /// The device grid.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Bytes of temporaries a device.
    pub fn arena_bytes(&self) -> usize {
        self.plan.arena
    }

    /// The compiled code.
    pub fn code(&self) -> &Arc<Jit> {
        self.kernels.code()
    }

    /// What the trackers did since the last call, where recording is on.
    pub fn take_trace(&self) -> Vec<t3c_runtime::Event> {
        self.runtime.take_trace()
    }

    /// An empty state on this executable's devices.
    pub fn state(&self) -> State {
        State::new(&self.grid)
    }

    /// Runs the entry once: arguments are read from `state` by name, results replace the entries of their names.
    ///
    /// # Errors
    /// When an argument is missing or of another type, an index is out of range, or a worker fails.
    pub fn run(&mut self, state: &mut State) -> Result<(), Error> {
        for port in &self.arguments {
            let entry =
                state.entries.get(&port.name).ok_or_else(|| state::input(&port.name, "is missing".into()))?;
            if entry.whole != port.r#type || entry.split != port.split {
                let problem = format!("is a {}, expected {}", entry.whole, port.r#type);
                return Err(state::input(&port.name, problem));
            }
        }
        let fresh: Vec<usize> = self.fresh_results();
        for &index in &fresh {
            let port = &self.results[index];
            let bytes = self.plan.values[self.plan.results[index]].bytes();
            state.reserve(&pending(&port.name), &port.r#type, &port.split, bytes);
        }
        let places = packs::places(&mut self.packs, &self.arguments, state);
        self.execute(state, &places)?;
        packs::packed(&self.packs, &places, &self.arguments, state);
        for &index in &fresh {
            let name = &self.results[index].name;
            if let Some(mut new) = state.entries.remove(&pending(name)) {
                new.written();
                // The old storage becomes the next run's: two runs never allocate.
                if let Some(old) = state.entries.get_mut(name) {
                    std::mem::swap(old, &mut new);
                    state.entries.insert(pending(name), new);
                } else {
                    state.entries.insert(name.clone(), new);
                }
            }
        }
        Ok(())
    }

    /// Results that do not live in an argument.
    fn fresh_results(&self) -> Vec<usize> {
        (0..self.results.len())
            .filter(|&index| self.plan.values[self.plan.results[index]].home == Home::Result(index))
            .collect()
    }
}

/// Threads of each of `devices`.
fn threads_of(wanted: usize, devices: u32) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    if wanted > 0 { wanted } else { (cores() / devices.max(1) as usize).max(1) }
}

/// Where a result is written while the argument of the same name is still read.
fn pending(name: &str) -> String {
    format!("{name} (pending)")
}

fn check_elements(schedule: &Schedule) -> Result<(), Error> {
    for buffer in schedule.programs.iter().flat_map(|program| &program.buffers) {
        if !matches!(buffer.element, Element::F32 | Element::I32 | Element::I64 | Element::I1) {
            return Err(Error::Unsupported {
                location: buffer.name.clone(),
                what: format!("{:?}", buffer.element),
                expected: "f32 (use --dtype f32)".into(),
            });
        }
    }
    Ok(())
}

/// Ports with their whole types; those without a name are called by their number.
fn whole_ports(ports: &[t3c_ir::function::Port], prefix: &str, grid: &Grid) -> Result<Vec<Port>, Error> {
    let mut whole = ports.iter().map(|port| whole_port(port, grid)).collect::<Result<Vec<_>, _>>()?;
    for (index, port) in whole.iter_mut().enumerate().filter(|(_, port)| port.name.is_empty()) {
        port.name = format!("{prefix}/{index}");
    }
    Ok(whole)
}

/// A partitioned port with its whole type.
fn whole_port(port: &t3c_ir::function::Port, grid: &Grid) -> Result<Port, Error> {
    let split = port.splits();
    let shape = t3c_ir::splits::unblock(&port.r#type.shape, &split, grid)
        .map_err(|error| state::input(&port.name, error.to_string()))?;
    let whole = TensorType::new(shape, port.r#type.element);
    Ok(Port { name: port.name.clone(), r#type: whole, split })
}
