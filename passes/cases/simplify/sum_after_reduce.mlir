// pass: t3-simplify{reassociate=1}
// The sum of sums that are needed anyway.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x6xf32>, %arg1: tensor<8x6xf32>) -> (tensor<8x6xf32>, tensor<8x6xf32>, tensor<8x6xf32>) {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  %1 = shard.all_reduce %arg1 on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  %2 = tensor.empty() : tensor<8x6xf32>
  %3 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg0, %arg1 : tensor<8x6xf32>, tensor<8x6xf32>) outs(%2 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r = arith.addf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %4 = shard.all_reduce %3 on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  return %0, %1, %4 : tensor<8x6xf32>, tensor<8x6xf32>, tensor<8x6xf32>
}
