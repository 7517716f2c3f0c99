//! Reverse mode over a scalar body: the derivative of what it yields with respect to every argument.
//!
//! Plain data in, plain data out. Constants fold, products with one and sums with zero vanish and equal
//! instructions are shared, so that the gradient of a contraction is again a clean multiply-add.

use t3c_ir::{Element, Inst, Predicate, Ref, ScalarBody, ScalarOp};

/// The derivatives of a body.
#[derive(Clone, Debug)]
pub struct Derivatives {
    /// Computes them. Its arguments are the incoming gradient, then the arguments of the original body.
    pub body: ScalarBody,
    /// For each argument of the original body, the incoming gradient times the derivative; `None` is zero.
    pub arguments: Vec<Option<Ref>>,
    /// Captures of the original body whose elements have a gradient.
    pub captures: Vec<usize>,
}

impl Derivatives {
    /// The gradient of argument `index` alone, as a body over the same arguments.
    pub fn of(&self, index: usize) -> Option<ScalarBody> {
        let mut body = self.body.clone().yield_((*self.arguments.get(index)?)?);
        body.prune();
        Some(body)
    }
}

/// Differentiates what `body` yields. `seed` is the incoming gradient where it is the same number everywhere.
pub fn derivatives(body: &ScalarBody, seed: Option<f64>) -> Derivatives {
    let Some(&yielded) = body.yields.first() else {
        return Derivatives { body: body.clone(), arguments: vec![None; body.args.len()], captures: vec![] };
    };
    let element = body.element(yielded);
    let mut args = vec![element];
    args.extend(&body.args);
    let mut tape = Tape::new(ScalarBody::new(args), body);
    let incoming = match seed {
        Some(number) => tape.constant(number, element),
        None => Ref::Arg(0),
    };
    tape.give(yielded, incoming);
    for index in (0..body.insts.len()).rev() {
        if let Some(gradient) = tape.gradients[body.args.len() + index] {
            tape.transpose(&body.insts[index], index, gradient);
        }
    }
    let arguments = tape.gradients[..body.args.len()].to_vec();
    Derivatives { body: tape.body, arguments, captures: tape.captures }
}

/// The new body while gradients are being added to it.
struct Tape {
    body: ScalarBody,
    /// The original's instructions in the new body.
    values: Vec<Ref>,
    /// Gradients of the original's arguments, then of its instructions.
    gradients: Vec<Option<Ref>>,
    arguments: usize,
    captures: Vec<usize>,
}

impl Tape {
    fn new(body: ScalarBody, original: &ScalarBody) -> Self {
        let arguments = original.args.len();
        let gradients = vec![None; arguments + original.insts.len()];
        let mut tape = Self { body, values: Vec::new(), gradients, arguments, captures: Vec::new() };
        for inst in &original.insts {
            let operands: Vec<Ref> = inst.operands.iter().map(|&operand| tape.value(operand)).collect();
            let value = tape.push(inst.op, &operands, inst.element);
            tape.values.push(value);
        }
        tape
    }

    /// An original value in the new body.
    fn value(&self, value: Ref) -> Ref {
        match value {
            Ref::Arg(index) => Ref::Arg(index + 1),
            Ref::Inst(index) => self.values[index],
        }
    }

    /// Adds to the gradient of an original value.
    fn give(&mut self, value: Ref, gradient: Ref) {
        let at = match value {
            Ref::Arg(index) => index,
            Ref::Inst(index) => self.arguments + index,
        };
        if self.number(gradient) == Some(0.0) {
            return;
        }
        self.gradients[at] = Some(match self.gradients[at] {
            None => gradient,
            Some(sum) => self.add(sum, gradient),
        });
    }

    fn transpose(&mut self, inst: &Inst, index: usize, d: Ref) {
        use ScalarOp::*;
        let result = self.values[index];
        let operand = |at: usize| inst.operands.get(at).copied().unwrap_or(Ref::Arg(0));
        let (x, y) = (operand(0), operand(1));
        let (vx, vy) = (self.value(x), self.value(y));
        let element = inst.element;
        match inst.op {
            AddF => {
                self.give(x, d);
                self.give(y, d);
            }
            SubF => {
                self.give(x, d);
                let negative = self.neg(d);
                self.give(y, negative);
            }
            MulF => {
                let (dx, dy) = (self.mul(d, vy), self.mul(d, vx));
                self.give(x, dx);
                self.give(y, dy);
            }
            DivF => {
                let dx = self.div(d, vy);
                self.give(x, dx);
                let dy = self.mul(dx, result);
                let dy = self.neg(dy);
                self.give(y, dy);
            }
            MaxF => self.choose(Predicate::Ge, (x, vx), (y, vy), d),
            MinF => self.choose(Predicate::Le, (x, vx), (y, vy), d),
            PowF => self.power((x, vx), (y, vy), result, d),
            Select => {
                let condition = vx;
                let zero = self.constant(0.0, element);
                let (then, otherwise) = (self.select(condition, d, zero), self.select(condition, zero, d));
                self.give(y, then);
                self.give(operand(2), otherwise);
            }
            Extract(capture) => {
                if !self.captures.contains(&capture) {
                    self.captures.push(capture);
                }
            }
            _ => {
                if let Some(gradient) = self.unary(inst.op, vx, result, d) {
                    self.give(x, gradient);
                }
            }
        }
    }

    /// The gradient of `x` in `result = op(x)`; `None` where there is none.
    fn unary(&mut self, op: ScalarOp, x: Ref, result: Ref, d: Ref) -> Option<Ref> {
        let element = self.body.element(x);
        let float = matches!(element, Element::F64 | Element::F32 | Element::F16 | Element::Bf16);
        Some(match op {
            ScalarOp::NegF => self.neg(d),
            ScalarOp::Exp => {
                let factor = self.finite(result, d);
                self.mul(d, factor)
            }
            ScalarOp::Log => self.div(d, x),
            ScalarOp::Sqrt => {
                let half = self.scaled(d, 0.5);
                self.div(half, result)
            }
            ScalarOp::Rsqrt => {
                let square = self.mul(result, result);
                let cube = self.mul(square, result);
                let scaled = self.scaled(d, -0.5);
                self.mul(scaled, cube)
            }
            ScalarOp::Tanh => {
                let one = self.constant(1.0, element);
                let square = self.mul(result, result);
                let slope = self.push(ScalarOp::SubF, &[one, square], element);
                self.mul(d, slope)
            }
            ScalarOp::Erf => {
                let square = self.mul(x, x);
                let negative = self.neg(square);
                let bell = self.push(ScalarOp::Exp, &[negative], element);
                let slope = self.scaled(bell, std::f64::consts::FRAC_2_SQRT_PI);
                self.mul(d, slope)
            }
            ScalarOp::Sin => {
                let slope = self.push(ScalarOp::Cos, &[x], element);
                self.mul(d, slope)
            }
            ScalarOp::Cos => {
                let sin = self.push(ScalarOp::Sin, &[x], element);
                let product = self.mul(d, sin);
                self.neg(product)
            }
            ScalarOp::AbsF => {
                let (zero, negative) = (self.constant(0.0, element), self.neg(d));
                let below = self.push(ScalarOp::CmpF(Predicate::Lt), &[x, zero], Element::I1);
                let above = self.push(ScalarOp::CmpF(Predicate::Gt), &[x, zero], Element::I1);
                let rest = self.select(below, negative, zero);
                self.select(above, d, rest)
            }
            ScalarOp::FloatCast if self.body.element(d) == element => d,
            ScalarOp::FloatCast if float => self.push(ScalarOp::FloatCast, &[d], element),
            _ => return None,
        })
    }

    /// `result = x` where `predicate(x, y)`, else `y`: the chosen branch takes the gradient.
    fn choose(&mut self, predicate: Predicate, (x, vx): (Ref, Ref), (y, vy): (Ref, Ref), d: Ref) {
        let element = self.body.element(vx);
        let zero = self.constant(0.0, element);
        let first = self.push(ScalarOp::CmpF(predicate), &[vx, vy], Element::I1);
        if self.number(vx).is_none() {
            let gradient = self.select(first, d, zero);
            self.give(x, gradient);
        }
        if self.number(vy).is_none() {
            let gradient = self.select(first, zero, d);
            self.give(y, gradient);
        }
    }

    fn power(&mut self, (x, vx): (Ref, Ref), (y, vy): (Ref, Ref), result: Ref, d: Ref) {
        let element = self.body.element(vx);
        let one = self.constant(1.0, element);
        let exponent = match self.number(vy) {
            Some(number) => self.constant(number - 1.0, element),
            None => self.push(ScalarOp::SubF, &[vy, one], element),
        };
        let power = self.push(ScalarOp::PowF, &[vx, exponent], element);
        let slope = self.mul(vy, power);
        let dx = self.mul(d, slope);
        self.give(x, dx);
        if self.number(vy).is_none() {
            // The logarithm of what is not positive times a power of zero is no number.
            let zero = self.constant(0.0, element);
            let log = self.push(ScalarOp::Log, &[vx], element);
            let product = self.mul(d, result);
            let product = self.mul(product, log);
            let positive = self.push(ScalarOp::CmpF(Predicate::Gt), &[vx, zero], Element::I1);
            let dy = self.select(positive, product, zero);
            self.give(y, dy);
        }
    }

    /// An exponential that may overflow, where the incoming gradient depends on it and so vanishes (as in a
    /// sigmoid): kept finite, since zero times infinity is no number.
    fn finite(&mut self, exp: Ref, d: Ref) -> Ref {
        if !self.depends(d, exp) {
            return exp;
        }
        let element = self.body.element(exp);
        let most = if element == Element::F64 { f64::MAX } else { f64::from(f32::MAX) / 2.0 };
        let most = self.constant(most, element);
        self.push(ScalarOp::MinF, &[exp, most], element)
    }

    fn depends(&self, value: Ref, on: Ref) -> bool {
        let (mut pending, mut seen) = (vec![value], vec![false; self.body.insts.len()]);
        while let Some(value) = pending.pop() {
            if value == on {
                return true;
            }
            if let Ref::Inst(index) = value
                && !std::mem::replace(&mut seen[index], true)
            {
                pending.extend(&self.body.insts[index].operands);
            }
        }
        false
    }

    fn push(&mut self, op: ScalarOp, operands: &[Ref], element: Element) -> Ref {
        let same = |inst: &Inst| inst.op == op && inst.operands == operands && inst.element == element;
        match self.body.insts.iter().position(same) {
            Some(index) => Ref::Inst(index),
            None => self.body.push(op, operands, element),
        }
    }

    fn constant(&mut self, number: f64, element: Element) -> Ref {
        self.push(ScalarOp::Const(number), &[], element)
    }

    fn number(&self, value: Ref) -> Option<f64> {
        match value {
            Ref::Inst(index) => match self.body.insts[index].op {
                ScalarOp::Const(number) => Some(number),
                _ => None,
            },
            Ref::Arg(_) => None,
        }
    }

    fn scaled(&mut self, value: Ref, factor: f64) -> Ref {
        let element = self.body.element(value);
        let factor = self.constant(factor, element);
        self.mul(value, factor)
    }

    fn add(&mut self, x: Ref, y: Ref) -> Ref {
        match (self.number(x), self.number(y)) {
            (Some(0.0), _) => y,
            (_, Some(0.0)) => x,
            (Some(a), Some(b)) => self.constant(a + b, self.body.element(x)),
            _ => self.whole(x, y).unwrap_or_else(|| self.push(ScalarOp::AddF, &[x, y], self.body.element(x))),
        }
    }

    /// `d` from `(c ? d : 0) + (c ? 0 : d)`.
    fn whole(&self, x: Ref, y: Ref) -> Option<Ref> {
        let (Ref::Inst(x), Ref::Inst(y)) = (x, y) else { return None };
        let [x, y] = [x, y].map(|index| &self.body.insts[index]);
        if x.op != ScalarOp::Select || y.op != ScalarOp::Select {
            return None;
        }
        let (&[c, a, b], &[e, f, g]) = (x.operands.as_slice(), y.operands.as_slice()) else { return None };
        let zero = |value| self.number(value) == Some(0.0);
        if c != e {
            None
        } else if a == g && zero(b) && zero(f) {
            Some(a)
        } else {
            (b == f && zero(a) && zero(g)).then_some(b)
        }
    }

    fn mul(&mut self, x: Ref, y: Ref) -> Ref {
        let element = self.body.element(x);
        match (self.number(x), self.number(y)) {
            (Some(a), Some(b)) => self.constant(a * b, element),
            (Some(0.0), _) | (_, Some(0.0)) => self.constant(0.0, element),
            (Some(1.0), _) => y,
            (_, Some(1.0)) => x,
            (Some(-1.0), _) => self.neg(y),
            (_, Some(-1.0)) => self.neg(x),
            _ => self.push(ScalarOp::MulF, &[x, y], element),
        }
    }

    fn div(&mut self, x: Ref, y: Ref) -> Ref {
        match (self.number(x), self.number(y)) {
            (Some(0.0), _) | (_, Some(1.0)) => x,
            _ => self.push(ScalarOp::DivF, &[x, y], self.body.element(x)),
        }
    }

    fn neg(&mut self, x: Ref) -> Ref {
        if let Some(number) = self.number(x) {
            return self.constant(-number, self.body.element(x));
        }
        if let Ref::Inst(index) = x
            && self.body.insts[index].op == ScalarOp::NegF
        {
            return self.body.insts[index].operands[0];
        }
        self.push(ScalarOp::NegF, &[x], self.body.element(x))
    }

    fn select(&mut self, condition: Ref, x: Ref, y: Ref) -> Ref {
        if x == y { x } else { self.push(ScalarOp::Select, &[condition, x, y], self.body.element(x)) }
    }
}
