// pass: every
// A module in a module.
shard.grid @grid(shape = 4)

module @inner {
  shard.grid @grid(shape = 2)
  func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
    %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4xf32> -> tensor<4xf32>
    return %a : tensor<4xf32>
  }
}
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }
