// pass: t3-simplify
// Parts of what all devices hold need not travel.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x8xf32>) -> tensor<2x8xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<8x8xf32> -> tensor<8x8xf32>
  %1 = shard.all_slice %0 on @grid grid_axes = [0] slice_axis = 1 : tensor<8x8xf32> -> tensor<8x2xf32>
  %2 = shard.all_to_all %1 on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x2xf32> -> tensor<2x8xf32>
  return %2 : tensor<2x8xf32>
}
