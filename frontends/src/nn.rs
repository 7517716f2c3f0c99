//! The layers that models are made of, as structured operations.
//!
//! Sums, norms and losses are computed in [`wide`], whatever the type of activations.

use melior::ir::Attribute;
use t3c_ir::{
    Builder, Element, Error, Op, Ref, ScalarBody, ScalarOp, TensorType, Val, ffi,
    scalar::Predicate,
    units::{self, Unit},
};

/// The type in which sums over `element` are taken.
pub(crate) fn wide(element: Element) -> Element {
    match element {
        Element::F16 | Element::Bf16 => Element::F32,
        other => other,
    }
}

/// `x` as `element`.
pub(crate) fn cast(body: &mut ScalarBody, x: Ref, element: Element) -> Ref {
    if body.element(x) == element { x } else { body.push(ScalarOp::FloatCast, &[x], element) }
}

/// `x · σ(x)`.
pub(crate) fn silu(body: &mut ScalarBody, x: Ref) -> Ref {
    let element = body.element(x);
    let one = body.constant(1.0, element);
    let negated = body.unary(ScalarOp::NegF, x);
    let exp = body.unary(ScalarOp::Exp, negated);
    let denominator = body.add(one, exp);
    body.div(x, denominator)
}

/// `x · σ(1.702 x)`.
pub(crate) fn quick_gelu(body: &mut ScalarBody, x: Ref) -> Ref {
    let element = body.element(x);
    let [one, slope] = [1.0, -1.702].map(|value| body.constant(value, element));
    let scaled = body.mul(x, slope);
    let exp = body.unary(ScalarOp::Exp, scaled);
    let denominator = body.add(one, exp);
    body.div(x, denominator)
}

/// `x · Φ(x)`, the exact form.
pub(crate) fn gelu(body: &mut ScalarBody, x: Ref) -> Ref {
    let element = body.element(x);
    let [half, one] = [0.5, 1.0].map(|value| body.constant(value, element));
    let root = body.constant(std::f64::consts::FRAC_1_SQRT_2, element);
    let scaled = body.mul(x, root);
    let erf = body.unary(ScalarOp::Erf, scaled);
    let sum = body.add(one, erf);
    let halved = body.mul(x, half);
    body.mul(halved, sum)
}

/// GELU by tanh, as GPT-2 has it.
pub(crate) fn gelu_tanh(body: &mut ScalarBody, x: Ref) -> Ref {
    let element = body.element(x);
    let [half, one, cubic] = [0.5, 1.0, 0.044715].map(|value| body.constant(value, element));
    let root = body.constant((2.0 / std::f64::consts::PI).sqrt(), element);
    let square = body.mul(x, x);
    let cube = body.mul(square, x);
    let small = body.mul(cubic, cube);
    let inner = body.add(x, small);
    let inner = body.mul(root, inner);
    let tanh = body.unary(ScalarOp::Tanh, inner);
    let sum = body.add(one, tanh);
    let halved = body.mul(x, half);
    body.mul(halved, sum)
}

/// `max(x, 0)`.
pub(crate) fn relu(body: &mut ScalarBody, x: Ref) -> Ref {
    let element = body.element(x);
    let zero = body.constant(0.0, element);
    let positive = body.cmp_f(Predicate::Gt, x, zero);
    body.select(positive, x, zero)
}

/// An elementwise function of one tensor, computed in its wide type.
pub(crate) fn unary<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    function: fn(&mut ScalarBody, Ref) -> Ref,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
    b.map(&format!("{dims}->{dims}"), &[x], |body| {
        let x = cast(body, Ref::Arg(0), wide(r#type.element));
        let y = function(body, x);
        cast(body, y, r#type.element)
    })
}

/// What a norm does besides dividing by the root mean square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gain {
    /// `· weight`.
    Weight,
    /// `· (1 + weight)`.
    OnePlusWeight,
}

/// The letters of a norm's tensors: of `x`, of what one norm is taken for each of, and of the weight, which are
/// those over which it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NormDims {
    pub x: &'static str,
    pub kept: &'static str,
    pub weight: &'static str,
}

impl NormDims {
    /// Over the last dimension of `x [N, D]`.
    pub const ROWS: Self = Self { x: "nd", kept: "n", weight: "d" };
    /// Over the heads of queries `[N, K, G, 2, E]`.
    pub const QUERIES: Self = Self { x: "nkgci", kept: "nkg", weight: "ci" };
    /// Over the heads of keys `[N, K, 2, E]`.
    pub const KEYS: Self = Self { x: "nkci", kept: "nk", weight: "ci" };

    fn size(&self, r#type: &TensorType) -> f64 {
        let letters = self.x.chars().zip(&r#type.shape);
        letters
            .filter(|(letter, _)| self.weight.contains(*letter))
            .map(|(_, &extent)| extent as f64)
            .product()
    }
}

/// `x / √(mean x² + eps) · weight` over the last dimension of `x [N, D]`.
pub(crate) fn rms_norm<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    weight: Val<'c, 'a>,
    eps: f64,
) -> Result<Val<'c, 'a>, Error> {
    rms_norm_over(b, NormDims::ROWS, x, weight, Gain::Weight, eps)
}

/// `x / √(mean x² + eps)` with a gain.
pub(crate) fn rms_norm_over<'c, 'a>(
    b: &Builder<'c, 'a>,
    dims: NormDims,
    x: Val<'c, 'a>,
    weight: Val<'c, 'a>,
    gain: Gain,
    eps: f64,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    let element = r#type.element;
    let NormDims { x: letters, kept, weight: weighted } = dims;
    let squares = b.structured(&format!("{letters}->{kept}"), &[x], wide(element), 0.0, |body| {
        let x = cast(body, Ref::Arg(0), wide(element));
        let square = body.mul(x, x);
        body.add(Ref::Arg(1), square)
    })?;
    let inverse = inverse_root(b, kept, squares, dims.size(&r#type), eps)?;
    let specification = format!("{letters},{kept},{weighted}->{letters}");
    b.map(&specification, &[x, inverse, weight], |body| {
        let x = cast(body, Ref::Arg(0), wide(element));
        let normal = body.mul(x, Ref::Arg(1));
        match gain {
            Gain::Weight => {
                let normal = cast(body, normal, element);
                body.mul(normal, Ref::Arg(2))
            }
            Gain::OnePlusWeight => {
                let weight = cast(body, Ref::Arg(2), wide(element));
                let one = body.constant(1.0, wide(element));
                let weight = body.add(one, weight);
                let scaled = body.mul(normal, weight);
                cast(body, scaled, element)
            }
        }
    })
}

/// `(x − mean) / √(variance + eps) · weight + bias` over the last dimension of `x [N, D]`.
pub(crate) fn layer_norm<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    weight: Val<'c, 'a>,
    bias: Val<'c, 'a>,
    eps: f64,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    let (element, size) = (r#type.element, NormDims::ROWS.size(&r#type));
    let sum = b.structured("nd->n", &[x], wide(element), 0.0, |body| {
        let x = cast(body, Ref::Arg(0), wide(element));
        body.add(Ref::Arg(1), x)
    })?;
    let centred = b.structured("nd,n->nd", &[x, sum], wide(element), 0.0, |body| {
        let x = cast(body, Ref::Arg(0), wide(element));
        let size = body.constant(size, wide(element));
        let mean = body.div(Ref::Arg(1), size);
        body.sub(x, mean)
    })?;
    let squares = b.structured("nd->n", &[centred], wide(element), 0.0, |body| {
        let square = body.mul(Ref::Arg(0), Ref::Arg(0));
        body.add(Ref::Arg(1), square)
    })?;
    let inverse = inverse_root(b, "n", squares, size, eps)?;
    b.structured("nd,n,d,d->nd", &[centred, inverse, weight, bias], element, 0.0, |body| {
        let normal = body.mul(Ref::Arg(0), Ref::Arg(1));
        let normal = cast(body, normal, element);
        let scaled = body.mul(normal, Ref::Arg(2));
        body.add(scaled, Ref::Arg(3))
    })
}

/// `x + bias`, which has the last `rank of bias` dimensions of `x`.
pub(crate) fn biased<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    bias: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let (rank, of_bias) = (TensorType::of(x)?.shape.len(), TensorType::of(bias)?.shape.len());
    let dims: String = ('a'..='z').take(rank).collect();
    let specification = format!("{dims},{}->{dims}", &dims[rank - of_bias..]);
    b.map(&specification, &[x, bias], |body| body.add(Ref::Arg(0), Ref::Arg(1)))
}

/// The residual stream `x [N, D]` plus what a block adds to it, with its biases `[D]`.
///
/// One operation, so that the block's partial sums are reduced before any bias is added.
pub(crate) fn residual<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    added: Val<'c, 'a>,
    biases: &[Val<'c, 'a>],
) -> Result<Val<'c, 'a>, Error> {
    let specification = format!("nd,nd{}->nd", ",d".repeat(biases.len()));
    b.map(&specification, &[&[x, added], biases].concat(), |body| {
        let biased = (0..biases.len()).fold(Ref::Arg(1), |sum, bias| body.add(sum, Ref::Arg(2 + bias)));
        body.add(Ref::Arg(0), biased)
    })
}

/// `x` times a number, in its wide type.
pub(crate) fn scaled<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, factor: f64) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
    b.map(&format!("{dims}->{dims}"), &[x], |body| {
        let x = cast(body, Ref::Arg(0), wide(r#type.element));
        let factor = body.constant(factor, wide(r#type.element));
        let y = body.mul(x, factor);
        cast(body, y, r#type.element)
    })
}

/// `cap · tanh(x / cap)` of `x [N, V]`.
pub(crate) fn capped<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, cap: f64) -> Result<Val<'c, 'a>, Error> {
    b.map("nv->nv", &[x], |body| {
        let element = body.element(Ref::Arg(0));
        let cap = body.constant(cap, element);
        let share = body.div(Ref::Arg(0), cap);
        let tanh = body.unary(ScalarOp::Tanh, share);
        body.mul(tanh, cap)
    })
}

/// `1 / √(sum / size + eps)`.
fn inverse_root<'c, 'a>(
    b: &Builder<'c, 'a>,
    dims: &str,
    sum: Val<'c, 'a>,
    size: f64,
    eps: f64,
) -> Result<Val<'c, 'a>, Error> {
    b.map(&format!("{dims}->{dims}"), &[sum], |body| {
        let element = body.element(Ref::Arg(0));
        let [size, eps] = [size, eps].map(|value| body.constant(value, element));
        let mean = body.div(Ref::Arg(0), size);
        let shifted = body.add(mean, eps);
        body.unary(ScalarOp::Rsqrt, shifted)
    })
}

/// `activation(gate) · up`.
pub(crate) fn gated<'c, 'a>(
    b: &Builder<'c, 'a>,
    gate: Val<'c, 'a>,
    up: Val<'c, 'a>,
    activation: fn(&mut ScalarBody, Ref) -> Ref,
) -> Result<Val<'c, 'a>, Error> {
    let element = TensorType::of(gate)?.element;
    let dims: String = ('a'..='z').take(TensorType::of(gate)?.shape.len()).collect();
    b.map(&format!("{dims},{dims}->{dims}"), &[gate, up], |body| {
        let gate = cast(body, Ref::Arg(0), wide(element));
        let active = activation(body, gate);
        let active = cast(body, active, element);
        body.mul(active, Ref::Arg(1))
    })
}

/// `x` in another float type.
pub(crate) fn convert<'c, 'a>(
    b: &Builder<'c, 'a>,
    x: Val<'c, 'a>,
    element: Element,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(x)?;
    if r#type.element == element {
        return Ok(x);
    }
    let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
    b.structured(&format!("{dims}->{dims}"), &[x], element, 0.0, |body| cast(body, Ref::Arg(0), element))
}

/// Probabilities from scores `[N, E]`.
pub(crate) fn softmax<'c, 'a>(b: &Builder<'c, 'a>, scores: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
    let max = b.reduce("ne->n", scores, ScalarOp::MaxF)?;
    stop_gradient(b, max);
    let weights = b.map("ne,n->ne", &[scores, max], |body| {
        let shifted = body.sub(Ref::Arg(0), Ref::Arg(1));
        body.unary(ScalarOp::Exp, shifted)
    })?;
    let sum = b.reduce("ne->n", weights, ScalarOp::AddF)?;
    b.map("ne,n->ne", &[weights, sum], |body| body.div(Ref::Arg(0), Ref::Arg(1)))
}

/// What a loss needs of logits `[M, V]`.
pub(crate) struct LogSoftmax<'c, 'a> {
    /// Each row's log-probability of its target, `[M]`.
    pub logp: Val<'c, 'a>,
    max: Val<'c, 'a>,
    sum: Val<'c, 'a>,
}

/// Each row's log-probability of its target: `logits [M, V]`, `targets i32[M]`.
///
/// The row maximum only guards against overflow, and its gradient is zero in exact arithmetic: it is marked
/// so that no gradient is taken.
pub(crate) fn log_probability<'c, 'a>(
    b: &Builder<'c, 'a>,
    logits: Val<'c, 'a>,
    targets: Val<'c, 'a>,
) -> Result<LogSoftmax<'c, 'a>, Error> {
    let element = TensorType::of(logits)?.element;
    let max = b.reduce("mv->m", logits, ScalarOp::MaxF)?;
    stop_gradient(b, max);
    let sum = b.structured("mv,m->m", &[logits, max], element, 0.0, |body| {
        let shifted = body.sub(Ref::Arg(0), Ref::Arg(1));
        let exp = body.unary(ScalarOp::Exp, shifted);
        body.add(Ref::Arg(2), exp)
    })?;
    let picked = b.structured("mv,m->m", &[logits, targets], element, 0.0, |body| {
        let (column, target) = (body.index(1), body.to_i64(Ref::Arg(1)));
        let hit = body.cmp_i(Predicate::Eq, column, target);
        let zero = body.constant(0.0, element);
        let term = body.select(hit, Ref::Arg(0), zero);
        body.add(Ref::Arg(2), term)
    })?;
    let logp = b.map("m,m,m->m", &[picked, max, sum], |body| {
        let log = body.unary(ScalarOp::Log, Ref::Arg(2));
        let shifted = body.sub(Ref::Arg(0), Ref::Arg(1));
        body.sub(shifted, log)
    })?;
    Ok(LogSoftmax { logp, max, sum })
}

impl<'c, 'a> LogSoftmax<'c, 'a> {
    /// `log Σ exp(logits)`, `[M]`.
    pub fn log_sum(&self, b: &Builder<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        b.map("m,m->m", &[self.max, self.sum], |body| {
            let log = body.unary(ScalarOp::Log, Ref::Arg(1));
            body.add(Ref::Arg(0), log)
        })
    }
}

/// Marks `value` as one of which no gradient is taken.
pub(crate) fn stop_gradient<'c, 'a>(b: &Builder<'c, 'a>, value: Val<'c, 'a>) {
    if let Some(operation) = ffi::value_owner(value) {
        ffi::set_attribute(operation, STOP_GRADIENT, Attribute::unit(b.context()));
    }
}

/// On an operation through which no gradient flows.
pub(crate) const STOP_GRADIENT: &str = "t3.stop_gradient";

/// Calls a unit, which is added to `module` where it is not there yet.
pub(crate) fn call_unit<'c, 'a>(
    b: &Builder<'c, 'a>,
    module: Op<'c, 'a>,
    unit: &Unit,
    arguments: &[Val<'c, 'a>],
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let symbol = units::ensure(module, unit)?;
    b.call(&symbol, arguments, &unit.results)
}

/// Rows `ids` of `table`, which are split alike: an index points into its own device's rows.
pub(crate) fn aligned_lookup<'c, 'a>(
    b: &Builder<'c, 'a>,
    module: Op<'c, 'a>,
    table: Val<'c, 'a>,
    ids: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let unit = Unit::lookup(&TensorType::of(table)?, &TensorType::of(ids)?).aligned();
    Ok(call_unit(b, module, &unit, &[table, ids])?[0])
}

/// Rows `ids` of `table`.
pub(crate) fn lookup<'c, 'a>(
    b: &Builder<'c, 'a>,
    module: Op<'c, 'a>,
    table: Val<'c, 'a>,
    ids: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let unit = Unit::lookup(&TensorType::of(table)?, &TensorType::of(ids)?);
    Ok(call_unit(b, module, &unit, &[table, ids])?[0])
}
