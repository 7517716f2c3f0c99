// pass: t3-simplify
// Of the whole of one dimension each device keeps a part of another: an all-to-all.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<2x8xf32>) -> tensor<8x2xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x8xf32> -> tensor<8x8xf32>
  %1 = shard.all_slice %0 on @grid grid_axes = [0] slice_axis = 1 : tensor<8x8xf32> -> tensor<8x2xf32>
  return %1 : tensor<8x2xf32>
}
