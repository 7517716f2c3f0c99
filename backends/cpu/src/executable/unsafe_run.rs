//! Running the plan: the one module that turns places into pointers and calls generated code.

use std::{cell::RefCell, ops::Range};

use t3c_runtime::{DeviceContext, StepKey};

use super::{
    Executable, State,
    exchange::Exchange,
    plan::{Home, Instance, ValueId},
    prepare::{FusedPlan, Gemm, IndexCheck, Prepared},
};
use crate::{
    Error,
    kernels::{
        AttentionGradients, AttentionInputs, AttentionShape, Cache, CacheShape, Epilogue, Output, PackedTree,
        Pages, Part, Region, Task,
    },
};

/// A device's memory during one run.
struct Memory {
    arena: *mut u8,
    arguments: Vec<*mut u8>,
    results: Vec<*mut u8>,
    scratch: *mut f32,
}

// SAFETY: each device's memory is used by that device's worker alone; what devices share goes through the
// runtime's protocol.
unsafe impl Sync for Memory {}

impl Executable {
    /// Runs every instance on every device. The state's entries have been checked against the ports.
    pub(super) fn execute(&self, state: &mut State) -> Result<(), Error> {
        let memories: Vec<Memory> = (0..self.arenas.len()).map(|device| self.memory(state, device)).collect();
        self.runtime.run(|device: &DeviceContext<'_>| {
            let memory = &memories[device.device() as usize];
            let stack = RefCell::new(vec![0; self.stack_entries]);
            let mut coordinates: Vec<i64> =
                self.grid.coordinates(device.device()).into_iter().map(i64::from).collect();
            coordinates.push(i64::from(device.device()));
            let worker = Worker { executable: self, memory, device, coordinates, stack };
            self.plan.instances.iter().try_for_each(|instance| worker.run(instance))
        })?;
        Ok(())
    }

    fn memory(&self, state: &State, device: usize) -> Memory {
        let start = |name: &str| {
            state.entries.get(name).map_or(std::ptr::null_mut(), |entry| entry.parts[device].start())
        };
        let scratch = &self.scratch[device];
        Memory {
            arena: self.arenas[device].start(),
            arguments: self.arguments.iter().map(|port| start(&port.name)).collect(),
            results: self.results.iter().map(|port| start(&super::pending(&port.name))).collect(),
            scratch: scratch.start().cast(),
        }
    }
}

/// One device's worker during one run.
struct Worker<'a> {
    executable: &'a Executable,
    memory: &'a Memory,
    device: &'a DeviceContext<'a>,
    /// Where the device stands along each axis, and its number.
    coordinates: Vec<i64>,
    /// Ancestors of the token at hand.
    stack: RefCell<Vec<i32>>,
}

impl Worker<'_> {
    fn place(&self, value: ValueId) -> *mut u8 {
        match self.executable.plan.values[value].home {
            Home::Argument(index) => self.memory.arguments[index],
            Home::Result(index) => self.memory.results[index],
            Home::Arena(offset) => self.memory.arena.wrapping_add(offset),
        }
    }

    fn floats(&self, value: ValueId) -> *mut f32 {
        self.place(value).cast()
    }

    fn bytes(&self, value: ValueId) -> usize {
        self.executable.plan.values[value].bytes()
    }

    /// A value's integers.
    fn ints(&self, value: ValueId) -> &[i32] {
        // SAFETY: the place holds the value's bytes for the whole run, and inputs of integers are not written by
        // any step that runs beside this one.
        unsafe { std::slice::from_raw_parts(self.place(value).cast::<i32>(), self.bytes(value) / 4) }
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

    fn step(&self, key: StepKey, prepared: Option<&Prepared>, instance: &Instance) -> Result<(), Error> {
        let location = || self.executable.locations[key.program][key.step].clone();
        match prepared {
            None => Ok(()),
            Some(Prepared::Gemm(gemm)) => {
                let output = Output::Planned { base: self.floats(instance.writes[0]) };
                self.gemm(gemm, &instance.reads, output, &gemm.plan.whole());
                Ok(())
            }
            Some(Prepared::Kernel { address, checks, coordinates, .. }) => {
                checks.iter().try_for_each(|check| self.check(check, instance, &location))?;
                self.kernel(*address, *coordinates, instance);
                Ok(())
            }
            Some(Prepared::Attention { shape, scale }) => self.attention(shape, *scale, instance, &location),
            Some(Prepared::AttentionGrad { shape, scale }) => {
                self.attention_grad(shape, *scale, instance, &location)
            }
            Some(Prepared::AttentionPaged { shape, cache, scale }) => {
                self.attention_paged(shape, *cache, *scale, instance, &location)
            }
            Some(Prepared::Fused(fused)) => self.fused(key, fused, instance),
            Some(Prepared::Exchange(exchange)) => self.exchange(exchange, instance.reads[0], instance.writes[0]),
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

    fn gemm(&self, gemm: &Gemm, reads: &[ValueId], output: Output, region: &Region) {
        let (a, b) = if gemm.swapped { (reads[1], reads[0]) } else { (reads[0], reads[1]) };
        let task = Task {
            kernels: self.executable.kernels.gemm(),
            region,
            output,
            epilogue: Epilogue::Store,
            workspace: self.memory.scratch,
        };
        // SAFETY: the plan was made for the operands' shapes, whose places hold them; the output holds the
        // region; the scratch is this worker's and holds the largest plan's workspace.
        unsafe { gemm.plan.run(&task, self.floats(a), self.floats(b), &mut |_| {}) };
    }

    fn kernel(&self, address: usize, coordinates: bool, instance: &Instance) {
        let mut pointers: Vec<*mut u8> = instance.reads.iter().map(|&value| self.place(value)).collect();
        if coordinates {
            pointers.push(self.coordinates.as_ptr().cast_mut().cast());
        }
        pointers.extend(instance.writes.iter().map(|&value| self.place(value)));
        pointers.push(self.memory.scratch.cast());
        // SAFETY: the packed entry takes an array of as many pointers as the kernel has parameters: inputs, the
        // device's coordinates where it asks for them, results, workspace. Each holds the tensor that the schedule names, and the code lives as long as
        // `self.executable`.
        unsafe {
            let entry: unsafe extern "C" fn(*const *mut u8) = std::mem::transmute(address);
            entry(pointers.as_ptr());
        }
    }

    fn inputs(&self, instance: &Instance) -> AttentionInputs {
        let [q, k, v] = [0, 1, 2].map(|operand| self.floats(instance.reads[operand]).cast_const());
        AttentionInputs { q, k, v }
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        scale: f32,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(kernels) = self.executable.kernels.attention(shape.head_dim) else { return Ok(()) };
        let tree = self.tree(shape, scale, instance, location)?;
        let part = Part { heads: 0..shape.kv_heads, tokens: 0..shape.tokens };
        let (inputs, out) = (self.inputs(instance), self.floats(instance.writes[0]));
        // SAFETY: all places hold tensors of this shape, and the tree passed its check.
        unsafe { kernels.forward(&tree, inputs, out, &part, &mut self.stack.borrow_mut()) };
        Ok(())
    }

    fn attention_grad(
        &self,
        shape: &AttentionShape,
        scale: f32,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(kernels) = self.executable.kernels.attention(shape.head_dim) else { return Ok(()) };
        let tree = self.tree(shape, scale, instance, location)?;
        let [dq, dk, dv] = [0, 1, 2].map(|result| self.floats(instance.writes[result]));
        let gradients = AttentionGradients { dout: self.floats(instance.reads[4]), dq, dk, dv };
        let (inputs, heads) = (self.inputs(instance), 0..shape.kv_heads);
        // SAFETY: as above; the scratch holds `backward_scratch_len` floats.
        unsafe {
            kernels.backward(
                &tree,
                inputs,
                gradients,
                heads,
                &mut self.stack.borrow_mut(),
                self.memory.scratch,
            )
        };
        Ok(())
    }

    fn tree<'t>(
        &'t self,
        shape: &AttentionShape,
        scale: f32,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<PackedTree<'t>, Error> {
        let subtree_end = self.ints(instance.reads[3]);
        shape
            .check_tree(subtree_end)
            .map_err(|source| Error::Tokens { location: location(), problem: source.to_string() })?;
        Ok(PackedTree { shape: *shape, subtree_end, scale })
    }

    fn attention_paged(
        &self,
        shape: &AttentionShape,
        cache_shape: CacheShape,
        scale: f32,
        instance: &Instance,
        location: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(kernels) = self.executable.kernels.attention(shape.head_dim) else { return Ok(()) };
        let (table, position) = (self.ints(instance.reads[5]), self.ints(instance.reads[6]));
        cache_shape
            .check(shape, table, position)
            .map_err(|source| Error::Tokens { location: location(), problem: source.to_string() })?;
        let cache = Cache { k: self.floats(instance.reads[3]), v: self.floats(instance.reads[4]) };
        let pages = Pages { shape: *shape, cache: cache_shape, block_table: table, position, scale };
        let (inputs, out) = (self.inputs(instance), self.floats(instance.writes[0]));
        let part = Part { heads: 0..shape.kv_heads, tokens: 0..shape.tokens };
        // SAFETY: the tables passed the check, and the caches are written by this worker alone.
        unsafe {
            kernels.write_cache(&pages, inputs, cache, 0..shape.tokens);
            kernels.attend_paged(&pages, inputs.q, cache, out, &part, &mut self.stack.borrow_mut());
        }
        Ok(())
    }

    /// The schedule's chunks in production order: each block is computed where the address space maps it, then
    /// announced to the tracker.
    fn fused(&self, key: StepKey, fused: &FusedPlan, instance: &Instance) -> Result<(), Error> {
        // SAFETY: the result's place holds the device's chunk, and nothing touches it until `finish` returns.
        let mut run = unsafe { self.device.begin_fused(key, self.floats(instance.writes[0]))? };
        for chunk in run.chunks() {
            for block in 0..chunk.blocks {
                let target = run.target(chunk.position, block)?;
                let range = run.block_range(chunk.position, block);
                self.block(fused, instance, &target, &range);
                run.arrived(chunk.position, block)?;
            }
        }
        run.finish()?;
        Ok(())
    }

    /// One block of the contribution: the first product stores it, later ones are computed aside and added, with
    /// the rounding of separate products.
    fn block(
        &self,
        fused: &FusedPlan,
        instance: &Instance,
        target: &t3c_runtime::BlockTarget,
        range: &Range<usize>,
    ) {
        for (index, gemm) in fused.products.iter().enumerate() {
            let reads = &instance.reads[2 * index..2 * index + 2];
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
            if index == 0 {
                self.gemm(
                    gemm,
                    reads,
                    Output::Dense { base: target.start, row_stride, batch_stride: 0 },
                    &region,
                );
                continue;
            }
            let aside = self.memory.scratch.wrapping_add(gemm_workspace(fused));
            self.gemm(gemm, reads, Output::Dense { base: aside, row_stride: cols, batch_stride: 0 }, &region);
            for row in 0..rows {
                // SAFETY: the target holds the block's rows at its stride, the scratch holds them densely, and the
                // two are different memory.
                unsafe {
                    let sum = std::slice::from_raw_parts_mut(target.start.add(row * row_stride), cols);
                    let part = std::slice::from_raw_parts(aside.add(row * cols), cols);
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            }
        }
    }

    fn exchange(&self, exchange: &Exchange, from: ValueId, to: ValueId) -> Result<(), Error> {
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
        readers.iter().zip(&instance.readers).try_for_each(|(prepared, reader)| {
            self.step(key, prepared.as_ref(), reader)
        })
    }
}

fn gemm_workspace(fused: &FusedPlan) -> usize {
    fused.products.iter().map(|gemm| gemm.plan.workspace_len()).max().unwrap_or(0).next_multiple_of(16)
}
