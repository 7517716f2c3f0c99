// pass: t3-find-pairs,t3-fuse{policy=always},t3-configure-address-space
// An all-to-all overlaps with the product that reads it, or with the one that feeds it.
shard.grid @grid(shape = 2)

func.func private @experts(%x: tensor<4x2x4xf32>, %w: tensor<2x6x4xf32>) -> tensor<8x1x1x6xf32> {
  %g = shard.all_to_all %x on @grid grid_axes = [0] split_axis = 1 concat_axis = 0 : tensor<4x2x4xf32> -> tensor<8x1x4xf32>
  %ws = tensor.extract_slice %w[0, 0, 0] [1, 6, 4] [1, 1, 1] : tensor<2x6x4xf32> to tensor<1x6x4xf32>
  %y_e = tensor.empty() : tensor<8x1x1x6xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<8x1x1x6xf32>) -> tensor<8x1x1x6xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d4)>, affine_map<(d0, d1, d2, d3, d4) -> (d2, d3, d4)>, affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
    ins(%g, %ws : tensor<8x1x4xf32>, tensor<1x6x4xf32>) outs(%y_z : tensor<8x1x1x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x1x1x6xf32>
  return %y : tensor<8x1x1x6xf32>
}

func.func private @back(%x: tensor<8x1x4xf32>, %w: tensor<6x4xf32>) -> tensor<4x2x6xf32> {
  %y_e = tensor.empty() : tensor<8x1x6xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<8x1x6xf32>) -> tensor<8x1x6xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d3)>, affine_map<(d0, d1, d2, d3) -> (d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x1x4xf32>, tensor<6x4xf32>) outs(%y_z : tensor<8x1x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x1x6xf32>
  %g = shard.all_to_all %y on @grid grid_axes = [0] split_axis = 0 concat_axis = 1 : tensor<8x1x6xf32> -> tensor<4x2x6xf32>
  return %g : tensor<4x2x6xf32>
}
