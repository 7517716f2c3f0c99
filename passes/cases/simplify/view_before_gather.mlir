// pass: t3-simplify
// The transpose of what is gathered anyway.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<2x6xf32>) -> (tensor<8x6xf32>, tensor<6x8xf32>) {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %1 = tensor.empty() : tensor<6x2xf32>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg0 : tensor<2x6xf32>) outs(%1 : tensor<6x2xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<6x2xf32>
  %3 = shard.all_gather %2 on @grid grid_axes = [0] gather_axis = 1 : tensor<6x2xf32> -> tensor<6x8xf32>
  return %0, %3 : tensor<8x6xf32>, tensor<6x8xf32>
}
