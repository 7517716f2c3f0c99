// pass: t3-simplify
// Sum the parts, then gather them.
shard.grid @grid(shape = 2x3)

func.func private @f(%arg0: tensor<4x2xf32>) -> tensor<4x6xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [1] gather_axis = 1 : tensor<4x2xf32> -> tensor<4x6xf32>
  %1 = shard.all_reduce %0 on @grid grid_axes = [0] : tensor<4x6xf32> -> tensor<4x6xf32>
  return %1 : tensor<4x6xf32>
}
