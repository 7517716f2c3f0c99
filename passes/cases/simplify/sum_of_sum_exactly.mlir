// pass: t3-simplify
// Sums over two axes are one over both, but in another order: not by default.
shard.grid @grid(shape = 2x3)

func.func private @f(%arg0: tensor<4x6xf32>) -> tensor<4x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [1] : tensor<4x6xf32> -> tensor<4x6xf32>
  %1 = shard.all_reduce %0 on @grid grid_axes = [0] : tensor<4x6xf32> -> tensor<4x6xf32>
  return %1 : tensor<4x6xf32>
}
