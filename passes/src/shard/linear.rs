//! Whether a scalar body is linear in some of its arguments: what may be computed from contributions to a sum
//! before they are summed.

use t3c_ir::{Ref, ScalarBody, ScalarOp};

/// How an intermediate value depends on the chosen arguments.
#[derive(Clone, Copy, PartialEq)]
enum Degree {
    /// Zero, whatever they are.
    Zero,
    /// Not at all.
    Constant,
    /// Homogeneously: doubling them doubles it.
    Linear,
    /// In another way.
    Other,
}

use Degree::{Constant, Linear, Other, Zero};

/// Whether what `body` yields is homogeneous and linear in the arguments that `chosen` names (by position), all
/// at once: applied to contributions and summed, it gives what it gives applied to the sum.
pub fn is_linear(body: &ScalarBody, chosen: &[bool]) -> bool {
    let mut degrees: Vec<Degree> = Vec::with_capacity(body.insts.len());
    for inst in &body.insts {
        let operands: Vec<Degree> =
            inst.operands.iter().map(|&value| degree(value, chosen, &degrees)).collect();
        degrees.push(combine(inst.op, &operands));
    }
    matches!(body.yields.as_slice(), [value] if degree(*value, chosen, &degrees) == Linear)
}

fn degree(value: Ref, chosen: &[bool], degrees: &[Degree]) -> Degree {
    match value {
        Ref::Arg(index) if chosen.get(index) == Some(&true) => Linear,
        Ref::Arg(_) => Constant,
        Ref::Inst(index) => degrees[index],
    }
}

fn combine(op: ScalarOp, operands: &[Degree]) -> Degree {
    match (op, operands) {
        (ScalarOp::Const(0.0), _) => Zero,
        (ScalarOp::AddF | ScalarOp::SubF, &[x, y]) => sum(x, y),
        (ScalarOp::Select, &[Zero | Constant, x, y]) => sum(x, y),
        (ScalarOp::MulF, [Linear, Zero | Constant] | [Zero | Constant, Linear]) => Linear,
        (ScalarOp::DivF, [Linear, Constant]) => Linear,
        (ScalarOp::NegF | ScalarOp::FloatCast, &[x]) => x,
        (_, operands) if operands.iter().all(|degree| matches!(degree, Zero | Constant)) => Constant,
        _ => Other,
    }
}

fn sum(x: Degree, y: Degree) -> Degree {
    match (x, y) {
        (Zero, other) | (other, Zero) => other,
        (Constant, Constant) => Constant,
        (Linear, Linear) => Linear,
        _ => Other,
    }
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Element;

    use super::*;

    fn linear(arguments: usize, chosen: &[bool], build: impl FnOnce(&mut ScalarBody) -> Ref) -> bool {
        let mut body = ScalarBody::new(vec![Element::F32; arguments]);
        let value = build(&mut body);
        is_linear(&body.yield_(value), chosen)
    }

    #[test]
    fn sums_scalings_and_masks_are_linear_and_nothing_else() {
        let (x, y) = (Ref::Arg(0), Ref::Arg(1));
        assert!(linear(2, &[true, true], |body| body.add(x, y)));
        assert!(!linear(2, &[true, false], |body| body.add(x, y)), "a residual is added once");
        assert!(linear(2, &[true, false], |body| body.mul(x, y)));
        assert!(!linear(2, &[true, true], |body| body.mul(x, y)));
        assert!(linear(2, &[true, false], |body| body.div(x, y)));
        assert!(!linear(2, &[false, true], |body| body.div(x, y)));
        assert!(!linear(1, &[true], |body| body.unary(ScalarOp::Exp, x)));
        assert!(!linear(2, &[false, false], |body| body.add(x, y)), "independent of the contributions");
        let masked = |fill: f64| {
            linear(2, &[true, false], |body| {
                let zero = body.constant(0.0, Element::F32);
                let condition = body.cmp_f(t3c_ir::Predicate::Lt, y, zero);
                let fill = body.constant(fill, Element::F32);
                body.select(condition, x, fill)
            })
        };
        assert!(masked(0.0));
        assert!(!masked(1.0));
    }
}
