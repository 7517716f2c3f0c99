// pass: every
// Tensors without a rank.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<*xf32>) -> tensor<*xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<*xf32> -> tensor<*xf32>
  return %a : tensor<*xf32>
}
