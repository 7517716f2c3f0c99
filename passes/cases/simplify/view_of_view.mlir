// pass: t3-simplify
// Two copies in other orders are one.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<2x3x5xf32>) -> tensor<5x8x3xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x3x5xf32> -> tensor<8x3x5xf32>
  %1 = tensor.empty() : tensor<3x5x8xf32>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d2, d0, d1)>, affine_map<(d0, d1, d2) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel"]}
    ins(%0 : tensor<8x3x5xf32>) outs(%1 : tensor<3x5x8xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<3x5x8xf32>
  %3 = tensor.empty() : tensor<5x8x3xf32>
  %4 = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d2, d0, d1)>, affine_map<(d0, d1, d2) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel"]}
    ins(%2 : tensor<3x5x8xf32>) outs(%3 : tensor<5x8x3xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<5x8x3xf32>
  return %4 : tensor<5x8x3xf32>
}
