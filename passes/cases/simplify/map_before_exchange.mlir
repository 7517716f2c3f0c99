// pass: t3-simplify
// One exchange instead of two.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x2xf32>, %arg1: tensor<8x2xf32>) -> tensor<2x8xf32> {
  %0 = shard.all_to_all %arg0 on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x2xf32> -> tensor<2x8xf32>
  %1 = shard.all_to_all %arg1 on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x2xf32> -> tensor<2x8xf32>
  %2 = tensor.empty() : tensor<2x8xf32>
  %3 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%0, %1 : tensor<2x8xf32>, tensor<2x8xf32>) outs(%2 : tensor<2x8xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r = arith.addf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<2x8xf32>
  return %3 : tensor<2x8xf32>
}
