//! Elementwise functions, reductions and softmax. Sums and functions are computed in the wide type.

use t3c_ir::{Builder, Element, Error as IrError, Ref, ScalarBody, ScalarOp, TensorType, Val};

use crate::{error::Error, nn};

pub(super) fn neg(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::NegF, x)
}

pub(super) fn abs(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::AbsF, x)
}

pub(super) fn square(body: &mut ScalarBody, x: Ref) -> Ref {
    body.mul(x, x)
}

pub(super) fn sqrt(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::Sqrt, x)
}

pub(super) fn rsqrt(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::Rsqrt, x)
}

pub(super) fn exp(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::Exp, x)
}

pub(super) fn log(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::Log, x)
}

pub(super) fn tanh(body: &mut ScalarBody, x: Ref) -> Ref {
    body.unary(ScalarOp::Tanh, x)
}

/// `1 / (1 + e⁻ˣ)`.
pub(super) fn sigmoid(body: &mut ScalarBody, x: Ref) -> Ref {
    let one = body.constant(1.0, body.element(x));
    let negated = body.unary(ScalarOp::NegF, x);
    let exp = body.unary(ScalarOp::Exp, negated);
    let denominator = body.add(one, exp);
    body.div(one, denominator)
}

fn letters(rank: usize) -> String {
    ('a'..='z').take(rank).collect()
}

/// `op(x, number)`, elementwise.
pub(super) fn with_number<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    number: f64,
    op: ScalarOp,
) -> Result<Val<'c, 'a>, IrError> {
    let r#type = TensorType::of(x)?;
    let dims = letters(r#type.shape.len());
    b.map(&format!("{dims}->{dims}"), &[x], |body| {
        let number = body.constant(number, r#type.element);
        body.binary(op, Ref::Arg(0), number)
    })
}

/// `x` in another float type.
pub(super) fn cast<'c, 'a>(
    b: &Builder<'c, 'a>,
    path: &str,
    x: Val<'c, 'a>,
    element: Element,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    if r#type.element == Element::I32 || element == Element::I32 {
        let message = format!("from {} to i32 or back; expected floats", r#type.element);
        return Err(Error::invalid(format!("{path}.dtype"), message));
    }
    Ok(nn::convert(b, x, element)?)
}

/// The sum over the letters that `equation` drops, each term times `share`.
pub(super) fn sum<'c, 'a>(
    b: &Builder<'c, 'a>,
    equation: &str,
    x: Val<'c, 'a>,
    share: f64,
) -> Result<Val<'c, 'a>, IrError> {
    let wide = nn::wide(TensorType::of(x)?.element);
    b.structured(equation, &[x], wide, 0.0, |body| {
        let mut term = nn::cast(body, Ref::Arg(0), wide);
        if share != 1.0 {
            let share = body.constant(share, wide);
            term = body.mul(term, share);
        }
        body.add(Ref::Arg(1), term)
    })
}

/// The mean over the letters that `equation` drops.
pub(super) fn mean<'c, 'a>(
    b: &Builder<'c, 'a>,
    equation: &str,
    x: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, IrError> {
    let shape = TensorType::of(x)?.shape;
    let (left, right) = equation.split_once("->").unwrap_or_default();
    let dropped = left.chars().zip(&shape).filter(|(letter, _)| !right.contains(*letter));
    let terms: f64 = dropped.map(|(_, &extent)| extent as f64).product();
    sum(b, equation, x, 1.0 / terms)
}

/// Softmax along `dimension`. The maximum only guards against overflow, and no gradient is taken of it.
pub(super) fn softmax<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    dimension: usize,
) -> Result<Val<'c, 'a>, IrError> {
    let r#type = TensorType::of(x)?;
    let (element, wide) = (r#type.element, nn::wide(r#type.element));
    let dims = letters(r#type.shape.len());
    let rest: String =
        dims.chars().enumerate().filter(|(index, _)| *index != dimension).map(|(_, letter)| letter).collect();
    let max = b.reduce(&format!("{dims}->{rest}"), x, ScalarOp::MaxF)?;
    nn::stop_gradient(b, max);
    let exp = b.structured(&format!("{dims},{rest}->{dims}"), &[x, max], wide, 0.0, |body| {
        let [x, max] = [Ref::Arg(0), Ref::Arg(1)].map(|value| nn::cast(body, value, wide));
        let shifted = body.sub(x, max);
        body.unary(ScalarOp::Exp, shifted)
    })?;
    let sum = sum(b, &format!("{dims}->{rest}"), exp, 1.0)?;
    b.structured(&format!("{dims},{rest}->{dims}"), &[exp, sum], element, 0.0, |body| {
        let share = body.div(Ref::Arg(0), Ref::Arg(1));
        nn::cast(body, share, element)
    })
}
