//! Gradients against central differences in f64, through the interpreter.

use t3c_ir::{
    Builder, Context, Element, Generic, Location, Module, Predicate, Ref, ScalarBody, ScalarOp, TensorType,
    Val,
    function::{self, Function, Port, Signature, add_function},
    interpreter::{Interpreter, Tensor},
    walk,
};

use super::{Autodiff, derivatives, differentiate};

mod breadth;
mod random;
mod remat;
mod spmd;
mod units;

const F: Element = Element::F64;

fn f64s(shape: &[u64]) -> TensorType {
    TensorType::new(shape, F)
}

fn i32s(shape: &[u64]) -> TensorType {
    TensorType::new(shape, Element::I32)
}

/// An entry `train` with these ports that returns `loss`.
fn entry<'c>(
    context: &'c Context,
    ports: &[(&str, TensorType)],
    build: impl for<'a> FnOnce(&Builder<'c, 'a>, &'a Module<'c>, &[Val<'c, 'a>]) -> Val<'c, 'a>,
) -> Module<'c> {
    let location = Location::new(context.mlir(), "model.json", 1, 1);
    let module = context.module(location);
    let signature = Signature {
        name: "train".into(),
        arguments: ports.iter().map(|(name, r#type)| Port::new(*name, r#type.clone())).collect(),
        results: vec![Port::new("loss", f64s(&[]))],
        public: true,
        unit: None,
    };
    {
        let (operation, block) = add_function(&module, &signature, location).unwrap();
        let b = Builder::at_end(context.mlir(), block, location);
        let loss = build(&b, &module, &Function(operation).arguments());
        b.ret(&[loss]).unwrap();
    }
    module.verify().unwrap();
    module
}

/// A weighted sum of all elements, so that every element has another gradient.
fn weighted<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>) -> Val<'c, 'a> {
    let r#type = TensorType::of(x).unwrap();
    let weights: Vec<f64> = (0..r#type.elements()).map(|at| ((at * 7 + 3) % 11) as f64 / 5.0 - 0.9).collect();
    let weights = b.constant(&weights, &r#type).unwrap();
    let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
    b.contract(&format!("{dims},{dims}->"), x, weights).unwrap()
}

fn differentiated<'c>(module: &Module<'c>, options: &Autodiff) -> Module<'c> {
    let copy = module.duplicate();
    differentiate(copy.op(), options).unwrap();
    copy.verify().unwrap_or_else(|error| panic!("{error}\n{}", copy.text(false)));
    copy
}

/// Differentiates with respect to all parameters and compares with central differences; returns the module.
fn check<'c>(module: &Module<'c>, inputs: &[Tensor]) -> Module<'c> {
    let with = differentiated(module, &Autodiff::default());
    let results = Interpreter::new(with.op()).run_one("train", inputs).unwrap();
    let ports = function::entry(with.op()).unwrap().argument_ports().unwrap();
    let plain = Interpreter::new(module.op());
    let loss = |inputs: &[Tensor]| plain.run_one("train", inputs).unwrap()[0].numbers()[0];
    assert_eq!(results[0].numbers()[0].to_bits(), loss(inputs).to_bits(), "the loss itself does not change");
    let parameters = (0..ports.len()).filter(|&index| ports[index].name.starts_with("param/"));
    for (index, gradient) in parameters.zip(&results[1..]) {
        assert_eq!(gradient.shape, inputs[index].shape);
        for (at, &found) in gradient.numbers().iter().enumerate() {
            let moved = |by: f64| {
                let mut numbers = inputs[index].numbers();
                numbers[at] += by;
                let mut inputs = inputs.to_vec();
                inputs[index] = Tensor::from_numbers(&ports[index].r#type, &numbers).unwrap();
                loss(&inputs)
            };
            let h = 1e-5;
            // Fourth order: the error is far below the tolerance.
            let expected = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
            assert!(
                (found - expected).abs() <= 2e-8 * (1.0 + expected.abs()),
                "{}[{at}]: {found}, differences say {expected}\n{}",
                ports[index].name,
                with.text(false)
            );
        }
    }
    with
}

fn random(ports: &[(&str, TensorType)]) -> Vec<Tensor> {
    ports.iter().zip(1..).map(|((_, r#type), seed)| Tensor::random(r#type, seed).unwrap()).collect()
}

fn generics<'c, 'a>(module: &'a Module<'c>) -> Vec<Generic<'c, 'a>> {
    let all = walk::walk(module.op()).into_iter();
    all.filter(|op| walk::is(*op, "linalg.generic")).map(|op| Generic::read(op).unwrap()).collect()
}

#[test]
fn a_contraction_has_contractions_as_gradients() {
    let context = Context::new();
    let ports = [("x", f64s(&[4, 3])), ("param/w", f64s(&[5, 3])), ("param/v", f64s(&[2, 5]))];
    let module = entry(&context, &ports, |b, _, values| {
        let h = b.named("up").contract("td,fd->tf", values[0], values[1]).unwrap();
        let y = b.named("down").contract("tf,of->to", h, values[2]).unwrap();
        weighted(b, y)
    });
    let with = check(&module, &random(&ports));
    let all = generics(&with);
    // Three forward, dV, dH, dW: none for `x`, none for the loss, whose gradient is its weights.
    assert_eq!(all.len(), 6, "{}", with.text(false));
    assert_eq!(all.iter().filter(|generic| generic.is_contraction()).count(), 6);
    let text = with.text(true);
    assert!(text.contains("\"up.backward\"") && text.contains("\"down.backward\""), "{text}");
}

/// Every scalar operation at places where it is smooth, against differences on the body itself.
#[test]
fn every_scalar_operation_has_its_derivative() {
    use ScalarOp::*;
    let unary = [NegF, Exp, Log, Sqrt, Rsqrt, Tanh, Erf, Sin, Cos, AbsF];
    let binary = [AddF, SubF, MulF, DivF, MaxF, MinF, PowF];
    let mut bodies: Vec<ScalarBody> = Vec::new();
    for op in unary {
        let mut body = ScalarBody::new([F; 3]);
        let value = body.unary(op, Ref::Arg(0));
        bodies.push(body.yield_(value));
    }
    for op in binary {
        let mut body = ScalarBody::new([F; 3]);
        let value = body.binary(op, Ref::Arg(0), Ref::Arg(1));
        bodies.push(body.yield_(value));
    }
    let mut select = ScalarBody::new([F; 3]);
    let first = select.cmp_f(Predicate::Lt, Ref::Arg(0), Ref::Arg(1));
    let square = select.mul(Ref::Arg(0), Ref::Arg(0));
    let value = select.select(first, square, Ref::Arg(1));
    bodies.push(select.yield_(value));
    let mut silu = ScalarBody::new([F; 3]);
    let (one, negative) = (silu.constant(1.0, F), silu.unary(NegF, Ref::Arg(0)));
    let exp = silu.unary(Exp, negative);
    let sum = silu.add(one, exp);
    let quotient = silu.div(Ref::Arg(0), sum);
    let value = silu.mul(quotient, Ref::Arg(1));
    bodies.push(silu.yield_(value));
    let mut cubic = ScalarBody::new([F; 3]);
    let three = cubic.constant(3.0, F);
    let value = cubic.binary(PowF, Ref::Arg(0), three);
    bodies.push(cubic.yield_(value));
    let context = Context::new();
    for body in bodies {
        for (x, y) in [(0.7, 1.3), (1.6, 0.4), (2.5, 2.2)] {
            scalar_check(&context, &body, x, y);
        }
    }
}

fn evaluate(context: &Context, body: &ScalarBody, arguments: &[f64]) -> f64 {
    let names: Vec<String> = (0..arguments.len()).map(|at| format!("a{at}")).collect();
    let ports: Vec<(&str, TensorType)> = names.iter().map(|name| (name.as_str(), f64s(&[]))).collect();
    let module = entry(context, &ports, |b, _, values| {
        let specification = format!("{}->", vec![""; values.len()].join(","));
        b.structured(&specification, values, F, 0.0, |new| {
            let arguments: Vec<Ref> = (0..body.args.len()).map(Ref::Arg).collect();
            new.inline(body, &arguments)[0]
        })
        .unwrap()
    });
    let inputs: Vec<Tensor> = arguments.iter().map(|&number| Tensor::f64([], [number])).collect();
    Interpreter::new(module.op()).run_one("train", &inputs).unwrap()[0].numbers()[0]
}

fn scalar_check(context: &Context, body: &ScalarBody, x: f64, y: f64) {
    let (h, seed) = (1e-5, 1.7);
    let at = |x: f64, y: f64| evaluate(context, body, &[x, y]);
    let expected =
        [(at(x + h, y) - at(x - h, y)) / (2.0 * h) * seed, (at(x, y + h) - at(x, y - h)) / (2.0 * h) * seed];
    for incoming in [None, Some(seed)] {
        let found = derivatives(body, incoming);
        for (index, expected) in expected.iter().enumerate() {
            let value = found.of(index).map_or(0.0, |body| evaluate(context, &body, &[seed, x, y]));
            assert!((value - expected).abs() < 1e-8 * (1.0 + expected.abs()), "{body:?}: {value} {expected}");
        }
    }
}

#[test]
fn a_sigmoid_that_overflows_has_a_finite_gradient() {
    let context = Context::new();
    let ports = [("param/x", f64s(&[3]))];
    let module = entry(&context, &ports, |b, _, values| {
        let y = b.map("a->a", values, |body| {
            let (one, negative) = (body.constant(1.0, F), body.unary(ScalarOp::NegF, Ref::Arg(0)));
            let exp = body.unary(ScalarOp::Exp, negative);
            let sum = body.add(one, exp);
            body.div(Ref::Arg(0), sum)
        });
        weighted(b, y.unwrap())
    });
    let with = differentiated(&module, &Autodiff::default());
    let inputs = [Tensor::f64([3], [-1000.0, 0.0, 1000.0])];
    let results = Interpreter::new(with.op()).run_one("train", &inputs).unwrap();
    assert!(results[1].numbers().iter().all(|number| number.is_finite()), "{:?}", results[1]);
}

/// Broadcasts, sums, masks by `linalg.index`, extents that only one operand supplies.
#[test]
fn broadcasts_become_sums_and_sums_broadcasts() {
    let context = Context::new();
    let ports = [("param/x", f64s(&[3, 4])), ("param/b", f64s(&[4])), ("param/s", f64s(&[]))];
    let module = entry(&context, &ports, |b, _, values| {
        let y = b.map("nd,d,->nd", values, |body| {
            let sum = body.add(Ref::Arg(0), Ref::Arg(1));
            let product = body.mul(sum, Ref::Arg(2));
            body.unary(ScalarOp::Tanh, product)
        });
        let sum = b.reduce("nd->d", y.unwrap(), ScalarOp::AddF).unwrap();
        // Every row counts `n` times, though no element of `x` is read.
        let count = b.structured("d,nd->d", &[sum, values[0]], F, 0.0, |body| {
            let (row, column) = (body.index(1), body.index(0));
            let below = body.cmp_i(Predicate::Le, column, row);
            let zero = body.constant(0.0, F);
            let kept = body.select(below, Ref::Arg(0), zero);
            let square = body.mul(kept, kept);
            body.add(Ref::Arg(2), square)
        });
        weighted(b, count.unwrap())
    });
    check(&module, &random(&ports));
}

/// A bias of bf16 is used by every row: its gradient is a sum in f32, rounded once. Products stay products.
#[test]
fn sums_of_narrow_gradients_are_taken_in_f32() {
    let context = Context::new();
    let narrow = |shape: &[u64]| TensorType::new(shape, Element::Bf16);
    let ports = [("x", narrow(&[4, 3])), ("param/w", narrow(&[5, 3])), ("param/b", narrow(&[5]))];
    let location = Location::unknown(context.mlir());
    let module = context.module(location);
    let signature = Signature {
        name: "train".into(),
        arguments: ports.iter().map(|(name, r#type)| Port::new(*name, r#type.clone())).collect(),
        results: vec![Port::new("loss", TensorType::new([], Element::F32))],
        public: true,
        unit: None,
    };
    let (operation, block) = add_function(&module, &signature, location).unwrap();
    let b = Builder::at_end(context.mlir(), block, location);
    let values = Function(operation).arguments();
    let y = b.contract("nd,fd->nf", values[0], values[1]).unwrap();
    let y = b.map("nf,f->nf", &[y, values[2]], |body| {
        let sum = body.add(Ref::Arg(0), Ref::Arg(1));
        body.unary(ScalarOp::Tanh, sum)
    });
    let loss = b.structured("nf->", &[y.unwrap()], Element::F32, 0.0, |body| {
        let wide = body.push(ScalarOp::FloatCast, &[Ref::Arg(0)], Element::F32);
        body.add(Ref::Arg(1), wide)
    });
    b.ret(&[loss.unwrap()]).unwrap();
    let with = differentiated(&module, &Autodiff::default());
    let all = generics(&with);
    assert_eq!(all.iter().filter(|generic| generic.is_contraction()).count(), 2);
    assert!(
        all.iter().any(|generic| generic.result == TensorType::new([5], Element::F32)),
        "{}",
        with.text(false)
    );
    let results = function::entry(with.op()).unwrap().result_ports().unwrap();
    assert_eq!(results[2].r#type, narrow(&[5]));
}

#[test]
fn a_value_that_is_used_twice_sums_its_gradients_in_program_order() {
    let context = Context::new();
    let ports = [
        ("param/x", f64s(&[3, 4])),
        ("param/q", f64s(&[5, 4])),
        ("param/k", f64s(&[5, 4])),
        ("unused", f64s(&[2])),
    ];
    let module = entry(&context, &ports, |b, _, values| {
        let x = b.map("nd->nd", &values[..1], |body| body.unary(ScalarOp::Sin, Ref::Arg(0))).unwrap();
        let q = b.named("q").contract("nd,fd->nf", x, values[1]).unwrap();
        let k = b.named("k").contract("nd,fd->nf", x, values[2]).unwrap();
        let y = b.map("nf,nf->nf", &[q, k], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
        weighted(b, y)
    });
    let with = check(&module, &random(&ports));
    let text = with.text(true);
    let (dq, dk) = (text.find("q.backward").unwrap(), text.find("k.backward").unwrap());
    assert!(dq != dk);
}

#[test]
fn an_elementwise_operation_on_tensors_and_reshapes_differentiate() {
    let source = r#"
func.func @train(%x: tensor<2x3xf64> {t3.name = "param/x"}, %y: tensor<2x3xf64> {t3.name = "param/y"}) -> (tensor<f64> {t3.name = "loss"}) {
  %0 = arith.mulf %x, %y : tensor<2x3xf64>
  %1 = math.exp %0 : tensor<2x3xf64>
  %2 = tensor.collapse_shape %1 [[0, 1]] : tensor<2x3xf64> into tensor<6xf64>
  %3 = tensor.expand_shape %2 [[0, 1]] output_shape [3, 2] : tensor<6xf64> into tensor<3x2xf64>
  %w = arith.constant dense<[[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]]> : tensor<3x2xf64>
  %4 = arith.mulf %3, %w : tensor<3x2xf64>
  %c = arith.constant 0.0 : f64
  %e = tensor.empty() : tensor<f64>
  %z = linalg.fill ins(%c : f64) outs(%e : tensor<f64>) -> tensor<f64>
  %5 = linalg.generic {indexing_maps = [affine_map<(a, b) -> (a, b)>, affine_map<(a, b) -> ()>], iterator_types = ["reduction", "reduction"]} ins(%4 : tensor<3x2xf64>) outs(%z : tensor<f64>) {
  ^bb0(%i: f64, %o: f64):
    %s = arith.addf %o, %i : f64
    linalg.yield %s : f64
  } -> tensor<f64>
  return %5 : tensor<f64>
}"#;
    let context = Context::new();
    let module = context.parse(source, "test.mlir").unwrap();
    check(&module, &random(&[("x", f64s(&[2, 3])), ("y", f64s(&[2, 3]))]));
}

/// A layer: norm, gated product, residual.
fn layer<'c>(context: &'c Context, module: &Module<'c>, n: u64, d: u64, f: u64) {
    let location = Location::name(context.mlir(), "layer", Location::unknown(context.mlir()));
    let ports = [("x", f64s(&[n, d])), ("norm", f64s(&[d])), ("up", f64s(&[f, d])), ("down", f64s(&[d, f]))];
    let signature = Signature {
        name: "layer".into(),
        arguments: ports.iter().map(|(name, r#type)| Port::new(*name, r#type.clone())).collect(),
        results: vec![Port::new("", f64s(&[n, d]))],
        public: false,
        unit: None,
    };
    let (operation, block) = add_function(module, &signature, location).unwrap();
    let b = Builder::at_end(context.mlir(), block, location);
    let values = Function(operation).arguments();
    let squares = b.structured("nd->n", &values[..1], F, 0.0, |body| {
        let square = body.mul(Ref::Arg(0), Ref::Arg(0));
        body.add(Ref::Arg(1), square)
    });
    let normal = b.map("nd,n,d->nd", &[values[0], squares.unwrap(), values[1]], |body| {
        let inverse = body.unary(ScalarOp::Rsqrt, Ref::Arg(1));
        let normal = body.mul(Ref::Arg(0), inverse);
        body.mul(normal, Ref::Arg(2))
    });
    let h = b.contract("nd,fd->nf", normal.unwrap(), values[2]).unwrap();
    let h = b.map("nf->nf", &[h], |body| body.unary(ScalarOp::Tanh, Ref::Arg(0))).unwrap();
    let y = b.contract("nf,df->nd", h, values[3]).unwrap();
    b.ret(&[b.add(values[0], y).unwrap()]).unwrap();
}

#[test]
fn a_layer_that_is_called_twice_is_differentiated_once() {
    let context = Context::new();
    let (n, d, f) = (3, 4, 5);
    let mut ports = vec![("x", f64s(&[n, d])), ("param/in", f64s(&[d, d]))];
    for [norm, up, down] in
        [["param/0.norm", "param/0.up", "param/0.down"], ["param/1.norm", "param/1.up", "param/1.down"]]
    {
        ports.extend([(norm, f64s(&[d])), (up, f64s(&[f, d])), (down, f64s(&[d, f]))]);
    }
    let module = entry(&context, &ports, |b, module, values| {
        layer(&context, module, n, d, f);
        let result = [f64s(&[n, d])];
        let x = b.contract("nd,ed->ne", values[0], values[1]).unwrap();
        let x = b.call("layer", &[&[x], &values[2..5]].concat(), &result).unwrap()[0];
        let x = b.call("layer", &[&[x], &values[5..8]].concat(), &result).unwrap()[0];
        weighted(b, x)
    });
    let with = check(&module, &random(&ports));
    let names: Vec<String> = function::functions(with.op()).into_iter().map(Function::name).collect();
    assert_eq!(names, ["train", "layer", "layer_backward"]);
    let text = with.text(false);
    assert_eq!(text.matches("call @layer_backward").count(), 2, "{text}");
    let layer = function::function(with.op(), "layer").unwrap();
    // The layer's result, the squares, the normal, tanh's argument and its result.
    assert_eq!(layer.results().len(), 5, "{text}");
    let again = context.parse(&with.text(true), "again.mlir").unwrap();
    assert_eq!(again.text(true), with.text(true));
}

fn error(source: &str, options: &Autodiff) -> String {
    let context = Context::new();
    let module = context.parse(source, "bad.mlir").unwrap();
    differentiate(module.op(), options).unwrap_err().to_string()
}

#[test]
fn what_has_no_gradient_is_named_with_its_place() {
    let sinh = r#"func.func @f(%x: tensor<f64> {t3.name = "param/x"}, %i: tensor<i32> {t3.name = "ids"}) -> (tensor<f64> {t3.name = "loss"}, tensor<2xf64> {t3.name = "many"}) {
  %0 = math.sinh %x : tensor<f64>
  %1 = arith.constant dense<0.0> : tensor<2xf64>
  return %0, %1 : tensor<f64>, tensor<2xf64>
}"#;
    let plain = Autodiff::default();
    let text = error(sinh, &plain);
    assert!(text.contains("bad.mlir:2:") && text.contains("math.sinh"), "{text}");
    let text = error(sinh, &Autodiff { inputs: Some(vec!["ids".into()]), ..plain.clone() });
    assert!(text.contains("`ids`") && text.contains("integers have no gradient"), "{text}");
    let text = error(sinh, &Autodiff { inputs: Some(vec!["y".into()]), ..plain.clone() });
    assert!(text.contains("no argument named `y`"), "{text}");
    let text = error(sinh, &Autodiff { loss: "many".into(), ..plain.clone() });
    assert!(text.contains("tensor<2xf64>") && text.contains("scalar"), "{text}");
    let text = error(sinh, &Autodiff { loss: "cost".into(), ..plain });
    assert!(text.contains("it returns loss, many"), "{text}");
}

#[test]
fn a_row_maximum_may_have_its_gradient_stopped() {
    let context = Context::new();
    let ports = [("param/x", f64s(&[3, 4]))];
    let build = |stop: bool| {
        entry(&context, &ports, move |b, _, values| {
            let max = b.named("row_max").reduce("nd->n", values[0], ScalarOp::MaxF).unwrap();
            if stop {
                let owner = t3c_ir::ffi::value_owner(max).unwrap();
                t3c_ir::ffi::set_attribute(
                    owner,
                    super::STOP_GRADIENT,
                    melior::ir::Attribute::unit(b.context()),
                );
            }
            let sum = b.structured("nd,n->n", &[values[0], max], F, 0.0, |body| {
                let shifted = body.sub(Ref::Arg(0), Ref::Arg(1));
                let exp = body.unary(ScalarOp::Exp, shifted);
                body.add(Ref::Arg(2), exp)
            });
            let log = b.map("n,n->n", &[sum.unwrap(), max], |body| {
                let log = body.unary(ScalarOp::Log, Ref::Arg(0));
                body.add(log, Ref::Arg(1))
            });
            weighted(b, log.unwrap())
        })
    };
    check(&build(false), &random(&ports));
    // log Σ exp(x − max) + max: the stopped maximum's own gradient is one, so only the shifted part is compared.
    let with = differentiated(&build(true), &Autodiff::default());
    let inputs = random(&ports);
    let results = Interpreter::new(with.op()).run_one("train", &inputs).unwrap();
    let x = inputs[0].numbers();
    for (row, gradients) in results[1].numbers().chunks(4).enumerate() {
        let exps: Vec<f64> = x[row * 4..][..4].iter().map(|x| x.exp()).collect();
        let weight = ((row * 7 + 3) % 11) as f64 / 5.0 - 0.9;
        for (gradient, exp) in gradients.iter().zip(&exps) {
            let expected = weight * exp / exps.iter().sum::<f64>();
            assert!((gradient - expected).abs() < 1e-12);
        }
    }
}
