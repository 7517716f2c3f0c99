// pass: t3-fuse{policy=always},t3-configure-address-space,t3-outline
// What stands between a product and its collective moves inside with it.
shard.grid @grid(shape = 4)

func.func private @scaled(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>, %sc: tensor<8xf32>) -> tensor<2x6xf32> {
  %p_e = tensor.empty() : tensor<8x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %q_e = tensor.empty() : tensor<8x6xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p, %sc : tensor<8x6xf32>, tensor<8xf32>) outs(%q_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %r = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %r : tensor<2x6xf32>
}

func.func private @cast(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>) -> tensor<2x6xf64> {
  %p_e = tensor.empty() : tensor<8x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %q_e = tensor.empty() : tensor<8x6xf64>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p : tensor<8x6xf32>) outs(%q_e : tensor<8x6xf64>) {
  ^bb0(%i0: f32, %o: f64):
    %r = arith.extf %i0 : f32 to f64
    linalg.yield %r : f64
  } -> tensor<8x6xf64>
  %r = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf64> -> tensor<2x6xf64>
  return %r : tensor<2x6xf64>
}

func.func private @batched(%x: tensor<4x8x16xf32>, %w: tensor<4x6x16xf32>) -> tensor<4x2x6xf32> {
  %p_e = tensor.empty() : tensor<4x8x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<4x8x6xf32>) -> tensor<4x8x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<4x8x16xf32>, tensor<4x6x16xf32>) outs(%p_z : tensor<4x8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<4x8x6xf32>
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 1 : tensor<4x8x6xf32> -> tensor<4x2x6xf32>
  return %r : tensor<4x2x6xf32>
}

func.func private @three_dimensions(%x: tensor<2x8x4xf32>, %w: tensor<3x2x4xf32>) -> tensor<2x2x6xf32> {
  %p_e = tensor.empty() : tensor<2x8x3x2xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<2x8x3x2xf32>) -> tensor<2x8x3x2xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d4)>, affine_map<(d0, d1, d2, d3, d4) -> (d2, d3, d4)>, affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<2x8x4xf32>, tensor<3x2x4xf32>) outs(%p_z : tensor<2x8x3x2xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<2x8x3x2xf32>
  %v = tensor.collapse_shape %p [[0], [1], [2, 3]] : tensor<2x8x3x2xf32> into tensor<2x8x6xf32>
  %r = shard.reduce_scatter %v on @grid grid_axes = [0] scatter_axis = 1 : tensor<2x8x6xf32> -> tensor<2x2x6xf32>
  return %r : tensor<2x2x6xf32>
}

func.func private @transposed(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>) -> tensor<6x2xf32> {
  %p_e = tensor.empty() : tensor<8x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %q_e = tensor.empty() : tensor<6x8xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p : tensor<8x6xf32>) outs(%q_e : tensor<6x8xf32>) {
  ^bb0(%i0: f32, %o: f32):
    linalg.yield %i0 : f32
  } -> tensor<6x8xf32>
  %r = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 1 : tensor<6x8xf32> -> tensor<6x2xf32>
  return %r : tensor<6x2xf32>
}

func.func private @bias_gradient(%dy: tensor<6x8xf32>) -> tensor<2xf32> {
  %p_e = tensor.empty() : tensor<8xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8xf32>) -> tensor<8xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
    ins(%dy : tensor<6x8xf32>) outs(%p_z : tensor<8xf32>) {
  ^bb0(%i0: f32, %o: f32):
    %s = arith.addf %o, %i0 : f32
    linalg.yield %s : f32
  } -> tensor<8xf32>
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 0 : tensor<8xf32> -> tensor<2xf32>
  return %r : tensor<2xf32>
}

func.func private @elementwise(%x: tensor<8x6xf32>, %y: tensor<8x6xf32>) -> tensor<2x6xf32> {
  %p_e = tensor.empty() : tensor<8x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%x, %y : tensor<8x6xf32>, tensor<8x6xf32>) outs(%p_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %r : tensor<2x6xf32>
}

func.func private @inner_of_a_reshape(%x: tensor<2x4xf32>, %w: tensor<12x4xf32>) -> tensor<2x3x1xf32> {
  %p_e = tensor.empty() : tensor<2x12xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<2x12xf32>) -> tensor<2x12xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<2x4xf32>, tensor<12x4xf32>) outs(%p_z : tensor<2x12xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<2x12xf32>
  %v = tensor.expand_shape %p [[0], [1, 2]] output_shape [2, 3, 4] : tensor<2x12xf32> into tensor<2x3x4xf32>
  %r = shard.reduce_scatter %v on @grid grid_axes = [0] scatter_axis = 2 : tensor<2x3x4xf32> -> tensor<2x3x1xf32>
  return %r : tensor<2x3x1xf32>
}

func.func private @scaled_and_shared(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>, %sc: tensor<8xf32>) -> (tensor<2x6xf32>, tensor<8x6xf32>) {
  %p_e = tensor.empty() : tensor<8x6xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %q_e = tensor.empty() : tensor<8x6xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p, %sc : tensor<8x6xf32>, tensor<8xf32>) outs(%q_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %r = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %r, %p : tensor<2x6xf32>, tensor<8x6xf32>
}
