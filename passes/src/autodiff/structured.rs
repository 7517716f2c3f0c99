//! The one rule: the gradient of input `k` of a structured operation is a structured operation over the same
//! loops, with the map of input `k` as output map; loops absent from it become reductions.

use t3c_ir::{
    Builder, Element, Error, Generic, Iterator, Op, Ref, ScalarBody, ScalarOp, TensorType, Val, ffi,
    generic::{scalar_op, splat_value},
    walk,
};

use super::scalar::{Derivatives, derivatives};

/// A structured operation with the derivatives of its body, for one incoming gradient.
pub struct Rule<'c, 'a> {
    operation: Op<'c, 'a>,
    generic: Generic<'c, 'a>,
    derivatives: Derivatives,
    gradient: Val<'c, 'a>,
}

/// A structured operation, or elementwise work on tensors read as one; one a result, and none where it is neither.
///
/// # Errors
/// When a structured operation cannot be read.
pub fn read<'c, 'a>(operation: Op<'c, 'a>) -> Result<Vec<Generic<'c, 'a>>, Error> {
    if Generic::is(operation) {
        return Generic::read_all(operation);
    }
    let Some(op) = scalar_op(operation, &walk::name(operation)) else { return Ok(vec![]) };
    use melior::ir::operation::OperationLike;
    let inputs: Vec<Val<'c, 'a>> = operation.operands().collect();
    let result = TensorType::of(operation.result(0)?.into())?;
    let types = inputs.iter().map(|input| TensorType::of(*input)).collect::<Result<Vec<_>, _>>()?;
    let mut body = ScalarBody::new(
        types.iter().map(|r#type| r#type.element).chain([result.element]).collect::<Vec<_>>(),
    );
    let arguments: Vec<Ref> = (0..inputs.len()).map(Ref::Arg).collect();
    let value = body.push(op, &arguments, result.element);
    let rank = result.shape.len();
    let Some(&init) = inputs.first() else { return Ok(vec![]) };
    Ok(vec![Generic {
        init,
        maps: types.iter().chain([&result]).map(|r#type| (0..r#type.shape.len()).collect()).collect(),
        iterators: vec![Iterator::Parallel; rank],
        extents: result.shape.clone(),
        body: body.yield_(value),
        captures: vec![],
        inputs,
        result,
    }])
}

impl<'c, 'a> Rule<'c, 'a> {
    /// The rule for `operation`, whose result has the gradient `gradient`.
    ///
    /// # Errors
    /// What has no rule, with its location.
    pub fn new(
        operation: Op<'c, 'a>,
        generic: Generic<'c, 'a>,
        gradient: Val<'c, 'a>,
    ) -> Result<Self, Error> {
        let derivatives = derivatives(&generic.body, splat_value(gradient));
        let rule = Self { operation, generic, derivatives, gradient };
        rule.check()?;
        Ok(rule)
    }

    fn check(&self) -> Result<(), Error> {
        let reduces = self.generic.iterators.contains(&Iterator::Reduction);
        if !self.generic.body.reads_output() {
            return if reduces {
                Err(self.refuse("a reduction that does not read its output keeps the last value only"))
            } else {
                Ok(())
            };
        }
        if self.accumulates() {
            return Ok(());
        }
        Err(self.refuse(match self.generic.body.combiner() {
            Some((ScalarOp::MulF, _)) => {
                "a product over a loop has no gradient rule; take the sum of logarithms"
            }
            _ => "the body is no sum into its output; split it into elementwise work and a sum",
        }))
    }

    fn refuse(&self, message: &str) -> Error {
        Error::at(
            self.operation,
            format!("`{}` cannot be differentiated: {message}", walk::name(self.operation)),
        )
    }

    /// Whether the output is a sum: its gradient flows to every contribution, and to the initial value, as it is.
    fn accumulates(&self) -> bool {
        let output = self.generic.inputs.len();
        let seed = splat_value(self.gradient);
        match self.derivatives.arguments.get(output).copied().flatten() {
            Some(Ref::Arg(0)) => true,
            Some(Ref::Inst(index)) => {
                seed.is_some_and(|seed| self.derivatives.body.insts[index].op == ScalarOp::Const(seed))
            }
            _ => false,
        }
    }

    /// Whether the initial value has the gradient of the result.
    pub fn reaches_init(&self) -> bool {
        self.generic.body.reads_output()
    }

    /// Refuses gradients that this rule cannot give: of captured tensors.
    ///
    /// # Errors
    /// When `active` holds for a captured tensor.
    pub fn check_captures(&self, active: impl Fn(Val<'c, 'a>) -> bool) -> Result<(), Error> {
        let captures = self.derivatives.captures.iter().map(|&index| self.generic.captures[index]);
        if captures.into_iter().any(active) {
            return Err(self.refuse(
                "its body reads the tensor by `tensor.extract`, whose gradient is a scatter; use the unit `lookup`",
            ));
        }
        Ok(())
    }

    /// The inputs.
    pub fn inputs(&self) -> &[Val<'c, 'a>] {
        &self.generic.inputs
    }

    /// The gradient of input `k`; `forward` gives values of the forward pass at the builder's place.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn gradient(
        &self,
        k: usize,
        b: &Builder<'c, 'a>,
        forward: &mut dyn FnMut(Val<'c, 'a>) -> Result<Val<'c, 'a>, Error>,
    ) -> Result<Option<Val<'c, 'a>>, Error> {
        let Some(body) = self.derivatives.of(k) else { return Ok(None) };
        let generic = &self.generic;
        let target = &generic.maps[k];
        if let [Ref::Arg(same)] = *body.yields.as_slice()
            && self.map(same) == target
            && body.args[same] == generic.body.args[k]
        {
            return self.operand(same, forward).map(Some);
        }
        let shape: Vec<u64> = target.iter().map(|&index| generic.extents[index]).collect();
        let wanted = TensorType::new(shape, generic.body.args[k]);
        let operands = self.operands(&body, target);
        let reduces = target.len() < generic.extents.len();
        if !reduces
            && operands.is_empty()
            && let [Ref::Inst(index)] = *body.yields.as_slice()
            && let ScalarOp::Const(number) = body.insts[index].op
        {
            return Ok(Some(b.fill(number, &wanted)?));
        }
        // Products accumulate as their kernels do; other sums of narrow numbers are taken in f32.
        let sums_wide = reduces && is_narrow(wanted.element) && !is_product(&body);
        let element = if sums_wide { Element::F32 } else { wanted.element };
        let result = TensorType::new(wanted.shape.clone(), element);
        let order = loop_order(target, generic.extents.len());
        let mut captures = Vec::new();
        let body = self.rebuild(&body, &operands, &order, &result, reduces, &mut captures);
        let position = |index: &usize| order.iter().position(|other| other == index).unwrap_or(0);
        let mut maps: Vec<Vec<usize>> =
            operands.iter().map(|&operand| self.map(operand).iter().map(position).collect()).collect();
        maps.push((0..target.len()).collect());
        let kind = |index| if index < target.len() { Iterator::Parallel } else { Iterator::Reduction };
        let gradient = Generic {
            inputs: operands
                .iter()
                .map(|&operand| self.operand(operand, forward))
                .collect::<Result<_, _>>()?,
            init: if reduces { b.fill(0.0, &result)? } else { b.empty(&result)? },
            maps,
            iterators: (0..order.len()).map(kind).collect(),
            extents: order.iter().map(|&index| generic.extents[index]).collect(),
            body,
            captures: captures.into_iter().map(&mut *forward).collect::<Result<_, _>>()?,
            result,
        };
        let sum = b.generic(&gradient)?;
        if !sums_wide {
            return Ok(Some(sum));
        }
        let dims: String = ('a'..='z').take(target.len()).collect();
        b.structured(&format!("{dims}->{dims}"), &[sum], wanted.element, 0.0, |body| {
            body.push(ScalarOp::FloatCast, &[Ref::Arg(0)], wanted.element)
        })
        .map(Some)
    }

    /// The arguments of the derivative (0 is the incoming gradient) that the new operation takes: those that it
    /// uses, and where a loop would lose its extent, one that has it.
    fn operands(&self, body: &ScalarBody, target: &[usize]) -> Vec<usize> {
        let used = |argument: &usize| {
            let argument = Ref::Arg(*argument);
            body.yields.contains(&argument) || body.insts.iter().any(|inst| inst.operands.contains(&argument))
        };
        let mut operands: Vec<usize> = (0..=self.generic.inputs.len()).filter(used).collect();
        for index in 0..self.generic.extents.len() {
            let covers = |operand: &usize| self.map(*operand).contains(&index);
            if !target.contains(&index) && !operands.iter().any(covers) {
                operands.extend((0..=self.generic.inputs.len()).find(covers));
            }
        }
        operands.sort_unstable();
        operands
    }

    fn map(&self, operand: usize) -> &[usize] {
        match operand.checked_sub(1) {
            None => self.generic.output_map(),
            Some(input) => &self.generic.maps[input],
        }
    }

    fn operand(
        &self,
        operand: usize,
        forward: &mut dyn FnMut(Val<'c, 'a>) -> Result<Val<'c, 'a>, Error>,
    ) -> Result<Val<'c, 'a>, Error> {
        match operand.checked_sub(1) {
            None => Ok(self.gradient),
            Some(input) => forward(self.generic.inputs[input]),
        }
    }

    /// The derivative over the new operands and loops, summed into the output where loops are reductions.
    fn rebuild(
        &self,
        body: &ScalarBody,
        operands: &[usize],
        order: &[usize],
        result: &TensorType,
        reduces: bool,
        captures: &mut Vec<Val<'c, 'a>>,
    ) -> ScalarBody {
        let mut args: Vec<_> = operands.iter().map(|&operand| body.args[operand]).collect();
        args.push(result.element);
        let output = Ref::Arg(operands.len());
        let arguments: Vec<Ref> = (0..body.args.len())
            .map(|argument| operands.iter().position(|&other| other == argument).map_or(output, Ref::Arg))
            .collect();
        let mut moved = body.clone();
        let mut taken: Vec<usize> = Vec::new();
        for inst in &mut moved.insts {
            match &mut inst.op {
                ScalarOp::Index(index) => {
                    *index = order.iter().position(|other| other == index).unwrap_or(0);
                }
                ScalarOp::Extract(capture) => {
                    let at = taken.iter().position(|other| other == capture).unwrap_or_else(|| {
                        taken.push(*capture);
                        taken.len() - 1
                    });
                    *capture = at;
                }
                _ => {}
            }
        }
        captures.extend(taken.into_iter().map(|capture| self.generic.captures[capture]));
        let mut new = ScalarBody::new(args);
        let value = new.inline(&moved, &arguments)[0];
        let value = if new.element(value) == result.element {
            value
        } else {
            new.push(ScalarOp::FloatCast, &[value], result.element)
        };
        let value = if reduces { new.add(output, value) } else { value };
        new.yield_(value)
    }
}

fn is_narrow(element: Element) -> bool {
    matches!(element, Element::Bf16 | Element::F16)
}

/// Whether a body is the product of two of its arguments.
fn is_product(body: &ScalarBody) -> bool {
    matches!(body.insts.as_slice(), [inst] if inst.op == ScalarOp::MulF)
}

/// The loops of the target first, in its order; then the reductions.
fn loop_order(target: &[usize], loops: usize) -> Vec<usize> {
    let rest = (0..loops).filter(|index| !target.contains(index));
    target.iter().copied().chain(rest).collect()
}

/// Whether a value is no tensor: offsets and other scalars are computed again rather than kept.
pub fn is_scalar(value: Val<'_, '_>) -> bool {
    use melior::ir::{TypeLike, ValueLike};
    !value.r#type().is_ranked_tensor()
}

/// Whether a value is a constant everywhere; such values are built anew rather than kept.
pub fn is_constant(value: Val<'_, '_>) -> bool {
    ffi::value_owner(value).is_some_and(|owner| {
        walk::is(owner, "arith.constant") || walk::is(owner, "tensor.empty") || splat_value(value).is_some()
    })
}
