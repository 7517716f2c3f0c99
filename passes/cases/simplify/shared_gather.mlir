// pass: t3-simplify
// A gather that two need stays one: computing each on its part would gather twice.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<2x6xf32>) -> (tensor<8x6xf32>, tensor<6x8xf32>) {
  %0 = tensor.empty() : tensor<2x6xf32>
  %1 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg0 : tensor<2x6xf32>) outs(%0 : tensor<2x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r = math.exp %i0 : f32
    linalg.yield %r : f32
  } -> tensor<2x6xf32>
  %2 = shard.all_gather %1 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %3 = tensor.empty() : tensor<8x6xf32>
  %4 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%2 : tensor<8x6xf32>) outs(%3 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r = math.exp %i0 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %5 = tensor.empty() : tensor<6x8xf32>
  %6 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%2 : tensor<8x6xf32>) outs(%5 : tensor<6x8xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<6x8xf32>
  return %4, %6 : tensor<8x6xf32>, tensor<6x8xf32>
}
