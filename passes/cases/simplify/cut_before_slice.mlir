// pass: t3-simplify
// The box of a part.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x6xf32>) -> tensor<2x4xf32> {
  %0 = tensor.extract_slice %arg0[0, 1] [8, 4] [1, 1] : tensor<8x6xf32> to tensor<8x4xf32>
  %1 = shard.all_slice %0 on @grid grid_axes = [0] slice_axis = 0 : tensor<8x4xf32> -> tensor<2x4xf32>
  return %1 : tensor<2x4xf32>
}
