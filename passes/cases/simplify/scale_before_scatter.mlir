// pass: t3-simplify
// Scaled before the sum or after, it is the same.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x6xf32>) -> (tensor<2x6xf32>, tensor<2x6xf32>) {
  %0 = tensor.empty() : tensor<8x6xf32>
  %1 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg0 : tensor<8x6xf32>) outs(%0 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %c = arith.constant 0.5 : f32
    %r = arith.mulf %i0, %c : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %2 = shard.reduce_scatter %1 on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  %3 = shard.reduce_scatter %arg0 on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  %4 = tensor.empty() : tensor<2x6xf32>
  %5 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%3 : tensor<2x6xf32>) outs(%4 : tensor<2x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %c = arith.constant 0.5 : f32
    %r = arith.mulf %i0, %c : f32
    linalg.yield %r : f32
  } -> tensor<2x6xf32>
  return %2, %5 : tensor<2x6xf32>, tensor<2x6xf32>
}
