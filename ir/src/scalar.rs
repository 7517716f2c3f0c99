//! The body of a `linalg.generic` as plain data: a short list of scalar instructions.
//!
//! Passes decide on this form without touching MLIR: autodiff differentiates it, the interpreter evaluates
//! it, the CPU backend counts and lowers it.

use t3c_schedule::Element;

/// A scalar value of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ref {
    /// A block argument: the inputs' elements, then the output's current element.
    Arg(usize),
    /// The result of an instruction.
    Inst(usize),
}

/// Comparisons. On floats they are ordered; on integers signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Predicate {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// What an instruction computes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum ScalarOp {
    /// A float constant of the instruction's element type.
    Const(f64),
    /// An integer or boolean constant.
    ConstInt(i64),
    /// The current value of a loop (`linalg.index`), as I64.
    Index(usize),
    /// An element of a captured tensor, at the operands' indices (`tensor.extract`).
    Extract(usize),
    AddF,
    SubF,
    MulF,
    DivF,
    NegF,
    MaxF,
    MinF,
    PowF,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Tanh,
    Erf,
    Sin,
    Cos,
    AbsF,
    CmpF(Predicate),
    AddI,
    SubI,
    MulI,
    DivI,
    RemI,
    CmpI(Predicate),
    And,
    Or,
    /// `condition, then, else`.
    Select,
    /// Between integer widths and `index`.
    IntCast,
    /// From a signed integer.
    IntToFloat,
    /// Between float widths.
    FloatCast,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Inst {
    /// What it computes.
    pub op: ScalarOp,
    /// Its operands.
    pub operands: Vec<Ref>,
    /// The type of its result.
    pub element: Element,
}

/// A whole body.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarBody {
    /// The types of the block arguments.
    pub args: Vec<Element>,
    /// The instructions, each using only earlier ones.
    pub insts: Vec<Inst>,
    /// What is yielded.
    pub yields: Vec<Ref>,
}

impl ScalarBody {
    /// An empty body over these arguments.
    pub fn new(args: impl Into<Vec<Element>>) -> Self {
        Self { args: args.into(), insts: Vec::new(), yields: Vec::new() }
    }

    /// The type of a value.
    pub fn element(&self, value: Ref) -> Element {
        match value {
            Ref::Arg(index) => self.args[index],
            Ref::Inst(index) => self.insts[index].element,
        }
    }

    /// Appends an instruction.
    pub fn push(&mut self, op: ScalarOp, operands: &[Ref], element: Element) -> Ref {
        self.insts.push(Inst { op, operands: operands.to_vec(), element });
        Ref::Inst(self.insts.len() - 1)
    }

    /// A float constant.
    pub fn constant(&mut self, value: f64, element: Element) -> Ref {
        self.push(ScalarOp::Const(value), &[], element)
    }

    /// An integer constant (I64).
    pub fn int(&mut self, value: i64) -> Ref {
        self.push(ScalarOp::ConstInt(value), &[], Element::I64)
    }

    /// The value of loop `dimension` (I64).
    pub fn index(&mut self, dimension: usize) -> Ref {
        self.push(ScalarOp::Index(dimension), &[], Element::I64)
    }

    /// A unary instruction of its operand's type.
    pub fn unary(&mut self, op: ScalarOp, x: Ref) -> Ref {
        let element = self.element(x);
        self.push(op, &[x], element)
    }

    /// A binary instruction of its operands' type.
    pub fn binary(&mut self, op: ScalarOp, x: Ref, y: Ref) -> Ref {
        let element = self.element(x);
        self.push(op, &[x, y], element)
    }

    /// `x + y` of floats.
    pub fn add(&mut self, x: Ref, y: Ref) -> Ref {
        self.binary(ScalarOp::AddF, x, y)
    }

    /// `x − y` of floats.
    pub fn sub(&mut self, x: Ref, y: Ref) -> Ref {
        self.binary(ScalarOp::SubF, x, y)
    }

    /// `x · y` of floats.
    pub fn mul(&mut self, x: Ref, y: Ref) -> Ref {
        self.binary(ScalarOp::MulF, x, y)
    }

    /// `x / y` of floats.
    pub fn div(&mut self, x: Ref, y: Ref) -> Ref {
        self.binary(ScalarOp::DivF, x, y)
    }

    /// A comparison of floats.
    pub fn cmp_f(&mut self, predicate: Predicate, x: Ref, y: Ref) -> Ref {
        self.push(ScalarOp::CmpF(predicate), &[x, y], Element::I1)
    }

    /// A comparison of integers.
    pub fn cmp_i(&mut self, predicate: Predicate, x: Ref, y: Ref) -> Ref {
        self.push(ScalarOp::CmpI(predicate), &[x, y], Element::I1)
    }

    /// `condition ? x : y`.
    pub fn select(&mut self, condition: Ref, x: Ref, y: Ref) -> Ref {
        let element = self.element(x);
        self.push(ScalarOp::Select, &[condition, x, y], element)
    }

    /// An integer (or index) as I64.
    pub fn to_i64(&mut self, x: Ref) -> Ref {
        if self.element(x) == Element::I64 { x } else { self.push(ScalarOp::IntCast, &[x], Element::I64) }
    }

    /// Sets what is yielded.
    pub fn yield_(mut self, value: Ref) -> Self {
        self.yields = vec![value];
        self
    }

    /// Copies `other`'s instructions into this body, with its arguments replaced by `arguments`; returns what
    /// `other` yields, as values of this body.
    pub fn inline(&mut self, other: &ScalarBody, arguments: &[Ref]) -> Vec<Ref> {
        let mut map: Vec<Ref> = Vec::with_capacity(other.insts.len());
        for inst in &other.insts {
            let operands: Vec<Ref> = inst.operands.iter().map(|&r| translate(r, arguments, &map)).collect();
            map.push(self.push(inst.op, &operands, inst.element));
        }
        other.yields.iter().map(|&r| translate(r, arguments, &map)).collect()
    }

    /// Whether the current element of the output (the last argument) is used: the generic accumulates.
    pub fn reads_output(&self) -> bool {
        let output = Ref::Arg(self.args.len() - 1);
        self.yields.contains(&output) || self.insts.iter().any(|inst| inst.operands.contains(&output))
    }

    /// Drops instructions that do not reach a yield.
    pub fn prune(&mut self) {
        let mut live = vec![false; self.insts.len()];
        let mut pending: Vec<Ref> = self.yields.clone();
        while let Some(value) = pending.pop() {
            if let Ref::Inst(index) = value
                && !std::mem::replace(&mut live[index], true)
            {
                pending.extend(&self.insts[index].operands);
            }
        }
        let arguments: Vec<Ref> = (0..self.args.len()).map(Ref::Arg).collect();
        let mut map = vec![Ref::Arg(0); self.insts.len()];
        let mut kept = Vec::new();
        for (index, inst) in self.insts.iter().enumerate().filter(|(index, _)| live[*index]) {
            let operands = inst.operands.iter().map(|&r| translate(r, &arguments, &map)).collect();
            kept.push(Inst { op: inst.op, operands, element: inst.element });
            map[index] = Ref::Inst(kept.len() - 1);
        }
        self.yields = self.yields.iter().map(|&r| translate(r, &arguments, &map)).collect();
        self.insts = kept;
    }

    /// Floating-point operations of one evaluation, one an arithmetic instruction.
    pub fn flops(&self) -> u64 {
        use ScalarOp::*;
        let counted = |inst: &&Inst| {
            !matches!(
                inst.op,
                Const(_) | ConstInt(_) | Index(_) | Extract(_) | IntCast | IntToFloat | FloatCast
            )
        };
        self.insts.iter().filter(counted).count() as u64
    }

    /// How the body accumulates into the output, if it is `out ∘ f(inputs)` for one associative `∘`.
    pub fn combiner(&self) -> Option<(ScalarOp, Ref)> {
        let output = Ref::Arg(self.args.len() - 1);
        let &[Ref::Inst(last)] = self.yields.as_slice() else { return None };
        let inst = &self.insts[last];
        if !matches!(
            inst.op,
            ScalarOp::AddF | ScalarOp::AddI | ScalarOp::MaxF | ScalarOp::MinF | ScalarOp::MulF
        ) {
            return None;
        }
        let uses = self.insts.iter().flat_map(|inst| &inst.operands).filter(|&&r| r == output).count();
        match *inst.operands.as_slice() {
            [x, y] if x == output && uses == 1 => Some((inst.op, y)),
            [x, y] if y == output && uses == 1 => Some((inst.op, x)),
            _ => None,
        }
    }

    /// Whether the body is `out + a · b` of its two inputs: a contraction.
    pub fn is_multiply_add(&self) -> bool {
        let Some((ScalarOp::AddF, Ref::Inst(product))) = self.combiner() else { return false };
        let inst = &self.insts[product];
        self.args.len() == 3
            && self.insts.len() == 2
            && inst.op == ScalarOp::MulF
            && matches!(inst.operands.as_slice(), [Ref::Arg(0), Ref::Arg(1)] | [Ref::Arg(1), Ref::Arg(0)])
    }
}

fn translate(value: Ref, arguments: &[Ref], insts: &[Ref]) -> Ref {
    match value {
        Ref::Arg(index) => arguments[index],
        Ref::Inst(index) => insts[index],
    }
}

/// `out + a · b`.
pub fn multiply_add(element: Element) -> ScalarBody {
    let mut body = ScalarBody::new([element; 3]);
    let product = body.mul(Ref::Arg(0), Ref::Arg(1));
    let sum = body.add(Ref::Arg(2), product);
    body.yield_(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contraction_is_recognised_and_nothing_else() {
        let body = multiply_add(Element::F32);
        assert!(body.is_multiply_add());
        let mut square = ScalarBody::new([Element::F32; 2]);
        let product = square.mul(Ref::Arg(0), Ref::Arg(0));
        let sum = square.add(Ref::Arg(1), product);
        let square = square.yield_(sum);
        assert!(!square.is_multiply_add());
        assert_eq!(square.combiner().map(|(op, _)| op), Some(ScalarOp::AddF));
    }

    #[test]
    fn pruning_keeps_what_is_yielded() {
        let mut body = ScalarBody::new([Element::F32; 2]);
        body.mul(Ref::Arg(0), Ref::Arg(0));
        let sum = body.add(Ref::Arg(0), Ref::Arg(1));
        let mut body = body.yield_(sum);
        body.prune();
        assert_eq!(body.insts.len(), 1);
        assert_eq!(body.yields, [Ref::Inst(0)]);
    }
}
