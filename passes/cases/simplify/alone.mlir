// pass: t3-simplify
// A group of one device.
shard.grid @grid(shape = 1x4)

func.func private @f(%arg0: tensor<2x6xf32>) -> tensor<2x6xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<2x6xf32>
  %1 = shard.all_reduce %0 on @grid grid_axes = [0] : tensor<2x6xf32> -> tensor<2x6xf32>
  return %1 : tensor<2x6xf32>
}
