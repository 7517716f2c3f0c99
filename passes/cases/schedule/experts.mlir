// pass: t3-find-pairs,t3-fuse{policy=always},t3-configure-address-space,t3-outline,t3-schedule
// Two all-to-alls around a product: one of them is fused with it; rows that are padding do not count.
shard.grid @grid(shape = 2)

func.func @main(%x: tensor<4x2x4xf32>, %w: tensor<1x6x4xf32>) -> tensor<4x2x6xf32> {
  %g = shard.all_to_all %x on @grid grid_axes = [0] split_axis = 1 concat_axis = 0 {t3.rows = 6 : i64} : tensor<4x2x4xf32> -> tensor<8x1x4xf32>
  %y_e = tensor.empty() : tensor<8x1x1x6xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<8x1x1x6xf32>) -> tensor<8x1x1x6xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d4)>, affine_map<(d0, d1, d2, d3, d4) -> (d2, d3, d4)>, affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
    ins(%g, %w : tensor<8x1x4xf32>, tensor<1x6x4xf32>) outs(%y_z : tensor<8x1x1x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x1x1x6xf32>
  %z = tensor.collapse_shape %y [[0], [1, 2], [3]] : tensor<8x1x1x6xf32> into tensor<8x1x6xf32>
  %b = shard.all_to_all %z on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x1x6xf32> -> tensor<4x2x6xf32>
  return %b : tensor<4x2x6xf32>
}
