// pass: every
// Reductions that are neither sums nor maxima, and sums of integers.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4x4xf32>, %i: tensor<4x4xi32>) -> (tensor<4x4xf32>, tensor<1x4xf32>, tensor<4x4xi32>) {
  %a = shard.all_reduce %x on @grid grid_axes = [0] reduction = product : tensor<4x4xf32> -> tensor<4x4xf32>
  %b = shard.reduce_scatter %x on @grid grid_axes = [0] reduction = min scatter_axis = 0 : tensor<4x4xf32> -> tensor<1x4xf32>
  %c = shard.all_reduce %i on @grid grid_axes = [0] : tensor<4x4xi32> -> tensor<4x4xi32>
  return %a, %b, %c : tensor<4x4xf32>, tensor<1x4xf32>, tensor<4x4xi32>
}
