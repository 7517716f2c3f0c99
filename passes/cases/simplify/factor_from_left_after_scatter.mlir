// pass: t3-simplify{reassociate=1}
// A factor that all devices hold scales the part of the sum.
shard.grid @grid(shape = 4)

func.func private @f(%arg0: tensor<8x6xf32>, %arg1: tensor<6xf32> {t3.split = [array<i64>]}) -> tensor<2x6xf32> {
  %0 = tensor.empty() : tensor<8x6xf32>
  %1 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%arg1, %arg0 : tensor<6xf32>, tensor<8x6xf32>) outs(%0 : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %2 = shard.reduce_scatter %1 on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %2 : tensor<2x6xf32>
}
