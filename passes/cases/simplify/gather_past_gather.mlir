// pass: t3-simplify
// A gather meets the slice that it undoes.
shard.grid @grid(shape = 2x3)

func.func private @f(%arg0: tensor<12x6xf32>) -> tensor<12x18xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<12x6xf32> -> tensor<12x6xf32>
  %1 = shard.all_slice %0 on @grid grid_axes = [0] slice_axis = 0 : tensor<12x6xf32> -> tensor<6x6xf32>
  %2 = shard.all_gather %1 on @grid grid_axes = [1] gather_axis = 1 : tensor<6x6xf32> -> tensor<6x18xf32>
  %3 = shard.all_gather %2 on @grid grid_axes = [0] gather_axis = 0 : tensor<6x18xf32> -> tensor<12x18xf32>
  return %3 : tensor<12x18xf32>
}
