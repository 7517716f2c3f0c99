// pass: t3-simplify
// The part of a transposed sum.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<6x8xf32>) -> tensor<2x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<6x8xf32> -> tensor<6x8xf32>
  %1 = tensor.empty() : tensor<8x6xf32>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%0 : tensor<6x8xf32>) outs(%1 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<8x6xf32>
  %3 = shard.all_slice %2 on @grid grid_axes = [0] slice_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %3 : tensor<2x6xf32>
}
