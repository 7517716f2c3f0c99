//! A structured operation as a small loop program: strides and a flat list of instructions, compiled once and
//! run for every device and call.

use t3c_schedule::Element;

use super::{
    tensor::strides,
    value::{Buffer, Value, is_float, round_float, wrap_int},
};
use crate::{
    Generic, TensorType,
    scalar::{Predicate, Ref, ScalarBody, ScalarOp},
};

/// An instruction over slots; a slot is a body argument or the result of an instruction.
#[derive(Clone, Debug)]
struct Code {
    op: ScalarOp,
    operands: Vec<usize>,
    element: Element,
    /// The element of the first operand.
    from: Element,
}

/// A compiled scalar body.
#[derive(Clone, Debug)]
pub(super) struct Body {
    codes: Vec<Code>,
    arguments: usize,
    floats: Vec<f64>,
    ints: Vec<i64>,
    result: usize,
}

/// A compiled structured operation.
#[derive(Clone, Debug)]
pub(super) struct LoopProgram {
    extents: Vec<usize>,
    /// For each input, then the output: the step of its position along each loop.
    steps: Vec<Vec<usize>>,
    body: Body,
    multiply_add: bool,
    element: Element,
}

impl Body {
    pub fn new(body: &ScalarBody, widen: bool) -> Self {
        let widened = |element| if widen && element == Element::F32 { Element::F64 } else { element };
        let arguments = body.args.len();
        let slot = |value: Ref| match value {
            Ref::Arg(index) => index,
            Ref::Inst(index) => arguments + index,
        };
        let count = arguments + body.insts.len();
        let (mut floats, mut ints) = (vec![0.0; count], vec![0; count]);
        let mut codes = Vec::with_capacity(body.insts.len());
        for (index, inst) in body.insts.iter().enumerate() {
            let element = widened(inst.element);
            match inst.op {
                ScalarOp::Const(number) => floats[arguments + index] = round_float(number, element),
                ScalarOp::ConstInt(number) => ints[arguments + index] = wrap_int(number, element),
                _ => {}
            }
            codes.push(Code {
                op: inst.op,
                operands: inst.operands.iter().map(|&value| slot(value)).collect(),
                element,
                from: inst.operands.first().map_or(element, |&value| widened(body.element(value))),
            });
        }
        let result = body.yields.first().map_or(0, |&value| slot(value));
        Self { codes, arguments, floats, ints, result }
    }
}

impl LoopProgram {
    pub fn new(generic: &Generic<'_, '_>, operands: &[TensorType], widen: bool) -> Self {
        let steps = operands
            .iter()
            .zip(&generic.maps)
            .map(|(r#type, map)| {
                let mut steps = vec![0; generic.extents.len()];
                map.iter().zip(strides(&r#type.shape)).for_each(|(&index, stride)| steps[index] = stride);
                steps
            })
            .collect();
        let element = generic.result.element;
        Self {
            extents: generic.extents.iter().map(|&extent| extent as usize).collect(),
            steps,
            body: Body::new(&generic.body, widen),
            multiply_add: generic.body.is_multiply_add() && matches!(element, Element::F32 | Element::F64),
            element: if widen && element == Element::F32 { Element::F64 } else { element },
        }
    }

    /// Elementwise work: every operand has the shape of the result, or rank 0.
    pub fn elementwise(body: &ScalarBody, operands: &[TensorType], result: &TensorType, widen: bool) -> Self {
        let all: Vec<&TensorType> = operands.iter().chain([result]).collect();
        let count = result.elements() as usize;
        Self {
            extents: vec![count],
            steps: all.iter().map(|r#type| vec![usize::from(!r#type.shape.is_empty())]).collect(),
            body: Body::new(body, widen),
            multiply_add: false,
            element: if widen && result.element == Element::F32 { Element::F64 } else { result.element },
        }
    }

    /// Runs over all loops; `out` holds the initial value.
    pub fn run(&self, inputs: &[&Buffer], captures: &[&Value], out: &mut Buffer) -> Result<(), String> {
        if self.extents.contains(&0) {
            return Ok(());
        }
        if self.multiply_add
            && let Buffer::Float(out) = out
        {
            self.run_multiply_add(inputs[0].floats(), inputs[1].floats(), out);
            return Ok(());
        }
        let mut slots = Slots { floats: self.body.floats.clone(), ints: self.body.ints.clone() };
        let mut walker = Walker::new(&self.extents, &self.steps);
        let last = inputs.len();
        loop {
            for (index, input) in inputs.iter().enumerate() {
                let at = walker.positions[index];
                match input {
                    Buffer::Float(values) => slots.floats[index] = values[at],
                    Buffer::Int(values) => slots.ints[index] = values[at],
                }
            }
            let at = walker.positions[last];
            match out {
                Buffer::Float(values) => slots.floats[last] = values[at],
                Buffer::Int(values) => slots.ints[last] = values[at],
            }
            self.body.step(&mut slots, &walker.indices, captures)?;
            match out {
                Buffer::Float(values) => values[at] = slots.floats[self.body.result],
                Buffer::Int(values) => values[at] = slots.ints[self.body.result],
            }
            if !walker.advance() {
                return Ok(());
            }
        }
    }

    /// `out + a · b` without interpretation: product and sum are rounded each.
    fn run_multiply_add(&self, a: &[f64], b: &[f64], out: &mut [f64]) {
        let Some((&inner, outer)) = self.extents.split_last() else {
            out[0] = round_float(out[0] + round_float(a[0] * b[0], self.element), self.element);
            return;
        };
        let last = outer.len();
        let [sa, sb, so] = [0, 1, 2].map(|operand| self.steps[operand][last]);
        let single = self.element == Element::F32;
        let mut walker = Walker::new(outer, &self.steps);
        loop {
            let [mut pa, mut pb, mut po] = [0, 1, 2].map(|operand| walker.positions[operand]);
            for _ in 0..inner {
                let product = a[pa] * b[pb];
                out[po] = if single {
                    f64::from((out[po] + f64::from(product as f32)) as f32)
                } else {
                    out[po] + product
                };
                (pa, pb, po) = (pa + sa, pb + sb, po + so);
            }
            if !walker.advance() {
                return;
            }
        }
    }
}

/// Loop indices in row-major order, with the position in each operand.
struct Walker<'p> {
    extents: &'p [usize],
    steps: &'p [Vec<usize>],
    indices: Vec<usize>,
    positions: Vec<usize>,
}

impl<'p> Walker<'p> {
    fn new(extents: &'p [usize], steps: &'p [Vec<usize>]) -> Self {
        Self { extents, steps, indices: vec![0; extents.len()], positions: vec![0; steps.len()] }
    }

    fn advance(&mut self) -> bool {
        for dimension in (0..self.extents.len()).rev() {
            self.indices[dimension] += 1;
            if self.indices[dimension] < self.extents[dimension] {
                for (position, steps) in self.positions.iter_mut().zip(self.steps) {
                    *position += steps[dimension];
                }
                return true;
            }
            self.indices[dimension] = 0;
            for (position, steps) in self.positions.iter_mut().zip(self.steps) {
                *position -= steps[dimension] * (self.extents[dimension] - 1);
            }
        }
        false
    }
}

struct Slots {
    floats: Vec<f64>,
    ints: Vec<i64>,
}

impl Body {
    fn step(&self, slots: &mut Slots, indices: &[usize], captures: &[&Value]) -> Result<(), String> {
        for (index, code) in self.codes.iter().enumerate() {
            let to = self.arguments + index;
            match code.op {
                ScalarOp::Const(_) | ScalarOp::ConstInt(_) => {}
                ScalarOp::Index(dimension) => slots.ints[to] = indices[dimension] as i64,
                ScalarOp::Extract(capture) => {
                    let at = extract_position(captures[capture], code, slots)?;
                    match &*captures[capture].data {
                        Buffer::Float(values) => slots.floats[to] = values[at],
                        Buffer::Int(values) => slots.ints[to] = values[at],
                    }
                }
                ScalarOp::Select => {
                    let chosen = code.operands[if slots.ints[code.operands[0]] != 0 { 1 } else { 2 }];
                    slots.floats[to] = slots.floats[chosen];
                    slots.ints[to] = slots.ints[chosen];
                }
                ScalarOp::IntToFloat => {
                    let value = signed(slots.ints[code.operands[0]], code.from);
                    slots.floats[to] = round_float(value as f64, code.element);
                }
                ScalarOp::CmpF(predicate) => {
                    let [x, y] = [0, 1].map(|operand| slots.floats[code.operands[operand]]);
                    slots.ints[to] = i64::from(compare(predicate, x, y));
                }
                ScalarOp::CmpI(predicate) => {
                    let [x, y] = [0, 1].map(|operand| slots.ints[code.operands[operand]]);
                    slots.ints[to] = i64::from(compare(predicate, x, y));
                }
                op if is_float(code.element) => {
                    let x = slots.floats[code.operands[0]];
                    let y = code.operands.get(1).map_or(0.0, |&operand| slots.floats[operand]);
                    slots.floats[to] = round_float(float(op, x, y), code.element);
                }
                op => {
                    let x = slots.ints[code.operands[0]];
                    let y = code.operands.get(1).map_or(0, |&operand| slots.ints[operand]);
                    slots.ints[to] = wrap_int(int(op, x, y, code.from)?, code.element);
                }
            }
        }
        Ok(())
    }
}

fn extract_position(capture: &Value, code: &Code, slots: &Slots) -> Result<usize, String> {
    let mut at = 0;
    for (&operand, &extent) in code.operands.iter().zip(&capture.r#type.shape) {
        let index = slots.ints[operand];
        if index < 0 || index as u64 >= extent {
            return Err(format!("tensor.extract at {index}, outside 0..{extent} of a {}", capture.r#type));
        }
        at = at * extent as usize + index as usize;
    }
    Ok(at)
}

fn compare<T: PartialOrd>(predicate: Predicate, x: T, y: T) -> bool {
    match predicate {
        Predicate::Eq => x == y,
        Predicate::Ne => x != y,
        Predicate::Lt => x < y,
        Predicate::Le => x <= y,
        Predicate::Gt => x > y,
        Predicate::Ge => x >= y,
    }
}

/// Booleans are kept as 0 and 1; MLIR's signed casts read 1 as −1.
fn signed(value: i64, from: Element) -> i64 {
    if from == Element::I1 { -value } else { value }
}

fn float(op: ScalarOp, x: f64, y: f64) -> f64 {
    match op {
        ScalarOp::AddF => x + y,
        ScalarOp::SubF => x - y,
        ScalarOp::MulF => x * y,
        ScalarOp::DivF => x / y,
        ScalarOp::NegF => -x,
        ScalarOp::MaxF => extremum(x, y, f64::max),
        ScalarOp::MinF => extremum(x, y, f64::min),
        ScalarOp::PowF => x.powf(y),
        ScalarOp::Exp => x.exp(),
        ScalarOp::Log => x.ln(),
        ScalarOp::Sqrt => x.sqrt(),
        ScalarOp::Rsqrt => 1.0 / x.sqrt(),
        ScalarOp::Tanh => x.tanh(),
        ScalarOp::Erf => erf(x),
        ScalarOp::Sin => x.sin(),
        ScalarOp::Cos => x.cos(),
        ScalarOp::AbsF => x.abs(),
        // FloatCast: the caller rounds.
        _ => x,
    }
}

/// As `arith.maximumf`: not-a-number wins.
fn extremum(x: f64, y: f64, pick: fn(f64, f64) -> f64) -> f64 {
    if x.is_nan() || y.is_nan() { f64::NAN } else { pick(x, y) }
}

fn int(op: ScalarOp, x: i64, y: i64, from: Element) -> Result<i64, String> {
    Ok(match op {
        ScalarOp::AddI => x.wrapping_add(y),
        ScalarOp::SubI => x.wrapping_sub(y),
        ScalarOp::MulI => x.wrapping_mul(y),
        ScalarOp::DivI => x.checked_div(y).ok_or("integer division by zero")?,
        ScalarOp::RemI => x.checked_rem(y).ok_or("integer division by zero")?,
        ScalarOp::And => x & y,
        ScalarOp::Or => x | y,
        // IntCast: the caller wraps.
        _ => signed(x, from),
    })
}

/// The error function, by the series `2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!`, whose terms are all positive.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_its_known_values() {
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - y).abs() < 1e-14, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
