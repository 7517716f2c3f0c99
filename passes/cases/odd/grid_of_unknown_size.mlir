// pass: every
// A grid whose size is not known.
shard.grid @grid(shape = ?x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4x4xf32> -> tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
