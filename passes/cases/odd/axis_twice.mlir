// pass: every
// A collective along one axis twice.
shard.grid @grid(shape = 2x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [1, 1] : tensor<4x4xf32> -> tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
