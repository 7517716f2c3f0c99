// pass: every
// A grid of one device, on two axes.
shard.grid @grid(shape = 1x1)

func.func @main(%x: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %c = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<4x4xf32>
  %z = linalg.fill ins(%c : f32) outs(%e : tensor<4x4xf32>) -> tensor<4x4xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<4x4xf32>, tensor<4x4xf32>) outs(%z : tensor<4x4xf32>) {
  ^bb0(%i: f32, %j: f32, %o: f32):
    %m = arith.mulf %i, %j : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<4x4xf32>
  %a = shard.all_reduce %p on @grid grid_axes = [0, 1] : tensor<4x4xf32> -> tensor<4x4xf32>
  %g = shard.all_gather %a on @grid grid_axes = [0] gather_axis = 0 : tensor<4x4xf32> -> tensor<4x4xf32>
  return %g : tensor<4x4xf32>
}
