// pass: every
// What t3-fuse makes, without an address space.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<8x4xf32>, %w: tensor<8x4xf32>) -> tensor<2x8xf32> {
  %y = t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 (%x, %w) : (tensor<8x4xf32>, tensor<8x4xf32>) -> tensor<2x8xf32> {
  ^bb0(%a: tensor<8x4xf32>, %b: tensor<8x4xf32>):
    %c = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<8x8xf32>
    %z = linalg.fill ins(%c : f32) outs(%e : tensor<8x8xf32>) -> tensor<8x8xf32>
    %p = linalg.generic {indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>], iterator_types = ["parallel", "parallel", "reduction"]}
      ins(%a, %b : tensor<8x4xf32>, tensor<8x4xf32>) outs(%z : tensor<8x8xf32>) {
    ^bb0(%i: f32, %j: f32, %o: f32):
      %m = arith.mulf %i, %j : f32
      %s = arith.addf %o, %m : f32
      linalg.yield %s : f32
    } -> tensor<8x8xf32>
    t3.yield %p : tensor<8x8xf32>
  }
  return %y : tensor<2x8xf32>
}
