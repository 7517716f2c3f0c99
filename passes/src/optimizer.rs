//! `t3-optimizer`: AdamW with clipping by the global norm, appended to an entry that returns gradients.
//!
//! One call of the compiled function is then one step: it takes parameters and moments and returns them anew.
//! Everything is elementwise work and plain sums, so that state is partitioned like its parameter and the norm of
//! partitioned gradients is a partial sum.
//!
//! ```text
//! g' = g · min(1, clip / (‖g‖ + 1e-6))
//! m' = β₁ m + (1 − β₁) g'           v' = β₂ v + (1 − β₂) g'²
//! p' = p − lr · (m' / bias1 / (√(v' / bias2) + ε) + weight_decay · p)
//! ```
//!
//! `bias1 = 1 − β₁ᵗ`, `bias2 = 1 − β₂ᵗ` and the learning rate are inputs: the step's number is the trainer's.

use melior::ir::{
    BlockLike, Location,
    operation::{OperationBuilder, OperationLike},
};
use t3c_ir::{
    Builder, Element, Error, Op, Ref, ScalarBody, ScalarOp, TensorType, Val, ffi,
    function::{self, Function, Port},
    views::annotation,
};

use crate::{
    autodiff::{GRADIENT, PARAMETER, gradient_name},
    options,
    pass::{Pass, PassContext, PassError},
};

/// What the norm is kept away from zero by, as in `clip_grad_norm_`.
const NORM_EPSILON: f64 = 1e-6;
const SCALARS: [&str; 3] = ["lr", "bias1", "bias2"];

/// AdamW's constants.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The largest global norm of the gradients; `None` for no clipping.
    pub clip: Option<f64>,
    /// Whether gradients stay results.
    pub keep_gradients: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            clip: Some(1.0),
            keep_gradients: false,
        }
    }
}

/// A parameter that has a gradient.
struct Slot<'c, 'a> {
    port: Port,
    value: Val<'c, 'a>,
    gradient: Val<'c, 'a>,
    split: bool,
    moments: [Val<'c, 'a>; 2],
}

/// Appends the step to the entry. Arguments `lr`, `bias1`, `bias2` come before the parameters, `m/…` and `v/…` after
/// them; results `grad_norm`, `param/…`, `m/…`, `v/…` after those that are there.
///
/// # Errors
/// When the entry returns no gradients.
pub fn append(module: Op<'_, '_>, options: &AdamW) -> Result<(), Error> {
    let entry = function::entry(module)?;
    let (mut ports, results, values) = (entry.argument_ports()?, entry.result_ports()?, entry.results());
    let terminator = entry.terminator().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let pairs = pairs(entry, &ports, &results)?;
    let element = pairs
        .iter()
        .map(|(parameter, _)| wide(ports[*parameter].r#type.element))
        .fold(Element::F32, |all, one| if one == Element::F64 { one } else { all });
    let arguments = entry.arguments();
    let mut slots = Vec::new();
    for &(parameter, gradient) in &pairs {
        let annotated = annotated(arguments[parameter]);
        slots.push(Slot {
            port: ports[parameter].clone(),
            value: annotated.map_or(Ok(arguments[parameter]), |op| op.result(0).map(Into::into))?,
            gradient: values[gradient],
            split: annotated
                .and_then(annotation)
                .is_some_and(|splits| splits.iter().any(|axes| !axes.is_empty())),
            moments: [arguments[parameter]; 2],
        });
    }
    add_moments(entry, &mut ports, &mut slots)?;
    let scalars = add_scalars(entry, &mut ports, element)?;
    let b = Builder::before(terminator)?;
    let b = b.at(Location::name(b.context(), "optimizer", terminator.location()));
    let norm = norm(&b, &slots, element)?;
    let factor = clip_factor(&b, norm, options.clip)?;
    let mut stepped: [Vec<Val<'_, '_>>; 3] = Default::default();
    for slot in &slots {
        let new = step(&b.named(&format!("{}.optimizer", slot.port.name)), slot, factor, &scalars, options)?;
        stepped.iter_mut().zip(new).for_each(|(all, one)| all.push(one));
    }
    let kept = |name: &str| options.keep_gradients || !name.starts_with(GRADIENT);
    let mut returned: Vec<(Port, Val<'_, '_>)> =
        results.into_iter().zip(values).filter(|(port, _)| kept(&port.name)).collect();
    returned.push((Port::new("grad_norm", TensorType::new([], element)), norm));
    for (prefix, values) in [PARAMETER, "m/", "v/"].into_iter().zip(stepped) {
        for (slot, value) in slots.iter().zip(values) {
            let port = Port::new(renamed(&slot.port.name, prefix), TensorType::of(value)?);
            returned.push((port, value));
        }
    }
    let (result_ports, values): (Vec<Port>, Vec<Val<'_, '_>>) = returned.into_iter().unzip();
    let block = entry.body().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let renewed =
        OperationBuilder::new("func.return", terminator.location()).add_operands(&values).build()?;
    block.append_operation(renewed);
    ffi::erase(terminator);
    entry.set_signature(&ports, &result_ports)
}

/// (argument, result) of each parameter and its gradient.
fn pairs(
    entry: Function<'_, '_>,
    arguments: &[Port],
    results: &[Port],
) -> Result<Vec<(usize, usize)>, Error> {
    let pairs: Vec<(usize, usize)> = arguments
        .iter()
        .enumerate()
        .filter(|(_, port)| port.name.starts_with(PARAMETER))
        .filter_map(|(index, port)| {
            let name = gradient_name(&port.name);
            results.iter().position(|result| result.name == name).map(|result| (index, result))
        })
        .collect();
    if pairs.is_empty() {
        let message =
            format!("`{}` returns no `{GRADIENT}…` of a parameter; run t3-autodiff first", entry.name());
        return Err(Error::at(entry.0, message));
    }
    Ok(pairs)
}

fn annotated<'c, 'a>(argument: Val<'c, 'a>) -> Option<Op<'c, 'a>> {
    ffi::uses(argument).into_iter().map(|(user, _)| user).find(|user| annotation(*user).is_some())
}

fn renamed(parameter: &str, prefix: &str) -> String {
    format!("{prefix}{}", parameter.strip_prefix(PARAMETER).unwrap_or(parameter))
}

fn wide(element: Element) -> Element {
    if element == Element::F64 { Element::F64 } else { Element::F32 }
}

fn add_moments<'c, 'a>(
    entry: Function<'c, 'a>,
    ports: &mut Vec<Port>,
    slots: &mut [Slot<'c, 'a>],
) -> Result<(), Error> {
    let block = entry.body().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let context = ffi::context_of(entry.0);
    for (which, prefix) in ["m/", "v/"].into_iter().enumerate() {
        for slot in slots.iter_mut() {
            let r#type = TensorType::new(slot.port.r#type.shape.clone(), wide(slot.port.r#type.element));
            slot.moments[which] = block.add_argument(r#type.to_mlir(context), entry.0.location());
            let attributes = slot.port.attributes.clone();
            ports.push(Port { name: renamed(&slot.port.name, prefix), r#type, attributes });
        }
    }
    Ok(())
}

/// `lr`, `bias1`, `bias2`: those that are there, or new ones before the first parameter.
fn add_scalars<'c, 'a>(
    entry: Function<'c, 'a>,
    ports: &mut Vec<Port>,
    element: Element,
) -> Result<[Val<'c, 'a>; 3], Error> {
    let block = entry.body().ok_or_else(|| Error::at(entry.0, "has no body"))?;
    let r#type = TensorType::new([], element);
    for name in SCALARS {
        if let Some(port) = ports.iter().find(|port| port.name == name) {
            if port.r#type != r#type {
                let found = &port.r#type;
                return Err(Error::at(entry.0, format!("`{name}` is a {found}, expected {type}")));
            }
            continue;
        }
        let first = ports.iter().position(|port| port.name.starts_with(PARAMETER)).unwrap_or(ports.len());
        block.insert_argument(first, r#type.to_mlir(ffi::context_of(entry.0)), entry.0.location());
        ports.insert(first, Port::new(name, r#type.clone()));
    }
    let find = |name: &str| {
        let index = ports.iter().position(|port| port.name == name).unwrap_or_default();
        Ok::<_, Error>(block.argument(index)?.into())
    };
    Ok([find(SCALARS[0])?, find(SCALARS[1])?, find(SCALARS[2])?])
}

fn letters(r#type: &TensorType) -> String {
    ('a'..='z').take(r#type.shape.len()).collect()
}

fn cast(body: &mut ScalarBody, value: Ref, element: Element) -> Ref {
    if body.element(value) == element { value } else { body.push(ScalarOp::FloatCast, &[value], element) }
}

/// The root of the sum of all squares. Squares of partitioned gradients are added among themselves first: one
/// partial sum, completed once.
fn norm<'c, 'a>(b: &Builder<'c, 'a>, slots: &[Slot<'c, 'a>], element: Element) -> Result<Val<'c, 'a>, Error> {
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

fn clip_factor<'c, 'a>(
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

/// The new parameter, first and second moment.
fn step<'c, 'a>(
    b: &Builder<'c, 'a>,
    slot: &Slot<'c, 'a>,
    factor: Option<Val<'c, 'a>>,
    scalars: &[Val<'c, 'a>; 3],
    options: &AdamW,
) -> Result<[Val<'c, 'a>; 3], Error> {
    let r#type = &slot.port.r#type;
    let (dims, element) = (letters(r#type), wide(r#type.element));
    let moment = |old: Val<'c, 'a>, beta: f64, squared: bool| {
        let mut inputs = vec![old, slot.gradient];
        inputs.extend(factor);
        let scalar = if factor.is_some() { "," } else { "" };
        b.structured(&format!("{dims},{dims}{scalar}->{dims}"), &inputs, element, 0.0, |body| {
            let mut gradient = cast(body, Ref::Arg(1), element);
            if factor.is_some() {
                let factor = cast(body, Ref::Arg(2), element);
                gradient = body.mul(gradient, factor);
            }
            if squared {
                gradient = body.mul(gradient, gradient);
            }
            let [keep, take] = [beta, 1.0 - beta].map(|number| body.constant(number, element));
            let (kept, taken) = (body.mul(keep, Ref::Arg(0)), body.mul(take, gradient));
            body.add(kept, taken)
        })
    };
    let first = moment(slot.moments[0], options.beta1, false)?;
    let second = moment(slot.moments[1], options.beta2, true)?;
    let inputs = [slot.value, first, second, scalars[0], scalars[1], scalars[2]];
    let specification = format!("{dims},{dims},{dims},,,->{dims}");
    let parameter = b.structured(&specification, &inputs, r#type.element, 0.0, |body| {
        let old = cast(body, Ref::Arg(0), element);
        let [rate, bias1, bias2] = [3, 4, 5].map(|argument| cast(body, Ref::Arg(argument), element));
        let [eps, decay] = [options.eps, options.weight_decay].map(|number| body.constant(number, element));
        let mean = body.div(Ref::Arg(1), bias1);
        let square = body.div(Ref::Arg(2), bias2);
        let root = body.unary(ScalarOp::Sqrt, square);
        let root = body.add(root, eps);
        let direction = body.div(mean, root);
        let decayed = body.mul(decay, old);
        let direction = body.add(direction, decayed);
        let change = body.mul(rate, direction);
        let new = body.sub(old, change);
        cast(body, new, r#type.element)
    })?;
    Ok([parameter, first, second])
}

impl Pass for AdamW {
    const NAME: &'static str = "t3-optimizer";
    const SUMMARY: &'static str = "Append an AdamW step to an entry that returns gradients (once)";
    const OPTIONS: &'static [&'static str] = &[
        "beta1=0.9: decay of the first moment",
        "beta2=0.999: decay of the second moment",
        "eps=1e-8: added to the root of the second moment",
        "weight_decay=0.01: decoupled weight decay",
        "clip=1: the largest global norm of the gradients, `none` for no clipping",
        "keep_gradients=false: whether gradients stay results",
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self::default();
        let keys = ["beta1", "beta2", "eps", "weight_decay", "clip", "keep_gradients"];
        for (key, value) in options::parse(Self::NAME, text, &keys)? {
            let wrong = |expected: &str| PassError::Option {
                pass: Self::NAME,
                option: format!("{key}={value}"),
                expected: expected.to_owned(),
            };
            if key == "keep_gradients" {
                pass.keep_gradients = value.parse().map_err(|_| wrong("true or false"))?;
                continue;
            }
            if (key, value) == ("clip", "none") {
                pass.clip = None;
                continue;
            }
            let number: f64 = value.parse().map_err(|_| wrong("a number"))?;
            let fits = match key {
                "beta1" | "beta2" => (0.0..1.0).contains(&number),
                "clip" => number > 0.0 && number.is_finite(),
                _ => number >= 0.0 && number.is_finite(),
            };
            if !fits {
                return Err(wrong(
                    "betas in 0..1, a positive clip, and finite numbers that are not negative",
                ));
            }
            match key {
                "beta1" => pass.beta1 = number,
                "beta2" => pass.beta2 = number,
                "eps" => pass.eps = number,
                "weight_decay" => pass.weight_decay = number,
                _ => pass.clip = Some(number),
            }
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        Ok(append(module, self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use t3c_ir::{
        Context,
        interpreter::{Interpreter, Tensor},
    };

    use crate::autodiff::{Autodiff, differentiate};

    const SOURCE: &str = r#"
#id = affine_map<(a) -> (a)>
#none = affine_map<(a) -> ()>
func.func @train(%x: tensor<3xf64> {t3.name = "x"}, %w: tensor<3xf64> {t3.name = "param/w"}, %b: tensor<f64> {t3.name = "param/b"}) -> (tensor<f64> {t3.name = "loss"}) {
  %c = arith.constant 0.0 : f64
  %e = tensor.empty() : tensor<f64>
  %z = linalg.fill ins(%c : f64) outs(%e : tensor<f64>) -> tensor<f64>
  %0 = linalg.generic {indexing_maps = [#id, #id, #none, #none], iterator_types = ["reduction"]} ins(%x, %w, %b : tensor<3xf64>, tensor<3xf64>, tensor<f64>) outs(%z : tensor<f64>) {
  ^bb0(%i: f64, %j: f64, %k: f64, %o: f64):
    %p = arith.mulf %i, %j : f64
    %q = arith.mulf %p, %k : f64
    %s = arith.addf %o, %q : f64
    linalg.yield %s : f64
  } -> tensor<f64>
  return %0 : tensor<f64>
}"#;

    /// Three steps of a plain loop beside three calls.
    #[test]
    fn a_step_equals_a_plain_loop() {
        for clip in [Some(0.5), None] {
            let options = AdamW { clip, weight_decay: 0.1, ..AdamW::default() };
            let context = Context::new();
            let module = context.parse(SOURCE, "train.mlir").unwrap();
            differentiate(module.op(), &Autodiff::default()).unwrap();
            append(module.op(), &options).unwrap();
            module.verify().unwrap();
            let entry = function::entry(module.op()).unwrap();
            let names = |ports: Vec<Port>| ports.into_iter().map(|port| port.name).collect::<Vec<_>>();
            assert_eq!(
                names(entry.argument_ports().unwrap()).join(" "),
                "x lr bias1 bias2 param/w param/b m/w m/b v/w v/b"
            );
            assert_eq!(
                names(entry.result_ports().unwrap()).join(" "),
                "loss grad_norm param/w param/b m/w m/b v/w v/b"
            );
            let x = [0.3, -1.2, 2.0];
            let mut p = vec![0.5, 1.5, -0.7, 1.1];
            let (mut m, mut v) = (vec![0.0; 4], vec![0.0; 4]);
            for t in 1..=3 {
                let (bias1, bias2) = (1.0 - options.beta1.powi(t), 1.0 - options.beta2.powi(t));
                let scalar = |number: f64| Tensor::f64([], [number]);
                let mut inputs = vec![Tensor::f64([3], x), scalar(0.01), scalar(bias1), scalar(bias2)];
                for state in [&p, &m, &v] {
                    inputs.extend([Tensor::f64([3], &state[..3]), scalar(state[3])]);
                }
                let results = Interpreter::new(module.op()).run_one("train", &inputs).unwrap();
                let dot: f64 = x.iter().zip(&p).map(|(x, w)| x * w).sum();
                let gradient: Vec<f64> = x.iter().map(|x| x * p[3]).chain([dot]).collect();
                let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                let factor = clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
                for (at, gradient) in gradient.iter().map(|gradient| gradient * factor).enumerate() {
                    m[at] = options.beta1 * m[at] + (1.0 - options.beta1) * gradient;
                    v[at] = options.beta2 * v[at] + (1.0 - options.beta2) * gradient * gradient;
                    let direction = m[at] / bias1 / ((v[at] / bias2).sqrt() + options.eps);
                    p[at] -= 0.01 * (direction + options.weight_decay * p[at]);
                }
                let found: Vec<f64> = results[1..].iter().flat_map(Tensor::numbers).collect();
                let expected = [vec![norm], p.clone(), m.clone(), v.clone()].concat();
                assert!(
                    found.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-13),
                    "{found:?} {expected:?}"
                );
            }
        }
    }

    #[test]
    fn an_entry_without_gradients_and_bad_options_are_refused() {
        let context = Context::new();
        let module = context.parse(SOURCE, "train.mlir").unwrap();
        let text = append(module.op(), &AdamW::default()).unwrap_err().to_string();
        assert!(text.contains("t3-autodiff"), "{text}");
        assert!(AdamW::from_options("beta1=1.5").is_err() && AdamW::from_options("clip=none").is_ok());
    }
}
