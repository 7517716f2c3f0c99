// pass: t3-simplify{reassociate=1}
// Sums over two axes are one over both, in another order.
shard.grid @grid(shape = 2x3)

func.func private @f(%arg0: tensor<12x6xf32>) -> tensor<2x6xf32> {
  %0 = shard.reduce_scatter %arg0 on @grid grid_axes = [0] scatter_axis = 0 : tensor<12x6xf32> -> tensor<6x6xf32>
  %1 = shard.reduce_scatter %0 on @grid grid_axes = [1] scatter_axis = 0 : tensor<6x6xf32> -> tensor<2x6xf32>
  return %1 : tensor<2x6xf32>
}
