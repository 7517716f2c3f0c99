//! Walks a function backwards and writes the gradient of each operation.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use melior::ir::{BlockLike, Location, ValueLike, operation::OperationLike};
use t3c_ir::{
    Blk, Builder, Error, Generic, Op, TensorType, Val, ffi,
    function::{self, Function},
    views::Collective,
    walk,
};

use super::{
    activity::{Activity, operations},
    extremum,
    remat::Keep,
    spmd::Variation,
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
    pub(super) module: Op<'c, 'a>,
    callees: &'t HashMap<String, Callee>,
    active: HashSet<usize>,
    pub(super) b: Builder<'c, 'a>,
    /// The block of the backward function; `None` where the gradient stands in the function itself.
    block: Option<Blk<'c, 'a>>,
    /// Forward values at the place of the gradient.
    forward: HashMap<usize, Val<'c, 'a>>,
    /// Forward values that became arguments of the backward function, in order.
    pub captured: Vec<Val<'c, 'a>>,
    /// Gradients by value, the last use's first.
    gradients: HashMap<usize, Vec<Part<'c, 'a>>>,
    /// Which forward values the backward keeps.
    keep: Keep<'t>,
    /// On which grid axes values differ between devices.
    pub(super) variation: &'t Variation,
    /// The axes on which what is being transposed differs between devices.
    pub(super) reach: BTreeSet<usize>,
    /// Values of the forward function itself, none that live inside its operations.
    top: HashSet<usize>,
}

/// A contribution to a gradient.
#[derive(Clone, Debug)]
struct Part<'c, 'a> {
    value: Val<'c, 'a>,
    /// The grid axes over which devices' contributions are still to be added.
    partial: BTreeSet<usize>,
}

/// What all functions of one differentiation share.
#[derive(Clone, Copy)]
pub struct Shared<'t> {
    /// Backward functions that are there already.
    pub callees: &'t HashMap<String, Callee>,
    /// On which grid axes values differ between devices.
    pub variation: &'t Variation,
}

impl<'t, 'c, 'a> Transpose<'t, 'c, 'a> {
    /// Gradients of `function` written by `b`; into `block`, where that is another function's.
    pub fn new(
        module: Op<'c, 'a>,
        activity: &Activity<'c, 'a>,
        shared: Shared<'t>,
        function: Function<'c, 'a>,
        b: Builder<'c, 'a>,
        place: Option<(Blk<'c, 'a>, Keep<'t>)>,
    ) -> Self {
        let mut top: HashSet<usize> = function.arguments().into_iter().map(ffi::value_key).collect();
        for operation in operations(function) {
            top.extend(operation.results().map(|result| ffi::value_key(result.into())));
        }
        let (block, keep) = place.map_or((None, Keep::Everything), |(block, keep)| (Some(block), keep));
        Self {
            module,
            callees: shared.callees,
            active: activity.values(function),
            b,
            block,
            forward: HashMap::new(),
            captured: Vec::new(),
            gradients: HashMap::new(),
            keep,
            variation: shared.variation,
            reach: BTreeSet::new(),
            top,
        }
    }

    /// Adds to the gradient of a forward value. Where the value is the same on all devices of an axis on which the
    /// contribution differs, each device's contribution is a part of the sum.
    pub fn give(&mut self, value: Val<'c, 'a>, gradient: Val<'c, 'a>) {
        let partial = self.reach.difference(self.variation.of(value)).copied().collect();
        self.give_partial(value, gradient, partial);
    }

    /// Adds to the gradient of a forward value what is to be summed over the axes `partial`.
    pub(super) fn give_partial(
        &mut self,
        value: Val<'c, 'a>,
        gradient: Val<'c, 'a>,
        partial: BTreeSet<usize>,
    ) {
        if self.is_active(value) {
            self.gradients.entry(ffi::value_key(value)).or_default().push(Part { value: gradient, partial });
        }
    }

    pub(super) fn is_active(&self, value: Val<'c, 'a>) -> bool {
        self.active.contains(&ffi::value_key(value))
    }

    /// The gradient of a forward value: the contributions of its uses, added in program order; those of other
    /// devices are added last, once.
    ///
    /// # Errors
    /// When MLIR refuses the sum.
    pub fn take(&mut self, value: Val<'c, 'a>) -> Result<Option<Val<'c, 'a>>, Error> {
        let mut total: Option<Val<'c, 'a>> = None;
        for (partial, sum) in self.take_parts(value)? {
            let sum = self.all_reduce(sum, &partial)?;
            total = Some(total.map_or(Ok(sum), |total| self.b.add(total, sum))?);
        }
        Ok(total)
    }

    /// The contributions to the gradient of a forward value, summed by the axes over which they are partial.
    pub(super) fn take_parts(
        &mut self,
        value: Val<'c, 'a>,
    ) -> Result<BTreeMap<BTreeSet<usize>, Val<'c, 'a>>, Error> {
        let parts = self.gradients.remove(&ffi::value_key(value)).unwrap_or_default();
        let mut sums = BTreeMap::new();
        for part in parts.into_iter().rev() {
            let sum = match sums.remove(&part.partial) {
                Some(sum) => self.b.add(sum, part.value)?,
                None => part.value,
            };
            sums.insert(part.partial, sum);
        }
        Ok(sums)
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
            self.reach = self.variation.reach(operation);
            if let Some(collective) = Collective::cast(operation) {
                self.collective(collective)?;
                continue;
            }
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
        if self.view(operation, gradients.first().copied().flatten())? {
            return Ok(());
        }
        let rules = structured::read(operation)?;
        if rules.is_empty() {
            return Err(no_rule(operation));
        }
        for (number, (generic, gradient)) in rules.into_iter().zip(gradients).enumerate().rev() {
            if let Some(gradient) = *gradient {
                self.structured((operation, number), generic, gradient)?;
            }
        }
        Ok(())
    }

    fn structured(
        &mut self,
        (operation, number): (Op<'c, 'a>, usize),
        generic: Generic<'c, 'a>,
        gradient: Val<'c, 'a>,
    ) -> Result<(), Error> {
        if extremum::is(&generic) {
            return self.extremum((operation, number), generic, gradient);
        }
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

    fn extremum(
        &mut self,
        (operation, number): (Op<'c, 'a>, usize),
        generic: Generic<'c, 'a>,
        gradient: Val<'c, 'a>,
    ) -> Result<(), Error> {
        let (inputs, init) = (generic.inputs.clone(), generic.init);
        let result = self.forward(operation.result(number)?.into())?;
        let mut here = generic;
        for input in here.inputs.iter_mut().chain([&mut here.init]).chain(&mut here.captures) {
            *input = self.forward(*input)?;
        }
        let shared = extremum::Shared::new(&self.b, here, result, gradient)?;
        if self.is_active(init) {
            let part = shared.of_init(&self.b)?;
            self.give(init, part);
        }
        let rule = shared.rule(operation, &self.b)?;
        rule.check_captures(|capture| self.is_active(capture))?;
        for (k, &input) in inputs.iter().enumerate().rev() {
            if self.is_active(input)
                && let Some(part) = rule.gradient(k, &self.b, &mut Ok)?
            {
                self.give(input, part);
            }
        }
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
        let inside = callee.arguments();
        for (&argument, part) in known.arguments.iter().zip(parts).rev() {
            let operand = call.operand(argument)?;
            let (inside, here) = (self.variation.of(inside[argument]), self.variation.of(operand));
            self.give_partial(operand, part, inside.difference(here).copied().collect());
        }
        Ok(())
    }

    /// A forward value at the place of the gradient. In a backward function, constants, annotations and scalars are
    /// built anew, and so is what the policy does not keep; everything else becomes an argument.
    pub(super) fn forward(&mut self, value: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let Some(block) = self.block else { return Ok(value) };
        if let Some(known) = self.forward.get(&ffi::value_key(value)) {
            return Ok(*known);
        }
        if let Some(owner) = ffi::value_owner(value).filter(|owner| self.is_built_anew(*owner, value)) {
            return self.anew(owner, value);
        }
        self.captured.push(value);
        let here = block.add_argument(value.r#type(), self.b.location());
        self.forward.insert(ffi::value_key(value), here);
        Ok(here)
    }

    fn is_built_anew(&self, owner: Op<'c, 'a>, value: Val<'c, 'a>) -> bool {
        // An annotated activation is saved as it lies, not as it was before.
        let annotates_argument = walk::is(owner, "shard.shard")
            && owner.operand(0).is_ok_and(|operand| ffi::value_owner(operand).is_none());
        annotates_argument
            || walk::is(owner, "shard.sharding")
            || structured::is_scalar(value)
            || structured::is_constant(value)
            || !self.keep.keeps(owner, value)
    }

    fn anew(&mut self, operation: Op<'c, 'a>, wanted: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let operands =
            operation.operands().map(|value| self.forward(value)).collect::<Result<Vec<_>, _>>()?;
        let inner: Vec<Op<'c, 'a>> = walk::walk(operation).into_iter().skip(1).collect();
        let mut outer = Vec::new();
        for (number, operation) in inner.iter().enumerate() {
            for (at, value) in operation.operands().enumerate() {
                if self.top.contains(&ffi::value_key(value)) {
                    outer.push((number, at, self.forward(value)?));
                }
            }
        }
        let copy = self.b.insert(ffi::clone(operation));
        for (number, operand) in operands.into_iter().enumerate() {
            ffi::set_operand(copy, number, operand);
        }
        let inner: Vec<Op<'c, 'a>> = walk::walk(copy).into_iter().skip(1).collect();
        for (number, at, value) in outer {
            ffi::set_operand(inner[number], at, value);
        }
        for (old, new) in operation.results().zip(copy.results()) {
            self.forward.insert(ffi::value_key(old.into()), new.into());
        }
        self.forward
            .get(&ffi::value_key(wanted))
            .copied()
            .ok_or_else(|| Error::at(operation, "has no result"))
    }

    /// The current builder.
    pub fn builder(&self) -> Builder<'c, 'a> {
        self.b
    }

    /// The gradients of those of these arguments that have one, in order.
    ///
    /// # Errors
    /// When MLIR refuses a sum.
    pub fn arguments(
        &mut self,
        arguments: &[Val<'c, 'a>],
        wanted: impl IntoIterator<Item = usize>,
    ) -> Result<BTreeMap<usize, Val<'c, 'a>>, Error> {
        let mut found = BTreeMap::new();
        for index in wanted {
            if let Some(gradient) = self.take(arguments[index])? {
                found.insert(index, gradient);
            }
        }
        Ok(found)
    }
}

fn no_rule(operation: Op<'_, '_>) -> Error {
    let name = walk::name(operation);
    let needed = if name.starts_with("shard.") {
        "of collectives, all_reduce, reduce_scatter, all_gather, all_slice and all_to_all have one"
    } else {
        "write it as linalg.generic, call a unit that has one, or mark it `t3.stop_gradient`"
    };
    Error::at(operation, format!("`{name}` has no gradient rule; {needed}"))
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
