// pass: every
// Collectives that no pass knows.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %a = shard.broadcast %x on @grid grid_axes = [0] root = [0] : (tensor<4xf32>) -> tensor<4xf32>
  %b = shard.shift %a on @grid grid_axes = [0] shift_axis = 0 offset = 1 rotate : tensor<4xf32> -> tensor<4xf32>
  return %b : tensor<4xf32>
}
