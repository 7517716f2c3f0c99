// pass: t3-fuse{policy=always},t3-unfuse{keep=sums}
// A product stays with its reduce-scatter; a scaled one and an exchanged one come before theirs.
shard.grid @grid(shape = 2)

func.func private @sum(%x: tensor<6x4xf32>, %w: tensor<6x4xf32>) -> tensor<3x6xf32> {
  %p_e = tensor.empty() : tensor<6x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<6x6xf32>) -> tensor<6x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<6x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<6x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<6x6xf32>
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 0 : tensor<6x6xf32> -> tensor<3x6xf32>
  return %r : tensor<3x6xf32>
}

func.func private @scaled(%x: tensor<6x4xf32>, %w: tensor<6x4xf32>, %sc: tensor<6xf32>) -> tensor<3x6xf32> {
  %p_e = tensor.empty() : tensor<6x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<6x6xf32>) -> tensor<6x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<6x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<6x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<6x6xf32>
  %q_e = tensor.empty() : tensor<6x6xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p, %sc : tensor<6x6xf32>, tensor<6xf32>) outs(%q_e : tensor<6x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<6x6xf32>
  %r2 = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 0 : tensor<6x6xf32> -> tensor<3x6xf32>
  return %r2 : tensor<3x6xf32>
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
