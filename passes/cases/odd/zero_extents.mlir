// pass: every
// Tensors without elements.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<0x4xf32>, %w: tensor<4x4xf32>) -> (tensor<0x4xf32>, tensor<0x1xf32>) {
  %c = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<0x4xf32>
  %z = linalg.fill ins(%c : f32) outs(%e : tensor<0x4xf32>) -> tensor<0x4xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<0x4xf32>, tensor<4x4xf32>) outs(%z : tensor<0x4xf32>) {
  ^bb0(%i: f32, %j: f32, %o: f32):
    %m = arith.mulf %i, %j : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<0x4xf32>
  %a = shard.all_reduce %p on @grid grid_axes = [0] : tensor<0x4xf32> -> tensor<0x4xf32>
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 1 : tensor<0x4xf32> -> tensor<0x1xf32>
  return %a, %r : tensor<0x4xf32>, tensor<0x1xf32>
}
