// pass: every
// Collectives over all axes, which the dialect writes as none, and a grid of many.
shard.grid @grid(shape = 2x1x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<1x4xf32> {
  %a = shard.all_reduce %x on @grid : tensor<4x4xf32> -> tensor<4x4xf32>
  %s = shard.all_slice %a on @grid slice_axis = 0 : tensor<4x4xf32> -> tensor<1x4xf32>
  return %s : tensor<1x4xf32>
}
