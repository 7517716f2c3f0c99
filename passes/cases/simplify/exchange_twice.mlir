// pass: t3-simplify
// What was spread along one dimension, then a second, is spread along the third at once.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<4x2x8xf32>) -> tensor<4x8x2xf32> {
  %0 = shard.all_to_all %arg0 on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<4x2x8xf32> -> tensor<1x8x8xf32>
  %1 = shard.all_to_all %0 on @grid grid_axes = [0] split_axis = 2 concat_axis = 0 : tensor<1x8x8xf32> -> tensor<4x8x2xf32>
  return %1 : tensor<4x8x2xf32>
}
