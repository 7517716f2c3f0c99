//! The arithmetic of a step, as structured operations.

use t3c_ir::{Builder, Element, Error, Predicate, Ref, ScalarBody, ScalarOp, TensorType, Val};

use super::{Optimizer, Rule, append::Slot};

/// What the norm is kept away from zero by, as in `clip_grad_norm_`.
const NORM_EPSILON: f64 = 1e-6;

/// What a step reads beside the parameter's own tensors.
pub(super) struct Inputs<'o, 'c, 'a> {
    pub options: &'o Optimizer,
    /// What gradients are scaled by.
    pub factor: Option<Val<'c, 'a>>,
    /// In the order of the rule's scalars.
    pub scalars: &'o [Val<'c, 'a>],
    /// Whether this call steps, where gradients are accumulated.
    pub apply: Option<Val<'c, 'a>>,
}

/// A parameter and its state after the step.
pub(super) struct Stepped<'c, 'a> {
    pub parameter: Val<'c, 'a>,
    pub states: Vec<Val<'c, 'a>>,
    pub master: Option<Val<'c, 'a>>,
    pub accumulated: Option<Val<'c, 'a>>,
}

fn letters(r#type: &TensorType) -> String {
    ('a'..='z').take(r#type.shape.len()).collect()
}

fn cast(body: &mut ScalarBody, value: Ref, element: Element) -> Ref {
    if body.element(value) == element { value } else { body.push(ScalarOp::FloatCast, &[value], element) }
}

/// The accumulated gradient with this call's.
pub(super) fn accumulate<'c, 'a>(b: &Builder<'c, 'a>, slot: &Slot<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
    let Some(accumulated) = slot.accumulated else { return Ok(slot.gradient) };
    let (dims, element) = (letters(&slot.port.r#type), slot.state_type().element);
    b.map(&format!("{dims},{dims}->{dims}"), &[accumulated, slot.gradient], |body| {
        let gradient = cast(body, Ref::Arg(1), element);
        body.add(Ref::Arg(0), gradient)
    })
}

/// The root of the sum of all squares. Squares of partitioned gradients are added among themselves first: one
/// partial sum, completed once.
pub(super) fn norm<'c, 'a>(
    b: &Builder<'c, 'a>,
    slots: &[Slot<'c, 'a>],
    element: Element,
) -> Result<Val<'c, 'a>, Error> {
    let b = b.named("grad_norm");
    let mut total: Option<Val<'c, 'a>> = None;
    for split in [true, false] {
        let mut sum: Option<Val<'c, 'a>> = None;
        for slot in slots.iter().filter(|slot| slot.split == split) {
            let dims = letters(&TensorType::of(slot.gradient)?);
            let squares = b.structured(&format!("{dims}->"), &[slot.gradient], element, 0.0, |body| {
                let gradient = cast(body, Ref::Arg(0), element);
                let square = body.mul(gradient, gradient);
                body.add(Ref::Arg(1), square)
            })?;
            sum = Some(sum.map_or(Ok(squares), |sum| b.add(sum, squares))?);
        }
        total = match (total, sum) {
            (Some(total), Some(sum)) => Some(b.add(total, sum)?),
            (total, sum) => total.or(sum),
        };
    }
    let total = total.map_or_else(|| b.splat(0.0, &TensorType::new([], element)), Ok)?;
    b.map("->", &[total], |body| body.unary(ScalarOp::Sqrt, Ref::Arg(0)))
}

/// `min(1, clip / (norm + ε))`.
pub(super) fn clip_factor<'c, 'a>(
    b: &Builder<'c, 'a>,
    norm: Val<'c, 'a>,
    clip: Option<f64>,
) -> Result<Option<Val<'c, 'a>>, Error> {
    let Some(clip) = clip else { return Ok(None) };
    let factor = b.named("clip").map("->", &[norm], |body| {
        let element = body.element(Ref::Arg(0));
        let [epsilon, clip, one] = [NORM_EPSILON, clip, 1.0].map(|number| body.constant(number, element));
        let norm = body.add(Ref::Arg(0), epsilon);
        let factor = body.div(clip, norm);
        body.binary(ScalarOp::MinF, factor, one)
    })?;
    Ok(Some(factor))
}

/// One parameter's step while it is being written.
struct Writer<'w, 'c, 'a> {
    b: &'w Builder<'c, 'a>,
    slot: &'w Slot<'c, 'a>,
    inputs: &'w Inputs<'w, 'c, 'a>,
    dims: String,
    element: Element,
    decay: f64,
}

/// The new parameter and state.
pub(super) fn step<'c, 'a>(
    b: &Builder<'c, 'a>,
    slot: &Slot<'c, 'a>,
    inputs: &Inputs<'_, 'c, 'a>,
) -> Result<Stepped<'c, 'a>, Error> {
    let element = slot.state_type().element;
    let (dims, decay) = (letters(&slot.port.r#type), inputs.options.decay_of(&slot.port));
    let writer = Writer { b, slot, inputs, dims, element, decay };
    let result = if slot.is_master { element } else { slot.port.r#type.element };
    let (new, states) = match inputs.options.rule {
        Rule::AdamW { beta1, beta2, eps } => writer.adamw([beta1, beta2, eps], result)?,
        Rule::Sgd { momentum, nesterov } => writer.sgd(momentum, nesterov, result)?,
    };
    let parameter = if slot.is_master {
        let (dims, narrow) = (&writer.dims, slot.port.r#type.element);
        b.structured(&format!("{dims}->{dims}"), &[new], narrow, 0.0, |body| cast(body, Ref::Arg(0), narrow))?
    } else {
        new
    };
    let accumulated = slot.accumulated.map(|_| writer.cleared()).transpose()?;
    Ok(Stepped { parameter, states, master: slot.is_master.then_some(new), accumulated })
}

impl<'c, 'a> Writer<'_, 'c, 'a> {
    /// Elementwise work on tensors like the parameter and on scalars, of which the result is the first tensor where
    /// the call does not step. The body's arguments are the tensors' elements, then the scalars.
    fn map(
        &self,
        tensors: &[Val<'c, 'a>],
        scalars: &[Val<'c, 'a>],
        result: Element,
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Val<'c, 'a>, Error> {
        let apply: Vec<Val<'c, 'a>> = self.inputs.apply.into_iter().collect();
        let inputs = [tensors, scalars, &apply].concat();
        let tensor_dims = vec![self.dims.as_str(); tensors.len()];
        let scalar_dims = vec![""; scalars.len() + apply.len()];
        let specification = format!("{}->{}", [tensor_dims, scalar_dims].concat().join(","), self.dims);
        let last = inputs.len() - 1;
        self.b.structured(&specification, &inputs, result, 0.0, |scalar| {
            let new = body(scalar);
            let new = cast(scalar, new, result);
            if apply.is_empty() {
                return new;
            }
            let old = cast(scalar, Ref::Arg(0), result);
            let half = scalar.constant(0.5, scalar.element(Ref::Arg(last)));
            let steps = scalar.cmp_f(Predicate::Gt, Ref::Arg(last), half);
            scalar.select(steps, new, old)
        })
    }

    /// The gradient, argument `at`, times the factor, argument `factor` if there is one.
    fn gradient(&self, body: &mut ScalarBody, at: usize, factor: usize) -> Ref {
        let gradient = cast(body, Ref::Arg(at), self.element);
        if self.inputs.factor.is_none() {
            return gradient;
        }
        let factor = cast(body, Ref::Arg(factor), self.element);
        body.mul(gradient, factor)
    }

    fn moment(&self, old: Val<'c, 'a>, beta: f64, squared: bool) -> Result<Val<'c, 'a>, Error> {
        let factor: Vec<Val<'c, 'a>> = self.inputs.factor.into_iter().collect();
        self.map(&[old, self.slot.gradient], &factor, self.element, |body| {
            let mut gradient = self.gradient(body, 1, 2);
            if squared {
                gradient = body.mul(gradient, gradient);
            }
            let [keep, take] = [beta, 1.0 - beta].map(|number| body.constant(number, self.element));
            let (kept, taken) = (body.mul(keep, Ref::Arg(0)), body.mul(take, gradient));
            body.add(kept, taken)
        })
    }

    fn adamw(
        &self,
        [beta1, beta2, eps]: [f64; 3],
        result: Element,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let (slot, element) = (self.slot, self.element);
        let first = self.moment(slot.states[0], beta1, false)?;
        let second = self.moment(slot.states[1], beta2, true)?;
        let new = self.map(&[slot.value, first, second], self.inputs.scalars, result, |body| {
            let old = cast(body, Ref::Arg(0), element);
            let [rate, bias1, bias2] = [3, 4, 5].map(|argument| cast(body, Ref::Arg(argument), element));
            let [eps, decay] = [eps, self.decay].map(|number| body.constant(number, element));
            let mean = body.div(Ref::Arg(1), bias1);
            let square = body.div(Ref::Arg(2), bias2);
            let root = body.unary(ScalarOp::Sqrt, square);
            let root = body.add(root, eps);
            let direction = body.div(mean, root);
            let decayed = body.mul(decay, old);
            let direction = body.add(direction, decayed);
            let change = body.mul(rate, direction);
            body.sub(old, change)
        })?;
        Ok((new, vec![first, second]))
    }

    /// The gradient with the weight decay of the parameter, arguments `gradient`, `value` and `factor`.
    fn decayed(&self, body: &mut ScalarBody, [gradient, value, factor]: [usize; 3]) -> Ref {
        let gradient = self.gradient(body, gradient, factor);
        if self.decay == 0.0 {
            return gradient;
        }
        let (decay, value) =
            (body.constant(self.decay, self.element), cast(body, Ref::Arg(value), self.element));
        let decayed = body.mul(decay, value);
        body.add(gradient, decayed)
    }

    fn sgd(
        &self,
        momentum: f64,
        nesterov: bool,
        result: Element,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let (slot, element) = (self.slot, self.element);
        let factor: Vec<Val<'c, 'a>> = self.inputs.factor.into_iter().collect();
        let states = match slot.states.first() {
            None => vec![],
            Some(&old) => vec![self.map(&[old, slot.gradient, slot.value], &factor, element, |body| {
                let gradient = self.decayed(body, [1, 2, 3]);
                let momentum = body.constant(momentum, element);
                let kept = body.mul(momentum, Ref::Arg(0));
                body.add(kept, gradient)
            })?],
        };
        let tensors = [&[slot.value, slot.gradient], states.as_slice()].concat();
        let rate = tensors.len();
        let scalars = [&self.inputs.scalars[..1], &factor].concat();
        let new = self.map(&tensors, &scalars, result, |body| {
            let old = cast(body, Ref::Arg(0), element);
            let direction = if rate == 2 {
                self.decayed(body, [1, 0, rate + 1])
            } else if nesterov {
                let (ahead, gradient) =
                    (body.constant(momentum, element), self.decayed(body, [1, 0, rate + 1]));
                let ahead = body.mul(ahead, Ref::Arg(2));
                body.add(gradient, ahead)
            } else {
                Ref::Arg(2)
            };
            let rate = cast(body, Ref::Arg(rate), element);
            let change = body.mul(rate, direction);
            body.sub(old, change)
        })?;
        Ok((new, states))
    }

    /// The accumulated gradient: zero after a step.
    fn cleared(&self) -> Result<Val<'c, 'a>, Error> {
        self.map(&[self.slot.gradient], &[], self.element, |body| body.constant(0.0, self.element))
    }
}
