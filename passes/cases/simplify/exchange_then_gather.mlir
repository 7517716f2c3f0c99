// pass: t3-simplify
// The whole of what was exchanged is the whole of what there was.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x2xf32>) -> tensor<8x8xf32> {
  %0 = shard.all_to_all %arg0 on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x2xf32> -> tensor<2x8xf32>
  %1 = shard.all_gather %0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x8xf32> -> tensor<8x8xf32>
  return %1 : tensor<8x8xf32>
}
