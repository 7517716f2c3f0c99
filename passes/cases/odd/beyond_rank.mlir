// pass: every
// A collective along a dimension that the tensor has not.
shard.grid @grid(shape = 2x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %a = shard.all_gather %x on @grid grid_axes = [1] gather_axis = 7 : tensor<4x4xf32> -> tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
