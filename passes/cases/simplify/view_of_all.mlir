// pass: t3-simplify
// Two transposes are none.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<2x6xf32>) -> tensor<8x6xf32> {
  %0 = tensor.empty() : tensor<6x2xf32>
  %1 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg0 : tensor<2x6xf32>) outs(%0 : tensor<6x2xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<6x2xf32>
  %2 = tensor.empty() : tensor<2x6xf32>
  %3 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%1 : tensor<6x2xf32>) outs(%2 : tensor<2x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<2x6xf32>
  %4 = shard.all_gather %3 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  return %4 : tensor<8x6xf32>
}
