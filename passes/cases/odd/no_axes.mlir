// pass: every
// Collectives along no axis: each device is alone.
shard.grid @grid(shape = 2x1x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %a = shard.all_reduce %x on @grid : tensor<4x4xf32> -> tensor<4x4xf32>
  %s = shard.all_slice %a on @grid slice_axis = 0 : tensor<4x4xf32> -> tensor<4x4xf32>
  return %s : tensor<4x4xf32>
}
