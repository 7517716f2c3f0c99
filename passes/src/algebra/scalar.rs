//! What the algebra knows of scalar functions: which are linear, which scale exactly, which are monotone.

use t3c_ir::{Element, Ref, ScalarBody, ScalarOp};

/// The coefficients of `Σ cᵢ·xᵢ`, where the body is that and computes in one floating-point type throughout.
pub fn linear(body: &ScalarBody) -> Option<Vec<f64>> {
    let arguments = body.args.len() - 1;
    let element = body.element(*body.yields.first()?);
    if !matches!(element, Element::F64 | Element::F32 | Element::F16 | Element::Bf16) {
        return None;
    }
    if body.args[..arguments].iter().chain(body.insts.iter().map(|inst| &inst.element)).any(|e| *e != element)
    {
        return None;
    }
    let unit = |index: usize| Form::Linear((0..arguments).map(|i| f64::from(u8::from(i == index))).collect());
    let mut known: Vec<Form> = Vec::with_capacity(body.insts.len());
    let form = |known: &[Form], value: Ref| match value {
        Ref::Arg(index) if index < arguments => Some(unit(index)),
        Ref::Arg(_) => None,
        Ref::Inst(index) => known.get(index).cloned(),
    };
    for inst in &body.insts {
        let operands: Option<Vec<Form>> = inst.operands.iter().map(|value| form(&known, *value)).collect();
        known.push(Form::of(inst.op, &operands?)?);
    }
    match form(&known, body.yields[0])? {
        Form::Linear(coefficients) => Some(coefficients),
        Form::Constant(_) => None,
    }
}

/// A constant, or a linear form of the arguments.
#[derive(Clone)]
enum Form {
    Constant(f64),
    Linear(Vec<f64>),
}

impl Form {
    fn of(op: ScalarOp, operands: &[Form]) -> Option<Form> {
        use Form::{Constant, Linear};
        let scaled = |x: &[f64], factor: f64| Linear(x.iter().map(|c| c * factor).collect());
        Some(match (op, operands) {
            (ScalarOp::Const(value), []) => Constant(value),
            (ScalarOp::NegF, [Linear(x)]) => scaled(x, -1.0),
            (ScalarOp::MulF, [Linear(x), Constant(c)] | [Constant(c), Linear(x)]) => scaled(x, *c),
            (ScalarOp::DivF, [Linear(x), Constant(c)]) => scaled(x, 1.0 / c),
            (ScalarOp::AddF, [Linear(x), Linear(y)]) => Linear(x.iter().zip(y).map(|(x, y)| x + y).collect()),
            (ScalarOp::SubF, [Linear(x), Linear(y)]) => Linear(x.iter().zip(y).map(|(x, y)| x - y).collect()),
            _ => return None,
        })
    }
}

/// Whether the body only scales by ±2ᵏ, in steps that are each such: exact unless it leaves the type's range.
pub fn is_exact_scaling(body: &ScalarBody) -> bool {
    let exact = |op: &ScalarOp| match op {
        ScalarOp::Const(value) => is_power_of_two(*value),
        op => matches!(op, ScalarOp::NegF | ScalarOp::MulF | ScalarOp::DivF),
    };
    body.insts.iter().all(|inst| exact(&inst.op)) && linear(body).is_some_and(|c| c.len() == 1)
}

/// Whether `|value|` is a power of two whose scalings of ordinary numbers stay ordinary.
fn is_power_of_two(value: f64) -> bool {
    const MANTISSA: u64 = (1 << 52) - 1;
    let magnitude = value.abs();
    (2f64.powi(-12)..=2f64.powi(12)).contains(&magnitude) && magnitude.to_bits() & MANTISSA == 0
}

/// Whether the body is a function of one argument that never falls as it rises, as computed: rounding keeps order.
pub fn is_monotone(body: &ScalarBody) -> bool {
    let insts = last_first(body);
    let [inst, constants @ ..] = insts.as_slice() else { return false };
    let constant = match constants {
        [] => None,
        [constant] => match constant.op {
            ScalarOp::Const(value) => Some(value),
            _ => return false,
        },
        _ => return false,
    };
    let argument_first = inst.operands.first() == Some(&Ref::Arg(0));
    body.args.len() == 2
        && inst.operands.iter().filter(|value| **value == Ref::Arg(0)).count() == 1
        && match (inst.op, constant) {
            (ScalarOp::FloatCast, None) => true,
            (_, Some(c)) if !c.is_finite() => false,
            (ScalarOp::MulF, Some(c)) => c > 0.0,
            (ScalarOp::DivF, Some(c)) => argument_first && c > 0.0,
            (ScalarOp::SubF, Some(_)) => argument_first,
            (ScalarOp::AddF | ScalarOp::MaxF | ScalarOp::MinF, Some(_)) => true,
            _ => false,
        }
}

/// The instruction that is yielded, then the others.
fn last_first(body: &ScalarBody) -> Vec<&t3c_ir::Inst> {
    let mut insts: Vec<_> = body.insts.iter().collect();
    match body.yields.first() {
        Some(Ref::Inst(at)) if *at < insts.len() => {
            let last = insts.remove(*at);
            insts.insert(0, last);
            insts
        }
        _ => vec![],
    }
}

/// The only instruction, where the body is one instruction of its two arguments in order.
pub fn binary(body: &ScalarBody) -> Option<ScalarOp> {
    let [inst] = body.insts.as_slice() else { return None };
    let plain = body.args.len() == 3
        && body.yields == [Ref::Inst(0)]
        && inst.operands == [Ref::Arg(0), Ref::Arg(1)]
        && body.args[..2].iter().all(|element| *element == inst.element);
    plain.then_some(inst.op)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(arguments: usize, make: impl FnOnce(&mut ScalarBody) -> Ref) -> ScalarBody {
        let mut body = ScalarBody::new(vec![Element::F32; arguments + 1]);
        let value = make(&mut body);
        body.yield_(value)
    }

    fn scaled(factor: f64) -> ScalarBody {
        body(1, |b| {
            let factor = b.constant(factor, Element::F32);
            b.mul(Ref::Arg(0), factor)
        })
    }

    #[test]
    fn linear_bodies_have_their_coefficients() {
        assert_eq!(linear(&scaled(-3.0)), Some(vec![-3.0]));
        let combined = body(2, |b| {
            let half = b.constant(0.5, Element::F32);
            let x = b.mul(Ref::Arg(0), half);
            b.sub(x, Ref::Arg(1))
        });
        assert_eq!(linear(&combined), Some(vec![0.5, -1.0]));
        let shifted = body(1, |b| {
            let one = b.constant(1.0, Element::F32);
            b.add(Ref::Arg(0), one)
        });
        assert_eq!(linear(&shifted), None);
        assert_eq!(linear(&body(2, |b| b.mul(Ref::Arg(0), Ref::Arg(1)))), None);
        let cast = body(1, |b| b.push(ScalarOp::FloatCast, &[Ref::Arg(0)], Element::Bf16));
        assert_eq!(linear(&cast), None, "rounding is not linear");
    }

    #[test]
    fn only_powers_of_two_scale_exactly() {
        assert!(is_exact_scaling(&scaled(0.125)) && is_exact_scaling(&scaled(-4.0)));
        assert!(!is_exact_scaling(&scaled(3.0)) && !is_exact_scaling(&scaled(0.0)));
        assert!(!is_exact_scaling(&scaled(2f64.powi(-100))), "it would leave f32's range");
        assert!(!is_exact_scaling(&body(2, |b| b.add(Ref::Arg(0), Ref::Arg(1)))));
    }

    #[test]
    fn monotone_functions_keep_order() {
        assert!(is_monotone(&scaled(3.0)) && !is_monotone(&scaled(-3.0)));
        assert!(is_monotone(&body(1, |b| b.push(ScalarOp::FloatCast, &[Ref::Arg(0)], Element::Bf16))));
        assert!(!is_monotone(&body(1, |b| b.unary(ScalarOp::NegF, Ref::Arg(0)))));
        let from_one = body(1, |b| {
            let one = b.constant(1.0, Element::F32);
            b.sub(one, Ref::Arg(0))
        });
        assert!(!is_monotone(&from_one));
    }
}
