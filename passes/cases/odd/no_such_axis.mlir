// pass: every
// A collective along an axis that the grid has not.
shard.grid @grid(shape = 2x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [3] : tensor<4x4xf32> -> tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
