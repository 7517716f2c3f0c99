// pass: every
// Two grids.
shard.grid @grid(shape = 2x2)
shard.grid @other(shape = 3)
func.func @main(%x: tensor<6x4xf32>) -> tensor<6x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [1] : tensor<6x4xf32> -> tensor<6x4xf32>
  %b = shard.all_reduce %a on @other grid_axes = [0] : tensor<6x4xf32> -> tensor<6x4xf32>
  return %b : tensor<6x4xf32>
}
