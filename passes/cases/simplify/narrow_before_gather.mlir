// pass: t3-simplify
// The narrower type travels.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<2x6xf32>) -> tensor<8x6xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %1 = tensor.empty() : tensor<8x6xbf16>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%0 : tensor<8x6xf32>) outs(%1 : tensor<8x6xbf16>) {
  ^bb0(%i0: f32, %o_: bf16):
    %r = arith.truncf %i0 : f32 to bf16
    linalg.yield %r : bf16
  } -> tensor<8x6xbf16>
  %3 = tensor.empty() : tensor<8x6xf32>
  %4 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%2 : tensor<8x6xbf16>) outs(%3 : tensor<8x6xf32>) {
  ^bb0(%i0: bf16, %o_: f32):
    %r = arith.extf %i0 : bf16 to f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  return %4 : tensor<8x6xf32>
}
