//! A graph as MLIR text, compiled for two devices on this machine and run: `cargo run --example embed`.
//!
//! The weight is sharded along the contracted dimension, so each device has a partial sum. The product and the
//! reduce-scatter that follows become one operation.

use t3c::{Compiler, CpuOptions, HostTensor, Policy, Runner, Stage};

const GRAPH: &str = r#"
module attributes {t3.axes = ["tp"]} {
  shard.grid @grid(shape = 2)
  func.func @main(%x: tensor<4x6xf32>, %w: tensor<6x8xf32>) -> tensor<4x8xf32> {
    %split_x = shard.sharding @grid split_axes = [[], [0]] : !shard.sharding
    %sx = shard.shard %x to %split_x : tensor<4x6xf32>
    %split_w = shard.sharding @grid split_axes = [[0], []] : !shard.sharding
    %sw = shard.shard %w to %split_w : tensor<6x8xf32>
    %zero = arith.constant 0.0 : f32
    %empty = tensor.empty() : tensor<4x8xf32>
    %init = linalg.fill ins(%zero : f32) outs(%empty : tensor<4x8xf32>) -> tensor<4x8xf32>
    %y = linalg.generic {
        indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (k, n)>, affine_map<(m, n, k) -> (m, n)>],
        iterator_types = ["parallel", "parallel", "reduction"]
    } ins(%sx, %sw : tensor<4x6xf32>, tensor<6x8xf32>) outs(%init : tensor<4x8xf32>) {
    ^bb0(%a: f32, %b: f32, %sum: f32):
      %product = arith.mulf %a, %b : f32
      %next = arith.addf %sum, %product : f32
      linalg.yield %next : f32
    } -> tensor<4x8xf32>
    return %y : tensor<4x8xf32>
  }
}
"#;

fn main() -> Result<(), t3c::Error> {
    let compiler = || Compiler::from_mlir(GRAPH, "graph.mlir").fuse(Policy::Always);
    let program = compiler().compile()?;
    println!("{} fused of {} pairs", program.summary().pairs.fused, program.summary().pairs.found);
    println!("{}", program.mlir(Stage::T3));

    let mut runner = Runner::new(compiler(), CpuOptions::default())?;
    let values = |count: u64| (0..count).map(|i| i as f32).collect::<Vec<_>>();
    runner.set("in/0", &HostTensor::f32([4, 6], &values(24)))?;
    runner.set("in/1", &HostTensor::f32([6, 8], &values(48)))?;
    runner.run()?;
    println!("{:?}", runner.get("out/0")?.to_f32().unwrap_or_default());
    Ok(())
}
