// pass: t3-simplify
// What repeats is computed once.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<6xf32>) -> (tensor<6xf32>, tensor<8x6xf32>) {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0] : tensor<6xf32> -> tensor<6xf32>
  %1 = tensor.empty() : tensor<6xf32>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>], iterator_types = ["parallel"]}
    ins(%0 : tensor<6xf32>) outs(%1 : tensor<6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r = math.exp %i0 : f32
    linalg.yield %r : f32
  } -> tensor<6xf32>
  %3 = tensor.empty() : tensor<8x6xf32>
  %4 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%0 : tensor<6xf32>) outs(%3 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    linalg.yield %i0 : f32
  } -> tensor<8x6xf32>
  %5 = tensor.empty() : tensor<8x6xf32>
  %6 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%4 : tensor<8x6xf32>) outs(%5 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r = math.exp %i0 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  return %2, %6 : tensor<6xf32>, tensor<8x6xf32>
}
