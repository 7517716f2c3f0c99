//! Whole modules through the partitioner.

use t3c_ir::{
    Builder, Context, Element, Module, Predicate, Ref, ScalarOp, TensorType, Val,
    function::{Function, Port, Signature, add_function, add_grid, entry},
    units::{Unit, ensure},
    walk,
};
use t3c_schedule::{Axis, Grid};

use super::{Error, partition};

const F: Element = Element::F64;

fn tensor(shape: &[u64]) -> TensorType {
    TensorType::new(shape, F)
}

fn ids(shape: &[u64]) -> TensorType {
    TensorType::new(shape, Element::I32)
}

/// A module on a line of `devices`.
fn module(context: &Context, devices: u32) -> Module<'_> {
    let module = context.module(t3c_ir::Location::new(context.mlir(), "model.json", 1, 1));
    add_grid(&module, "grid", &Grid { axes: vec![Axis { name: "tp".into(), size: devices }] }).unwrap();
    module
}

/// Adds a function; `build` gets its builder and arguments and returns its results.
fn add<'c, 'a>(
    module: &'a Module<'c>,
    name: &str,
    arguments: &[(&str, TensorType)],
    results: &[(&str, TensorType)],
    build: impl FnOnce(&Builder<'c, 'a>, &[Val<'c, 'a>]) -> Vec<Val<'c, 'a>>,
) {
    let ports = |ports: &[(&str, TensorType)]| {
        ports.iter().map(|(name, r#type)| Port::new(*name, r#type.clone())).collect()
    };
    let signature = Signature {
        name: name.into(),
        arguments: ports(arguments),
        results: ports(results),
        public: name == "main",
        unit: None,
    };
    let location = t3c_ir::Location::new(module.context().mlir(), "model.json", 3, 5);
    let (operation, block) = add_function(module, &signature, location).unwrap();
    let b = Builder::at_end(module.context().mlir(), block, location);
    let arguments = Function(operation).arguments();
    let results = build(&b, &arguments);
    b.ret(&results).unwrap();
}

fn partitioned(module: &Module<'_>) -> String {
    module.verify().unwrap();
    partition(module.op()).unwrap();
    let text = module.text(false);
    module.verify().unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert!(!text.contains("shard.shard ") && !text.contains("shard.sharding"), "{text}");
    text
}

/// The collectives of each function, in order: `layer: all_reduce all_reduce`.
fn collectives(module: &Module<'_>) -> Vec<(String, Vec<String>)> {
    t3c_ir::function::functions(module.op())
        .into_iter()
        .map(|function| {
            let inside = walk::walk(function.0)
                .into_iter()
                .filter_map(t3c_ir::views::Collective::cast)
                .map(|collective| walk::name(collective.op).trim_start_matches("shard.").to_owned())
                .collect();
            (function.name(), inside)
        })
        .collect()
}

fn of(module: &Module<'_>, function: &str) -> Vec<String> {
    collectives(module).into_iter().find(|(name, _)| name == function).unwrap().1
}

fn silu<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>) -> Val<'c, 'a> {
    b.map("tf->tf", &[x], |body| {
        let negative = body.unary(ScalarOp::NegF, Ref::Arg(0));
        let (e, one) = (body.unary(ScalarOp::Exp, negative), body.constant(1.0, F));
        let denominator = body.add(one, e);
        body.div(Ref::Arg(0), denominator)
    })
    .unwrap()
}

fn rms_norm<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, w: Val<'c, 'a>) -> Val<'c, 'a> {
    let squares = b
        .structured("td->t", &[x], F, 0.0, |body| {
            let square = body.mul(Ref::Arg(0), Ref::Arg(0));
            body.add(Ref::Arg(1), square)
        })
        .unwrap();
    b.map("td,t,d->td", &[x, squares, w], |body| {
        let epsilon = body.constant(1e-5, F);
        let mean = body.add(Ref::Arg(1), epsilon);
        let scale = body.unary(ScalarOp::Rsqrt, mean);
        let scaled = body.mul(Ref::Arg(0), scale);
        body.mul(scaled, Ref::Arg(2))
    })
    .unwrap()
}

/// `x + down(silu(gate(x)) · up(x))`, rows of weights as Hugging Face stores them.
fn mlp<'c, 'a>(b: &Builder<'c, 'a>, x: Val<'c, 'a>, weights: &[Val<'c, 'a>]) -> Val<'c, 'a> {
    let gate = b.shard(weights[0], "grid", &[Some(0), None]).unwrap();
    let up = b.shard(weights[1], "grid", &[Some(0), None]).unwrap();
    let down = b.shard(weights[2], "grid", &[None, Some(0)]).unwrap();
    let g = b.contract("td,fd->tf", x, gate).unwrap();
    let u = b.contract("td,fd->tf", x, up).unwrap();
    let h = b.map("tf,tf->tf", &[silu(b, g), u], |body| body.mul(Ref::Arg(0), Ref::Arg(1))).unwrap();
    let y = b.contract("tf,df->td", h, down).unwrap();
    b.add(x, y).unwrap()
}

const T: u64 = 5;
const D: u64 = 6;
const FF: u64 = 12;

fn mlp_arguments() -> Vec<(&'static str, TensorType)> {
    vec![
        ("x", tensor(&[T, D])),
        ("param/gate", tensor(&[FF, D])),
        ("param/up", tensor(&[FF, D])),
        ("param/down", tensor(&[D, FF])),
    ]
}

#[test]
fn an_mlp_has_one_all_reduce_before_its_residual() {
    for devices in [2, 3, 4] {
        let context = Context::new();
        let module = module(&context, devices);
        add(&module, "main", &mlp_arguments(), &[("y", tensor(&[T, D]))], |b, a| vec![mlp(b, a[0], &a[1..])]);
        let text = partitioned(&module);
        assert_eq!(of(&module, "main"), ["all_reduce"], "{text}");
        assert!(text.contains(&format!("tensor<{}x6xf64>", 12 / devices)), "{text}");
        assert!(text.contains("t3.split = array<i64: 0, -1>"), "{text}");
    }
}
