//! Round trips of the builder, the views and the dialect.

use t3c_schedule::{Axis, Element, Grid, arrivals::configure_ring_all_gather, configure_ring_reduce_scatter};

use crate::{
    Builder, Context, Generic, Location, TensorType,
    function::{Function, Port, Signature, add_function, add_grid, function, grid},
    generic::is_zero,
    scalar::{Ref, ScalarOp},
    views::{Consume, TrackAndTrigger, annotation},
    walk::walk,
};

fn signature(shape: [u64; 2], weight: [u64; 2], result: [u64; 2]) -> Signature {
    Signature {
        name: "f".into(),
        arguments: vec![
            Port::new("x", TensorType::new(shape, Element::F32)),
            Port::new("param/w", TensorType::new(weight, Element::F32)),
        ],
        results: vec![Port::new("y", TensorType::new(result, Element::F32))],
        public: true,
        unit: None,
    }
}

#[test]
fn a_built_function_verifies_and_reads_back() {
    let context = Context::new();
    let location = Location::new(context.mlir(), "config.json", 3, 5);
    let module = context.module(location);
    add_grid(&module, "grid", &Grid { axes: vec![Axis { name: "tp".into(), size: 2 }] }).unwrap();
    let (op, block) = add_function(&module, &signature([8, 4], [6, 4], [8, 6]), location).unwrap();
    let function = Function::cast(op).unwrap();
    let b = Builder::at_end(context.mlir(), block, location).named("mlp.up_proj");
    let arguments = function.arguments();
    let w = b.shard(arguments[1], "grid", &[vec![0], vec![]]).unwrap();
    let y = b.contract("td,fd->tf", arguments[0], w).unwrap();
    let e = b.map("tf->tf", &[y], |body| body.unary(ScalarOp::Exp, Ref::Arg(0))).unwrap();
    b.ret(&[e]).unwrap();
    module.verify().unwrap();
    let text = module.text(true);
    let again = context.parse(&text, "again.mlir").unwrap();
    assert_eq!(again.text(true), text);
    let generics: Vec<Generic> = walk(module.op())
        .into_iter()
        .filter(|op| crate::walk::is(*op, "linalg.generic"))
        .map(|op| Generic::read(op).unwrap())
        .collect();
    assert!(generics[0].is_contraction() && is_zero(generics[0].init));
    assert_eq!(generics[0].extents, [8, 6, 4]);
    assert!(generics[1].is_elementwise());
    let splits = walk(module.op()).into_iter().find_map(annotation).unwrap();
    assert_eq!(splits, [vec![0], vec![]]);
    assert_eq!(grid(module.op()).unwrap().1.axes[0].name, "tp");
    assert_eq!(
        crate::function::function(module.op(), "f").unwrap().argument_ports().unwrap()[1].name,
        "param/w"
    );
}

const FUSED: &str = r"
shard.grid @grid(shape = 4)
func.func @f(%x: tensor<8x4xf32>, %w: tensor<4x6xf32>) -> tensor<2x6xf32> {
  %0 = t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 CHUNKS (%x, %w) : (tensor<8x4xf32>, tensor<4x6xf32>) -> tensor<2x6xf32> {
  ^bb0(%a: tensor<8x4xf32>, %b: tensor<4x6xf32>):
    %zero = arith.constant dense<0.0> : tensor<8x6xf32>
    %p = linalg.matmul ins(%a, %b : tensor<8x4xf32>, tensor<4x6xf32>) outs(%zero : tensor<8x6xf32>) -> tensor<8x6xf32>
    t3.yield %p : tensor<8x6xf32>
  }
  return %0 : tensor<2x6xf32>
}";

#[test]
fn the_dialect_round_trips_with_its_address_space() {
    let context = Context::new();
    let chunks: Vec<String> = configure_ring_reduce_scatter(4)
        .iter()
        .map(|chunk| crate::ffi::chunk_attribute(context.mlir(), chunk).to_string())
        .collect();
    let text = FUSED.replace("CHUNKS", &format!("chunks = [{}] block = 1", chunks.join(", ")));
    let module = context.parse(&text, "fused.mlir").unwrap();
    let fused = walk(module.op()).into_iter().find_map(TrackAndTrigger::cast).unwrap();
    assert_eq!(fused.chunks().unwrap(), configure_ring_reduce_scatter(4));
    assert_eq!(fused.block(), Some(1));
    assert!(function(module.op(), "f").is_some());
    let printed = module.text(false);
    assert_eq!(context.parse(&printed, "again.mlir").unwrap().text(false), printed);
}

#[test]
fn a_broken_address_space_is_rejected_at_its_place() {
    let context = Context::new();
    let one = "#t3.chunk<relative = 1, store = local, op = update, threshold = 2, trigger = done>";
    let text = FUSED.replace("CHUNKS", &format!("chunks = [{one}, {one}, {one}, {one}]"));
    let error = context.parse(&text, "bad.mlir").err().unwrap().to_string();
    assert!(error.contains("bad.mlir:4:") && error.contains("(C6)"), "{error}");
}

const CONSUMED: &str = r"
shard.grid @grid(shape = 2)
func.func @f(%x: tensor<4x4xf32>, %w: tensor<4x6xf32>) -> tensor<8x6xf32> {
  %0 = t3.consume all_gather on @grid axes = [0] dim = 0 (%x, %w) : (tensor<4x4xf32>, tensor<4x6xf32>) -> tensor<8x6xf32> {
  ^bb0(%a: tensor<8x4xf32>, %b: tensor<4x6xf32>):
    %zero = arith.constant dense<0.0> : tensor<8x6xf32>
    %p = linalg.matmul ins(%a, %b : tensor<8x4xf32>, tensor<4x6xf32>) outs(%zero : tensor<8x6xf32>) -> tensor<8x6xf32>
    t3.yield %p : tensor<8x6xf32>
  }
  return %0 : tensor<8x6xf32>
}";

const ARRIVALS: &str =
    "[#t3.arrival<relative = 0, from = 0, sends = [1]>, #t3.arrival<relative = 1, from = 1>]";

#[test]
fn an_exchange_splits_one_dimension_and_lays_along_another() {
    let context = Context::new();
    let text = r"
shard.grid @grid(shape = 2)
func.func @f(%x: tensor<4x2xf32>) -> tensor<8x1xf32> {
  %0 = t3.consume all_to_all on @grid axes = [0] dim = 1 concat = 0 (%x) : (tensor<4x2xf32>) -> tensor<8x1xf32> {
  ^bb0(%a: tensor<8x1xf32>):
    t3.yield %a : tensor<8x1xf32>
  }
  return %0 : tensor<8x1xf32>
}";
    let module = context.parse(text, "exchange.mlir").unwrap();
    let printed = module.text(false);
    assert_eq!(context.parse(&printed, "again.mlir").unwrap().text(false), printed);
    let text = text.replace("4x2xf32", "4x3xf32");
    assert!(context.parse(&text, "bad.mlir").err().unwrap().to_string().contains("(C5)"));
}

#[test]
fn each_constraint_is_checked_and_named() {
    let context = Context::new();
    let fused = FUSED.replace("CHUNKS", "");
    context.parse(&fused, "fused.mlir").unwrap();
    context.parse(CONSUMED, "consumed.mlir").unwrap();
    let chunks: Vec<String> = configure_ring_reduce_scatter(4)
        .iter()
        .map(|chunk| crate::ffi::chunk_attribute(context.mlir(), chunk).to_string())
        .collect();
    let configured = FUSED.replace("CHUNKS", &format!("chunks = [{}] block = 1", chunks.join(", ")));
    let arriving = CONSUMED.replace("dim = 0", &format!("dim = 0 arrivals = {ARRIVALS} block = 4"));
    let module = context.parse(&arriving, "arriving.mlir").unwrap();
    let consume = walk(module.op()).into_iter().find_map(Consume::cast).unwrap();
    assert_eq!(consume.arrivals().unwrap(), configure_ring_all_gather(2));
    assert_eq!((consume.block(), consume.part_dimension()), (Some(4), 0));
    let broken = [
        (fused.as_str(), "dim = 0", "dim = 2", "(C1)"),
        (&fused, "on @grid", "on @nowhere", "(C2)"),
        (&fused, "axes = [0]", "axes = [1]", "(C2)"),
        (&fused, "axes = [0]", "axes = []", "(C2)"),
        (&fused, "axes = [0]", "axes = [0, 0]", "(C2)"),
        (&fused, "(%x, %w) : (tensor<8x4xf32>, tensor<4x6xf32>)", "(%x) : (tensor<8x4xf32>)", "(C3)"),
        (&fused, "tensor<2x6xf32>", "tensor<4x6xf32>", "(C4)"),
        (&fused, "t3.yield %p : tensor<8x6xf32>", "t3.yield", "(C4)"),
        (&fused, "dim = 0", "dim = 1", "(C5)"),
        (&configured, "threshold = 2", "threshold = 3", "(C6)"),
        (&configured, "block = 1", "block = 3", "(C7)"),
        (&fused, "dim = 0 ", "dim = 0 concat = 1 ", "(C8)"),
        (CONSUMED, "all_gather", "all_reduce", "(C1)"),
        (CONSUMED, "axes = [0]", "axes = [3]", "(C2)"),
        (CONSUMED, "(%x, %w) : (tensor<4x4xf32>, tensor<4x6xf32>)", "(%x) : (tensor<4x4xf32>)", "(C3)"),
        (CONSUMED, "t3.yield %p : tensor<8x6xf32>", "t3.yield", "(C4)"),
        (CONSUMED, "dim = 0", "dim = 2", "(C5)"),
        (CONSUMED, "dim = 0", "dim = 0 concat = 1", "(C5)"),
        (&arriving, "sends = [1]", "sends = [0]", "(C6)"),
        (&arriving, "relative = 1", "relative = 0", "(C6)"),
        (&arriving, "block = 4", "block = 5", "(C7)"),
    ];
    for (text, from, to, constraint) in broken {
        let text = text.replace(from, to);
        let error = context.parse(&text, "bad.mlir").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("bad.mlir:") && error.contains(constraint), "{from} → {to}: {error}");
    }
}
