//! Running the plan: turns places into pointers and calls compiled functions. Products and attention, which call
//! kernels of their own, are in the modules beside it.

use std::ops::Range;

use t3c_runtime::{DeviceContext, StepKey};

use super::{
    Executable, State,
    exchange::Exchange,
    packs::{self, Place},
    plan::{Home, Instance, ValueId},
    prepare::{IndexCheck, Kernel, Prepared},
};
use crate::{Error, unsafe_team::Team};

/// A device's memory during one run.
pub(super) struct Memory {
    arena: *mut u8,
    arguments: Vec<*mut u8>,
    results: Vec<*mut u8>,
    /// Packed weights.
    pub(super) packed: Vec<*mut f32>,
    /// Scratch memory of each thread.
    pub(super) scratch: Vec<*mut f32>,
    /// Entries for the tokens in sight, of each thread.
    pub(super) stacks: Vec<*mut i32>,
    /// Memory that the threads share within a step: operands packed on the way.
    pub(super) shared: *mut f32,
    /// A block of a later product of a fused step, before it is added.
    pub(super) aside: *mut f32,
}

// SAFETY: each device's memory is used by that device's worker alone, and by its team within a step, in which
// parts touch memory of their own; what devices share goes through the runtime's protocol.
unsafe impl Sync for Memory {}

impl Executable {
    /// Runs every instance on every device. The state's entries have been checked against the ports.
    pub(super) fn execute(&self, state: &mut State, places: &[Place]) -> Result<(), Error> {
        let memories: Vec<Memory> =
            (0..self.arenas.len()).map(|device| self.memory(state, places, device)).collect();
        self.runtime.run(|device: &DeviceContext<'_>| {
            let index = device.device() as usize;
            let mut coordinates: Vec<i64> =
                self.grid.coordinates(device.device()).into_iter().map(i64::from).collect();
            coordinates.push(i64::from(device.device()));
            let local = Local { executable: self, memory: &memories[index], team: &self.teams[index] };
            let worker = Worker { local, device, coordinates };
            for (pack, _) in places.iter().enumerate().filter(|(_, place)| place.stale) {
                worker.pack_weight(pack);
            }
            let joined = |_: &Instance, next: &Instance| next.joined;
            self.plan.instances.chunk_by(joined).try_for_each(|instances| worker.run_joined(instances))
        })?;
        Ok(())
    }

    fn memory(&self, state: &State, places: &[Place], device: usize) -> Memory {
        let start = |name: &str| {
            state.entries.get(name).map_or(std::ptr::null_mut(), |entry| entry.parts[device].start())
        };
        let packed = |(pack, place): (&packs::Pack, &Place)| {
            let entry = state.entries.get(&self.arguments[pack.argument].name);
            entry.map_or(std::ptr::null_mut(), |entry| entry.packed[place.copy].parts[device].start().cast())
        };
        let threads = &self.scratch[device];
        Memory {
            arena: self.arenas[device].start(),
            arguments: self.arguments.iter().map(|port| start(&port.name)).collect(),
            results: self.results.iter().map(|port| start(&super::pending(&port.name))).collect(),
            packed: self.packs.iter().zip(places).map(packed).collect(),
            scratch: threads.iter().map(|thread| thread.floats.start().cast()).collect(),
            stacks: threads.iter().map(|thread| thread.stack.start().cast()).collect(),
            shared: self.shared[device].start().cast(),
            aside: self.asides[device].start().cast(),
        }
    }
}

/// One device's worker during one run.
pub(super) struct Worker<'a> {
    pub(super) local: Local<'a>,
    pub(super) device: &'a DeviceContext<'a>,
    /// Where the device stands along each axis, and its number.
    coordinates: Vec<i64>,
}

/// What a device's whole team may use within a step.
#[derive(Clone, Copy)]
pub(super) struct Local<'a> {
    pub(super) executable: &'a Executable,
    pub(super) memory: &'a Memory,
    pub(super) team: &'a Team,
}

/// A compiled function and the memory that it works on.
pub(super) struct Follower<'k> {
    kernel: &'k Kernel,
    pointers: Vec<*mut u8>,
}

impl Local<'_> {
    /// Some rows of a kernel.
    ///
    /// # Safety
    /// Nobody else touches the rows of its results meanwhile, or writes those of its operands.
    pub(super) unsafe fn rows(&self, follower: &Follower<'_>, rows: Range<usize>, thread: usize) {
        let mut pointers = follower.pointers.clone();
        pointers.push(self.memory.scratch[thread].cast());
        // SAFETY: the packed entry takes an array of as many pointers as the kernel has parameters: inputs, the
        // device's coordinates where it asks for them, results, workspace. Each holds the tensor that the schedule
        // names, the workspace is this thread's, and the code lives as long as the executable.
        unsafe {
            let entry: unsafe extern "C" fn(*const *mut u8, i64, i64) =
                std::mem::transmute(follower.kernel.address);
            entry(pointers.as_ptr(), rows.start as i64, rows.end as i64);
        }
    }
}

impl<'a> std::ops::Deref for Worker<'a> {
    type Target = Local<'a>;

    fn deref(&self) -> &Local<'a> {
        &self.local
    }
}

/// What the threads of a step share: memory of which each part touches its own.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) T);

// SAFETY: whoever makes one answers for what parts do with it.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    pub(super) fn get(&self) -> T {
        self.0
    }
}

impl Worker<'_> {
    pub(super) fn place(&self, value: ValueId) -> *mut u8 {
        match self.executable.plan.values[value].home {
            Home::Argument(index) => self.memory.arguments[index],
            Home::Result(index) => self.memory.results[index],
            Home::Arena(offset) => self.memory.arena.wrapping_add(offset),
        }
    }

    /// The caller's argument of this index.
    pub(super) fn argument(&self, index: usize) -> *const f32 {
        self.memory.arguments[index].cast_const().cast()
    }

    pub(super) fn floats(&self, value: ValueId) -> *mut f32 {
        self.place(value).cast()
    }

    pub(super) fn bytes(&self, value: ValueId) -> usize {
        self.executable.plan.values[value].bytes()
    }

    /// A value's integers.
    pub(super) fn ints(&self, value: ValueId) -> &[i32] {
        // SAFETY: the place holds the value's bytes for the whole run, and inputs of integers are not written by
        // any step that runs beside this one.
        unsafe { std::slice::from_raw_parts(self.place(value).cast::<i32>(), self.bytes(value) / 4) }
    }

    /// A product and the kernels of rows that run on its blocks as they are finished, or one instance.
    fn run_joined(&self, instances: &[Instance]) -> Result<(), Error> {
        let prepared =
            |instance: &Instance| self.executable.prepared[instance.program][instance.step?].as_ref();
        let [first, rest @ ..] = instances else { return Ok(()) };
        let (Some(Prepared::Gemm(gemm)), false) = (prepared(first), rest.is_empty()) else {
            return instances.iter().try_for_each(|instance| self.run(instance));
        };
        let followers: Vec<Follower<'_>> = rest
            .iter()
            .filter_map(|instance| match prepared(instance) {
                Some(Prepared::Kernel(kernel)) => {
                    Some(Follower { kernel, pointers: self.pointers(kernel, instance) })
                }
                _ => None,
            })
            .collect();
        self.product(gemm, first, &followers);
        Ok(())
    }

    fn run(&self, instance: &Instance) -> Result<(), Error> {
        let Some(step) = instance.step else {
            let (from, to) = (instance.reads[0], instance.writes[0]);
            // SAFETY: both places hold the value's bytes; distinct values do not overlap while both live.
            unsafe { std::ptr::copy(self.place(from), self.place(to), self.bytes(to)) };
            return Ok(());
        };
        let key = StepKey { program: instance.program, step };
        self.step(key, self.executable.prepared[instance.program][step].as_ref(), instance)
    }

    pub(super) fn step(
        &self,
        key: StepKey,
        prepared: Option<&Prepared>,
        instance: &Instance,
    ) -> Result<(), Error> {
        let location = || self.executable.locations[key.program][key.step].clone();
        match prepared {
            None => Ok(()),
            Some(Prepared::Gemm(gemm)) => {
                self.product(gemm, instance, &[]);
                Ok(())
            }
            Some(Prepared::Kernel(kernel)) => {
                kernel.checks.iter().try_for_each(|check| self.check(check, instance, &location))?;
                self.kernel(kernel, instance);
                Ok(())
            }
            Some(Prepared::Attention { shape, scores }) => {
                self.attention(shape, *scores, instance, &location)
            }
            Some(Prepared::AttentionGrad { shape, scores }) => {
                self.attention_grad(shape, *scores, instance, &location)
            }
            Some(Prepared::AttentionPaged { shape, cache, scores }) => {
                self.attention_paged(shape, *cache, *scores, instance, &location)
            }
            Some(Prepared::Add(gemm)) => {
                self.added_product(gemm, instance);
                Ok(())
            }
            Some(Prepared::Route(routing)) => {
                self.route(routing, instance);
                Ok(())
            }
            Some(Prepared::Grouped(grouped)) => self.grouped(grouped, instance, &location),
            Some(Prepared::GroupedGrad(grouped)) => self.grouped_grad(grouped, instance, &location),
            Some(Prepared::Fused(fused)) => self.fused(key, fused, instance),
            Some(Prepared::Exchange(exchange)) => {
                self.exchange(exchange, instance.reads[0], instance.writes[0])
            }
            Some(Prepared::Consume(exchange, readers)) => self.consume(key, exchange, readers, instance),
        }
    }

    fn check(
        &self,
        check: &IndexCheck,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let indices = self.ints(instance.reads[check.operand]);
        let wrong = indices
            .iter()
            .position(|&index| usize::try_from(index).map_or(true, |index| index >= check.rows));
        match wrong {
            None => Ok(()),
            Some(position) => Err(Error::Index {
                location: location(),
                index: indices[position],
                position,
                rows: check.rows,
            }),
        }
    }

    /// What the packed entry of a kernel takes, but for the workspace.
    fn pointers(&self, kernel: &Kernel, instance: &Instance) -> Vec<*mut u8> {
        let mut pointers: Vec<*mut u8> = instance.reads.iter().map(|&value| self.place(value)).collect();
        if kernel.needs.coordinates {
            pointers.push(self.coordinates.as_ptr().cast_mut().cast());
        }
        pointers.extend(instance.writes.iter().map(|&value| self.place(value)));
        pointers
    }

    fn kernel(&self, kernel: &Kernel, instance: &Instance) {
        self.follow(&Follower { kernel, pointers: self.pointers(kernel, instance) });
    }

    /// All rows of a kernel.
    pub(super) fn follow(&self, follower: &Follower<'_>) {
        /// Elements that one thread gets through in less time than it takes to wake another.
        const SMALL: usize = 1 << 13;
        let rows = follower.kernel.needs.rows.as_ref();
        let (count, elements) = rows.map_or((1, 0), |rows| (rows.count, rows.count * rows.elements));
        let parts = (elements / SMALL).clamp(1, 4 * self.team.threads()).min(count);
        let (local, shared) = (self.local, Shared(follower));
        self.team.run(parts, &|part, thread| {
            let rows = count * part / parts..count * (part + 1) / parts;
            // SAFETY: parts write rows of their own.
            unsafe { local.rows(shared.get(), rows, thread) };
        });
    }

    pub(super) fn exchange(&self, exchange: &Exchange, from: ValueId, to: ValueId) -> Result<(), Error> {
        let group = self.device.group(&exchange.axes)?;
        // SAFETY: both places hold their values and do not overlap: the operand lives until this step is over.
        let (input, output) = unsafe {
            (
                std::slice::from_raw_parts(self.place(from).cast_const(), self.bytes(from)),
                std::slice::from_raw_parts_mut(self.place(to), self.bytes(to)),
            )
        };
        if !exchange.reduces() {
            return exchange.exchange(&group, input, output);
        }
        // SAFETY: as above; `Exchange::new` let only floats through.
        let (input, output) = unsafe {
            (
                std::slice::from_raw_parts(self.floats(from).cast_const(), input.len() / 4),
                std::slice::from_raw_parts_mut(self.floats(to), output.len() / 4),
            )
        };
        exchange.reduce(&group, input, output)
    }

    /// A gather and everything that reads it.
    fn consume(
        &self,
        key: StepKey,
        exchange: &Exchange,
        readers: &[Option<Prepared>],
        instance: &Instance,
    ) -> Result<(), Error> {
        self.exchange(exchange, instance.reads[0], instance.writes[0])?;
        readers
            .iter()
            .zip(&instance.readers)
            .try_for_each(|(prepared, reader)| self.step(key, prepared.as_ref(), reader))
    }
}
