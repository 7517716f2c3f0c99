// pass: t3-simplify
// Only what is needed is summed.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x6xf32>) -> tensor<2x3xf32> {
  %0 = shard.reduce_scatter %arg0 on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  %1 = tensor.extract_slice %0[0, 2] [2, 3] [1, 1] : tensor<2x6xf32> to tensor<2x3xf32>
  return %1 : tensor<2x3xf32>
}
