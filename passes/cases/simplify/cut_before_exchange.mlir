// pass: t3-simplify
// Only what is needed is exchanged.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x3x2xf32>) -> tensor<2x1x8xf32> {
  %0 = shard.all_to_all %arg0 on @grid grid_axes = [0] split_axis = 0 concat_axis = 2 : tensor<8x3x2xf32> -> tensor<2x3x8xf32>
  %1 = tensor.extract_slice %0[0, 1, 0] [2, 1, 8] [1, 1, 1] : tensor<2x3x8xf32> to tensor<2x1x8xf32>
  return %1 : tensor<2x1x8xf32>
}
