//! Walks a function backwards and writes the gradient of each operation.

use std::collections::{BTreeMap, HashMap, HashSet};

use melior::ir::{BlockLike, Location, ValueLike, operation::OperationLike};
use t3c_ir::{
    Blk, Builder, Error, Op, TensorType, Val,
    attributes::named,
    ffi,
    function::{self, Function},
    units::{self, Unit, UnitKind},
    walk,
};

use super::{
    activity::{Activity, operations},
    structured::{self, Rule},
};

/// What the backward function of a differentiated function takes and gives.
#[derive(Clone, Debug)]
pub struct Callee {
    /// Its symbol.
    pub symbol: String,
    /// The results of the forward function whose gradients it takes first, …
    pub results: Vec<usize>,
    /// … and then these values of the forward call.
    pub captured: Vec<Captured>,
    /// The arguments of the forward function whose gradients it returns.
    pub arguments: Vec<usize>,
    /// Types of those gradients.
    pub gradients: Vec<TensorType>,
}

/// A value of the forward call that the backward needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captured {
    /// An argument.
    Argument(usize),
    /// A result, added to the forward function for this purpose.
    Saved(usize),
}

/// Where the gradient of one function is being written.
pub struct Transpose<'t, 'c, 'a> {
    module: Op<'c, 'a>,
    callees: &'t HashMap<String, Callee>,
    active: HashSet<usize>,
    b: Builder<'c, 'a>,
    /// The block of the backward function; `None` where the gradient stands in the function itself.
    block: Option<Blk<'c, 'a>>,
    /// Forward values at the place of the gradient.
    forward: HashMap<usize, Val<'c, 'a>>,
    /// Forward values that became arguments of the backward function, in order.
    pub captured: Vec<Val<'c, 'a>>,
    /// Gradients by value, the last use's first.
    gradients: HashMap<usize, Vec<Val<'c, 'a>>>,
}

impl<'t, 'c, 'a> Transpose<'t, 'c, 'a> {
    /// Gradients of `function` written by `b`; into `block`, where that is another function's.
    pub fn new(
        module: Op<'c, 'a>,
        activity: &Activity<'c, 'a>,
        callees: &'t HashMap<String, Callee>,
        function: Function<'c, 'a>,
        b: Builder<'c, 'a>,
        block: Option<Blk<'c, 'a>>,
    ) -> Self {
        Self {
            module,
            callees,
            active: activity.values(function),
            b,
            block,
            forward: HashMap::new(),
            captured: Vec::new(),
            gradients: HashMap::new(),
        }
    }

    /// Adds to the gradient of a forward value.
    pub fn give(&mut self, value: Val<'c, 'a>, gradient: Val<'c, 'a>) {
        if self.is_active(value) {
            self.gradients.entry(ffi::value_key(value)).or_default().push(gradient);
        }
    }

    fn is_active(&self, value: Val<'c, 'a>) -> bool {
        self.active.contains(&ffi::value_key(value))
    }

    /// The gradient of a forward value: the contributions of its uses, added in program order.
    ///
    /// # Errors
    /// When MLIR refuses the sum.
    pub fn take(&mut self, value: Val<'c, 'a>) -> Result<Option<Val<'c, 'a>>, Error> {
        let mut parts = self.gradients.remove(&ffi::value_key(value)).unwrap_or_default().into_iter().rev();
        let Some(mut sum) = parts.next() else { return Ok(None) };
        for part in parts {
            sum = self.b.add(sum, part)?;
        }
        Ok(Some(sum))
    }

    /// As [`Transpose::take`], with zeros where no gradient arrived.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn take_or_zero(&mut self, value: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        match self.take(value)? {
            Some(gradient) => Ok(gradient),
            None => self.b.fill(0.0, &TensorType::of(value)?),
        }
    }

    /// Walks the function.
    ///
    /// # Errors
    /// An operation without a rule.
    pub fn run(&mut self, function: Function<'c, 'a>) -> Result<(), Error> {
        for operation in operations(function).into_iter().rev() {
            let results: Vec<Val<'c, 'a>> = operation.results().map(Into::into).collect();
            if !results.iter().any(|result| self.gradients.contains_key(&ffi::value_key(*result))) {
                continue;
            }
            self.b = self.b.at(backward_location(self.b.context(), operation));
            let gradients = results.iter().map(|result| self.take(*result)).collect::<Result<Vec<_>, _>>()?;
            self.operation(operation, &gradients)?;
        }
        self.b = self.b.at(backward_location(self.b.context(), function.0));
        Ok(())
    }

    fn operation(&mut self, operation: Op<'c, 'a>, gradients: &[Option<Val<'c, 'a>>]) -> Result<(), Error> {
        if walk::is(operation, "func.call") {
            return self.call(operation, gradients);
        }
        let Some(gradient) = gradients.first().copied().flatten() else { return Ok(()) };
        match walk::name(operation).as_str() {
            "shard.shard" => {
                // An activation's gradient lies as the activation does; an argument's is for its caller to say.
                let operand = operation.operand(0)?;
                let gradient = match ffi::value_owner(operand) {
                    Some(_) => self.annotated(operation, gradient)?,
                    None => gradient,
                };
                self.give(operand, gradient);
                Ok(())
            }
            "tensor.collapse_shape" | "tensor.expand_shape" => self.reshape(operation, gradient),
            name => match structured::read(operation)? {
                Some(generic) => self.structured(operation, generic, gradient),
                None => Err(Error::at(
                    operation,
                    format!(
                        "`{name}` has no gradient rule; write it as linalg.generic, call a unit that has one, or \
                         mark it `t3.stop_gradient`{}",
                        if name.starts_with("shard.") {
                            " (gradients are taken before partitioning)"
                        } else {
                            ""
                        }
                    ),
                )),
            },
        }
    }

    fn annotated(&mut self, annotation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let sharding = self.forward(annotation.operand(1)?)?;
        let copy = self.b.insert(ffi::clone(annotation));
        ffi::set_operand(copy, 0, gradient);
        ffi::set_operand(copy, 1, sharding);
        Ok(copy.result(0)?.into())
    }

    fn structured(
        &mut self,
        operation: Op<'c, 'a>,
        generic: t3c_ir::Generic<'c, 'a>,
        gradient: Val<'c, 'a>,
    ) -> Result<(), Error> {
        let init = generic.init;
        let rule = Rule::new(operation, generic, gradient)?;
        rule.check_captures(|capture| self.is_active(capture))?;
        let b = self.b;
        if rule.reaches_init() {
            self.give(init, gradient);
        }
        for (k, &input) in rule.inputs().iter().enumerate().rev() {
            if self.is_active(input)
                && let Some(part) = rule.gradient(k, &b, &mut |value| self.forward(value))?
            {
                self.give(input, part);
            }
        }
        Ok(())
    }

    fn reshape(&mut self, operation: Op<'c, 'a>, gradient: Val<'c, 'a>) -> Result<(), Error> {
        let source = operation.operand(0)?;
        let r#type = TensorType::of(source)?;
        let context = self.b.context();
        let mut attributes = vec![named(context, "reassociation", operation.attribute("reassociation")?)];
        let name = if walk::is(operation, "tensor.collapse_shape") {
            let shape: Vec<i64> = r#type.shape.iter().map(|&extent| extent as i64).collect();
            let shape = t3c_ir::attributes::integers_attr(context, &shape);
            attributes.push(named(context, "static_output_shape", shape));
            "tensor.expand_shape"
        } else {
            "tensor.collapse_shape"
        };
        let back = self.b.op(name, &[gradient], &[r#type.to_mlir(context)], &attributes, vec![])?;
        self.give(source, back.result(0)?.into());
        Ok(())
    }

    fn call(&mut self, call: Op<'c, 'a>, gradients: &[Option<Val<'c, 'a>>]) -> Result<(), Error> {
        let callee = function::callee(self.module, call)
            .ok_or_else(|| Error::at(call, "calls a function that the module does not have"))?;
        if callee.unit().is_some() {
            return self.unit(call, callee, gradients);
        }
        let known = self
            .callees
            .get(&callee.name())
            .ok_or_else(|| Error::at(call, format!("`{}` has no backward function", callee.name())))?;
        let mut operands = Vec::new();
        for &result in &known.results {
            operands.push(match gradients.get(result).copied().flatten() {
                Some(gradient) => gradient,
                None => self.b.fill(0.0, &TensorType::of(call.result(result)?.into())?)?,
            });
        }
        for captured in &known.captured {
            let value = match *captured {
                Captured::Argument(index) => call.operand(index)?,
                Captured::Saved(index) => call.result(index)?.into(),
            };
            operands.push(self.forward(value)?);
        }
        let parts = self.b.call(&known.symbol, &operands, &known.gradients)?;
        for (&argument, part) in known.arguments.iter().zip(parts).rev() {
            self.give(call.operand(argument)?, part);
        }
        Ok(())
    }

    fn unit(
        &mut self,
        call: Op<'c, 'a>,
        callee: Function<'c, 'a>,
        gradients: &[Option<Val<'c, 'a>>],
    ) -> Result<(), Error> {
        let gradient = gradients.first().copied().flatten();
        let (Some(unit), Some(gradient)) = (units::unit_of(callee), gradient) else {
            return Err(no_unit_rule(call, callee));
        };
        let operands: Vec<Val<'c, 'a>> = call.operands().collect();
        match unit.kind {
            UnitKind::Lookup => {
                let rows = unit.arguments[0].shape.first().copied().unwrap_or(0);
                let adjoint = Unit::lookup_grad(&unit.arguments[1], &unit.results[0], rows);
                let ids = self.forward(operands[1])?;
                self.adjoint(&Unit { aligned: unit.aligned, ..adjoint }, &[ids, gradient], &operands[..1])
            }
            UnitKind::LookupGrad => {
                let adjoint = Unit::lookup(&unit.results[0], &unit.arguments[0]);
                let ids = self.forward(operands[0])?;
                self.adjoint(&Unit { aligned: unit.aligned, ..adjoint }, &[gradient, ids], &operands[1..])
            }
            UnitKind::Attention => {
                let mut arguments =
                    operands.iter().map(|value| self.forward(*value)).collect::<Result<Vec<_>, _>>()?;
                arguments.push(gradient);
                self.adjoint(&unit.attention_gradient(), &arguments, &operands[..3])
            }
            UnitKind::Grouped => self.grouped(&unit, &operands, gradient),
            _ => Err(no_unit_rule(call, callee)),
        }
    }

    /// Calls the unit that gives the gradients of `targets`.
    fn adjoint(
        &mut self,
        unit: &Unit,
        arguments: &[Val<'c, 'a>],
        targets: &[Val<'c, 'a>],
    ) -> Result<(), Error> {
        let symbol = units::ensure(self.module, unit)?;
        let parts = self.b.call(&symbol, arguments, &unit.results)?;
        for (&target, part) in targets.iter().zip(parts).rev() {
            self.give(target, part);
        }
        Ok(())
    }

    fn grouped(&mut self, unit: &Unit, operands: &[Val<'c, 'a>], dy: Val<'c, 'a>) -> Result<(), Error> {
        let offsets = self.forward(operands[2])?;
        if self.is_active(operands[1]) {
            let x = self.forward(operands[0])?;
            let arguments = if unit.transposed { [dy, x, offsets] } else { [x, dy, offsets] };
            self.adjoint(&unit.grouped_weight_gradient(), &arguments, &operands[1..2])?;
        }
        if self.is_active(operands[0]) {
            let w = self.forward(operands[1])?;
            self.adjoint(&unit.grouped_rows_gradient(), &[dy, w, offsets], &operands[..1])?;
        }
        Ok(())
    }

    /// A forward value at the place of the gradient. In a backward function, constants and annotations are built
    /// anew, everything else becomes an argument.
    fn forward(&mut self, value: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let Some(block) = self.block else { return Ok(value) };
        if let Some(known) = self.forward.get(&ffi::value_key(value)) {
            return Ok(*known);
        }
        let owner = ffi::value_owner(value);
        let anew = owner.filter(|owner| {
            walk::is(*owner, "shard.shard")
                || walk::is(*owner, "shard.sharding")
                || structured::is_constant(value)
        });
        let here = match anew {
            Some(owner) => self.anew(owner)?,
            None => {
                self.captured.push(value);
                block.add_argument(value.r#type(), self.b.location())
            }
        };
        self.forward.insert(ffi::value_key(value), here);
        Ok(here)
    }

    fn anew(&mut self, operation: Op<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let operands =
            operation.operands().map(|value| self.forward(value)).collect::<Result<Vec<_>, _>>()?;
        let copy = self.b.insert(ffi::clone(operation));
        for (number, operand) in operands.into_iter().enumerate() {
            ffi::set_operand(copy, number, operand);
        }
        Ok(copy.result(0)?.into())
    }

    /// The current builder.
    pub fn builder(&self) -> Builder<'c, 'a> {
        self.b
    }

    /// The gradients of these arguments, in order.
    ///
    /// # Errors
    /// When MLIR refuses a sum.
    pub fn arguments(
        &mut self,
        arguments: &[Val<'c, 'a>],
        wanted: impl IntoIterator<Item = usize>,
    ) -> Result<BTreeMap<usize, Val<'c, 'a>>, Error> {
        wanted.into_iter().map(|index| Ok((index, self.take_or_zero(arguments[index])?))).collect()
    }
}

fn no_unit_rule(call: Op<'_, '_>, callee: Function<'_, '_>) -> Error {
    Error::at(
        call,
        format!(
            "the unit `{}` has no gradient rule; lookup, lookup_grad, attention and grouped have one, and routes are \
             integers",
            callee.unit().unwrap_or_default()
        ),
    )
}

/// `"model.layers.3.mlp.down_proj.backward"` at the forward operation's place.
pub fn backward_location<'c>(context: &'c melior::Context, operation: Op<'c, '_>) -> Location<'c> {
    let location = operation.location();
    if location.is_name() {
        let name = location.name_value();
        let name = name.as_string_ref().as_str().unwrap_or_default().to_owned();
        return Location::name(context, &format!("{name}.backward"), location.name_child_location());
    }
    Location::name(context, "backward", location)
}
