// pass: every
// Collectives whose devices do not divide their dimension.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<6x4xf32>, %y: tensor<2x4xf32>) -> (tensor<6x4xf32>, tensor<7x4xf32>) {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<6x4xf32> -> tensor<6x4xf32>
  %g = shard.all_gather %y on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<7x4xf32>
  return %a, %g : tensor<6x4xf32>, tensor<7x4xf32>
}
