// pass: t3-simplify
// Work on the part: other operands are the same on all devices, as the signature says, and sliced
// where they vary along the gathered dimension. Without that promise the gather stays in front.
shard.grid @grid(shape = 4)

func.func private @replicated(%arg0: tensor<2x6xf32>, %arg1: tensor<6xf32> {t3.split = [array<i64>]}, %arg2: tensor<8xf32> {t3.split = [array<i64>]}) -> tensor<8x6xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %1 = tensor.empty() : tensor<8x6xf32>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%0, %arg1, %arg2 : tensor<8x6xf32>, tensor<6xf32>, tensor<8xf32>) outs(%1 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %i2: f32, %o_: f32):
    %s = arith.addf %i0, %i1 : f32
    %r = arith.mulf %s, %i2 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  return %2 : tensor<8x6xf32>
}

func.func private @unknown(%arg0: tensor<2x6xf32>, %arg1: tensor<8xf32>) -> tensor<8x6xf32> {
  %0 = shard.all_gather %arg0 on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %1 = tensor.empty() : tensor<8x6xf32>
  %2 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%0, %arg1 : tensor<8x6xf32>, tensor<8xf32>) outs(%1 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  return %2 : tensor<8x6xf32>
}
