// pass: t3-simplify
// Two parts are one part over both axes.
shard.grid @grid(shape = 2x3)

func.func private @f(%arg0: tensor<12x6xf32>) -> tensor<2x6xf32> {
  %0 = shard.all_slice %arg0 on @grid grid_axes = [0] slice_axis = 0 : tensor<12x6xf32> -> tensor<6x6xf32>
  %1 = shard.all_slice %0 on @grid grid_axes = [1] slice_axis = 0 : tensor<6x6xf32> -> tensor<2x6xf32>
  return %1 : tensor<2x6xf32>
}
