//! The oracle: evaluates a module on host tensors, all devices of its grid in lock step.
//!
//! Every pass and backend is tested against it: interpret before, interpret after, compare. It is slow and
//! obvious. Each SSA value holds one tensor a device; collectives combine them in the order of addition that
//! the schedule crate fixes, so that programs whose arithmetic agrees agree bit for bit.

mod collectives;
mod loops;
mod operations;
mod tensor;
mod value;

#[cfg(test)]
mod tests;

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use melior::ir::{BlockLike, operation::OperationLike};
use t3c_schedule::{Axis, Element, Grid};

use self::{
    collectives::{Exchange, concatenate},
    loops::LoopProgram,
    value::Value,
};
pub use self::{
    loops::erf,
    tensor::{Data, Tensor, gather, scatter},
};
use crate::{
    Blk, Error, Generic, Module, Op, TensorType, Val,
    attributes::integers,
    ffi,
    function::{self, Function},
    views::{Collective, Consume, TrackAndTrigger},
    walk,
};

/// Turns named linalg operations (`linalg.matmul`, `linalg.transpose`, …) into generics, which is the form
/// that passes and the interpreter read.
///
/// # Errors
/// When MLIR's pass fails.
pub fn generalize(module: &mut Module<'_>) -> Result<(), Error> {
    module.run("builtin.module(func.func(linalg-generalize-named-ops))")
}

/// One value a device.
type Lanes = Vec<Value>;

/// A compiled structured operation with what it reads.
struct Structured<'c, 'a> {
    generic: Generic<'c, 'a>,
    program: LoopProgram,
}

/// Evaluates functions of one module.
pub struct Interpreter<'c, 'a> {
    module: Op<'c, 'a>,
    grid: Grid,
    widen: bool,
    functions: HashMap<String, Function<'c, 'a>>,
    structured: RefCell<HashMap<usize, Rc<[Structured<'c, 'a>]>>>,
}

/// The values of one function's execution.
type Scope = HashMap<usize, Lanes>;

impl<'c, 'a> Interpreter<'c, 'a> {
    /// An interpreter of `module`, on as many devices as its grid has (one without a grid).
    ///
    /// The module must not change while the interpreter lives.
    pub fn new(module: Op<'c, 'a>) -> Self {
        let grid = function::grid(module)
            .map_or_else(|| Grid { axes: vec![Axis { name: "device".into(), size: 1 }] }, |(_, grid)| grid);
        let functions =
            function::functions(module).into_iter().map(|function| (function.name(), function)).collect();
        Self { module, grid, widen: false, functions, structured: RefCell::default() }
    }

    /// Computes f32 programs in f64, so that results can be checked beyond f32's precision. f32 inputs are
    /// taken as they are, f64 inputs are accepted in their place, and results are f64.
    pub fn widened(mut self) -> Self {
        self.widen = true;
        self
    }

    /// The same program on one device, whatever grid it names: for modules that are not partitioned yet.
    pub fn on_one_device(mut self) -> Self {
        self.grid.axes.iter_mut().for_each(|axis| axis.size = 1);
        self
    }

    /// The device grid.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Runs a function: `inputs[device][argument]` to `results[device][result]`.
    ///
    /// # Errors
    /// Inputs that do not fit the function, and operations without a meaning here, with their location.
    pub fn run(&self, entry: &str, inputs: &[Vec<Tensor>]) -> Result<Vec<Vec<Tensor>>, Error> {
        let function = self
            .functions
            .get(entry)
            .ok_or_else(|| Error::at(self.module, format!("the module has no function `{entry}`")))?;
        let devices = self.grid.devices() as usize;
        if inputs.len() != devices {
            return Err(Error::Invalid(format!("inputs for {} devices of {devices}", inputs.len())));
        }
        let arguments = function.arguments();
        let mut lanes: Vec<Lanes> = vec![Vec::with_capacity(devices); arguments.len()];
        for (device, inputs) in inputs.iter().enumerate() {
            if inputs.len() != arguments.len() {
                return Err(Error::Invalid(format!(
                    "`{entry}` takes {} inputs, device {device} has {}",
                    arguments.len(),
                    inputs.len()
                )));
            }
            for (index, (tensor, argument)) in inputs.iter().zip(&arguments).enumerate() {
                let value = Value::from_tensor(tensor, self.widen);
                let expected = self.type_of(*argument)?;
                if value.r#type != expected {
                    return Err(Error::Invalid(format!(
                        "input {index} of `{entry}`: expected {expected}, found {}",
                        tensor.r#type()
                    )));
                }
                lanes[index].push(value);
            }
        }
        let results = self.call(*function, lanes)?;
        (0..devices).map(|device| results.iter().map(|lanes| lanes[device].to_tensor()).collect()).collect()
    }

    /// Runs a function on a grid of one device.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    pub fn run_one(&self, entry: &str, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        Ok(self.run(entry, &[inputs.to_vec()])?.swap_remove(0))
    }

    fn type_of(&self, value: Val<'c, 'a>) -> Result<TensorType, Error> {
        let mut r#type = TensorType::of(value)?;
        if self.widen && r#type.element == Element::F32 {
            r#type.element = Element::F64;
        }
        Ok(r#type)
    }

    fn call(&self, function: Function<'c, 'a>, arguments: Vec<Lanes>) -> Result<Vec<Lanes>, Error> {
        let body = function.body().ok_or_else(|| Error::at(function.0, "has no body to interpret"))?;
        self.block(body, arguments, &mut Scope::new())
    }

    /// Runs a block and returns what its terminator yields.
    fn block(
        &self,
        block: Blk<'c, 'a>,
        arguments: Vec<Lanes>,
        scope: &mut Scope,
    ) -> Result<Vec<Lanes>, Error> {
        for (index, lanes) in arguments.into_iter().enumerate() {
            let argument: Val<'c, 'a> = block.argument(index)?.into();
            scope.insert(ffi::value_key(argument), lanes);
        }
        for operation in walk::operations(block) {
            if matches!(walk::name(operation).as_str(), "func.return" | "t3.yield") {
                return self.operands(operation, scope);
            }
            let results = self.operation(operation, scope)?;
            if results.len() != operation.result_count() {
                return Err(Error::at(operation, "gave another number of results than it declares"));
            }
            for (result, lanes) in operation.results().zip(results) {
                scope.insert(ffi::value_key(result.into()), lanes);
            }
        }
        Ok(Vec::new())
    }

    fn operands(&self, operation: Op<'c, 'a>, scope: &Scope) -> Result<Vec<Lanes>, Error> {
        operation.operands().map(|value| self.lanes(operation, value, scope).cloned()).collect()
    }

    fn lanes<'s>(&self, user: Op<'c, 'a>, value: Val<'c, 'a>, scope: &'s Scope) -> Result<&'s Lanes, Error> {
        scope.get(&ffi::value_key(value)).ok_or_else(|| Error::at(user, "uses a value that has no contents"))
    }

    fn operation(&self, operation: Op<'c, 'a>, scope: &mut Scope) -> Result<Vec<Lanes>, Error> {
        if Generic::is(operation) {
            return self.structured(operation, scope);
        }
        if let Some(collective) = Collective::cast(operation) {
            let input = self.lanes(operation, collective.input()?, scope)?;
            return Ok(vec![self.collective(collective, input)?]);
        }
        if let Some(fused) = TrackAndTrigger::cast(operation) {
            return Ok(vec![self.track_and_trigger(fused, scope)?]);
        }
        if let Some(consume) = Consume::cast(operation) {
            return self.consume(consume, scope);
        }
        match walk::name(operation).as_str() {
            "func.call" => {
                let callee = function::callee(self.module, operation)
                    .ok_or_else(|| Error::at(operation, "calls a function that the module does not have"))?;
                self.call(callee, self.operands(operation, scope)?)
            }
            "shard.sharding" => Ok(vec![Vec::new()]),
            "shard.shard" => {
                let value = operation.operand(0)?;
                Ok(vec![self.lanes(operation, value, scope)?.clone()])
            }
            "shard.process_multi_index" => Ok(self.process_multi_index(operation)),
            "shard.process_linear_index" => {
                Ok(vec![(0..self.grid.devices()).map(|device| Value::int(i64::from(device))).collect()])
            }
            _ => self.local(operation, scope),
        }
    }

    fn structured(&self, operation: Op<'c, 'a>, scope: &Scope) -> Result<Vec<Lanes>, Error> {
        let results = self.compiled(operation)?;
        results.iter().map(|structured| self.result(operation, structured, scope)).collect()
    }

    fn result(
        &self,
        operation: Op<'c, 'a>,
        structured: &Structured<'c, 'a>,
        scope: &Scope,
    ) -> Result<Lanes, Error> {
        let generic = &structured.generic;
        let find = |value: &Val<'c, 'a>| self.lanes(operation, *value, scope);
        let inputs = generic.inputs.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let captures = generic.captures.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let init = find(&generic.init)?;
        (0..init.len())
            .map(|device| {
                let inputs: Vec<_> = inputs.iter().map(|lanes| &*lanes[device].data).collect();
                let captures: Vec<_> = captures.iter().map(|lanes| &lanes[device]).collect();
                let mut out = (*init[device].data).clone();
                structured
                    .program
                    .run(&inputs, &captures, &mut out)
                    .map_err(|message| Error::at(operation, message))?;
                Ok(Value::new(init[device].r#type.clone(), out))
            })
            .collect()
    }

    fn compiled(&self, operation: Op<'c, 'a>) -> Result<Rc<[Structured<'c, 'a>]>, Error> {
        let key = ffi::op_key(operation);
        if let Some(found) = self.structured.borrow().get(&key) {
            return Ok(Rc::clone(found));
        }
        let compile = |generic: Generic<'c, 'a>| {
            let operands = generic.inputs.iter().chain([&generic.init]).map(|value| self.type_of(*value));
            let operands = operands.collect::<Result<Vec<_>, _>>()?;
            let program = LoopProgram::new(&generic, &operands, self.widen);
            Ok(Structured { generic, program })
        };
        let compiled =
            Generic::read_all(operation)?.into_iter().map(compile).collect::<Result<Vec<_>, Error>>()?;
        let structured: Rc<[_]> = compiled.into();
        self.structured.borrow_mut().insert(key, Rc::clone(&structured));
        Ok(structured)
    }

    fn collective(&self, collective: Collective<'c, 'a>, input: &Lanes) -> Result<Lanes, Error> {
        let dimension = collective.dimension().unwrap_or(0);
        let exchange = Exchange {
            kind: collective.kind,
            grid: &self.grid,
            axes: collective.axes(),
            dimension,
            concatenate: collective.concatenate().unwrap_or(dimension),
            reduction: collective.known_reduction()?,
        };
        exchange.run(input).map_err(|message| Error::at(collective.op, message))
    }

    fn track_and_trigger(&self, fused: TrackAndTrigger<'c, 'a>, scope: &Scope) -> Result<Lanes, Error> {
        let body = fused.body().ok_or_else(|| Error::at(fused.0, "has no region"))?;
        let inputs = self.operands(fused.0, scope)?;
        let contribution = self.block(body, inputs, &mut Scope::new())?.pop();
        let contribution = contribution.ok_or_else(|| Error::at(fused.0, "yields nothing"))?;
        let exchange = Exchange {
            kind: fused.collective(),
            grid: &self.grid,
            axes: fused.axes(),
            dimension: fused.dimension(),
            concatenate: fused.concatenate().unwrap_or(fused.dimension()),
            reduction: t3c_schedule::Reduction::Sum,
        };
        exchange.run(&contribution).map_err(|message| Error::at(fused.0, message))
    }

    fn consume(&self, consume: Consume<'c, 'a>, scope: &Scope) -> Result<Vec<Lanes>, Error> {
        let body = consume.body().ok_or_else(|| Error::at(consume.0, "has no region"))?;
        let mut inputs = self.operands(consume.0, scope)?;
        let exchange = Exchange {
            kind: consume.collective(),
            grid: &self.grid,
            axes: consume.axes(),
            dimension: consume.dimension(),
            concatenate: consume.part_dimension(),
            reduction: t3c_schedule::Reduction::Sum,
        };
        if let Some(first) = inputs.first_mut() {
            *first = exchange.run(first).map_err(|message| Error::at(consume.0, message))?;
        }
        self.block(body, inputs, &mut Scope::new())
    }

    fn process_multi_index(&self, operation: Op<'c, 'a>) -> Vec<Lanes> {
        let axes = integers(operation, "axes").unwrap_or_default();
        let axes: Vec<usize> = if axes.is_empty() {
            (0..self.grid.axes.len()).collect()
        } else {
            axes.into_iter().map(|axis| axis as usize).collect()
        };
        let coordinate = |axis: usize, device| {
            self.grid.coordinates(device).get(axis).map_or(0, |&coordinate| i64::from(coordinate))
        };
        axes.into_iter()
            .map(|axis| (0..self.grid.devices()).map(|d| Value::int(coordinate(axis, d))).collect())
            .collect()
    }
}
