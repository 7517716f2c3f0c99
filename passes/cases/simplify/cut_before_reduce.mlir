// pass: t3-simplify
// Only what is needed is summed.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x6xf32>) -> tensor<4x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  %1 = tensor.extract_slice %0[2, 0] [4, 6] [1, 1] : tensor<8x6xf32> to tensor<4x6xf32>
  return %1 : tensor<4x6xf32>
}
