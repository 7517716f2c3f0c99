// pass: t3-simplify
// The narrower type travels.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x2xf32>) -> tensor<2x8xf32> {
  %0 = tensor.empty() : tensor<8x2xbf16>
  %1 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg0 : tensor<8x2xf32>) outs(%0 : tensor<8x2xbf16>) {
  ^bb0(%i0: f32, %o_: bf16):
    %r = arith.truncf %i0 : f32 to bf16
    linalg.yield %r : bf16
  } -> tensor<8x2xbf16>
  %2 = tensor.empty() : tensor<8x2xf32>
  %3 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%1 : tensor<8x2xbf16>) outs(%2 : tensor<8x2xf32>) {
  ^bb0(%i0: bf16, %o_: f32):
    %r = arith.extf %i0 : bf16 to f32
    linalg.yield %r : f32
  } -> tensor<8x2xf32>
  %4 = shard.all_to_all %3 on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x2xf32> -> tensor<2x8xf32>
  return %4 : tensor<2x8xf32>
}
