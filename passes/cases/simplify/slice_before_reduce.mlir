// pass: t3-simplify
// What others keep need not be summed here.
shard.grid @grid(shape = 2x3)

func.func private @f(%arg0: tensor<4x6xf32>) -> tensor<4x2xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<4x6xf32> -> tensor<4x6xf32>
  %1 = shard.all_slice %0 on @grid grid_axes = [1] slice_axis = 1 : tensor<4x6xf32> -> tensor<4x2xf32>
  return %1 : tensor<4x2xf32>
}
