// pass: t3-simplify
// A reduce-scatter and an all-gather are an all-reduce, of which each device may keep another part.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x8xf32>) -> tensor<8x2xf32> {
  %0 = shard.reduce_scatter %arg0 on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x8xf32> -> tensor<2x8xf32>
  %1 = shard.all_gather %0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x8xf32> -> tensor<8x8xf32>
  %2 = shard.all_slice %1 on @grid grid_axes = [0] slice_axis = 1 : tensor<8x8xf32> -> tensor<8x2xf32>
  return %2 : tensor<8x2xf32>
}
