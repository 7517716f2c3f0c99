// pass: t3-find-pairs
// Gathers with readers: row by row through a norm, of weights, through a reshape; and gathers without.
shard.grid @grid(shape = 4)

func.func private @qkv(%x: tensor<2x4xf32>, %n: tensor<4xf32>, %wq: tensor<6x4xf32>, %wk: tensor<3x4xf32>, %wv: tensor<3x4xf32>) -> (tensor<8x6xf32>, tensor<8x3xf32>, tensor<8x3xf32>, tensor<8x4xf32>) {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<8x4xf32>
  %sq_e = tensor.empty() : tensor<8xf32>
  %sq_0 = arith.constant 0.0 : f32
  %sq_z = linalg.fill ins(%sq_0 : f32) outs(%sq_e : tensor<8xf32>) -> tensor<8xf32>
  %sq = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
    ins(%g : tensor<8x4xf32>) outs(%sq_z : tensor<8xf32>) {
  ^bb0(%i0: f32, %o: f32):
    %m = arith.mulf %i0, %i0 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8xf32>
  %rs_e = tensor.empty() : tensor<8xf32>
  %rs = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>], iterator_types = ["parallel"]}
    ins(%sq : tensor<8xf32>) outs(%rs_e : tensor<8xf32>) {
  ^bb0(%i0: f32, %o: f32):
    %r = math.rsqrt %i0 : f32
    linalg.yield %r : f32
  } -> tensor<8xf32>
  %h_e = tensor.empty() : tensor<8x4xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%g, %rs, %n : tensor<8x4xf32>, tensor<8xf32>, tensor<4xf32>) outs(%h_e : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %i2: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %r = arith.mulf %m, %i2 : f32
    linalg.yield %r : f32
  } -> tensor<8x4xf32>
  %q_e = tensor.empty() : tensor<8x6xf32>
  %q_0 = arith.constant 0.0 : f32
  %q_z = linalg.fill ins(%q_0 : f32) outs(%q_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%h, %wq : tensor<8x4xf32>, tensor<6x4xf32>) outs(%q_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %qe_e = tensor.empty() : tensor<8x6xf32>
  %qe = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%q : tensor<8x6xf32>) outs(%qe_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o: f32):
    %r = math.exp %i0 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %k_e = tensor.empty() : tensor<8x3xf32>
  %k_0 = arith.constant 0.0 : f32
  %k_z = linalg.fill ins(%k_0 : f32) outs(%k_e : tensor<8x3xf32>) -> tensor<8x3xf32>
  %k = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%h, %wk : tensor<8x4xf32>, tensor<3x4xf32>) outs(%k_z : tensor<8x3xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x3xf32>
  %v_e = tensor.empty() : tensor<8x3xf32>
  %v_0 = arith.constant 0.0 : f32
  %v_z = linalg.fill ins(%v_0 : f32) outs(%v_e : tensor<8x3xf32>) -> tensor<8x3xf32>
  %v = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%h, %wv : tensor<8x4xf32>, tensor<3x4xf32>) outs(%v_z : tensor<8x3xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x3xf32>
  return %qe, %k, %v, %g : tensor<8x6xf32>, tensor<8x3xf32>, tensor<8x3xf32>, tensor<8x4xf32>
}

func.func private @weight_gradient(%x: tensor<2x4xf32>, %dy: tensor<8x6xf32>) -> tensor<4x6xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<8x4xf32>
  %dw_e = tensor.empty() : tensor<4x6xf32>
  %dw_0 = arith.constant 0.0 : f32
  %dw_z = linalg.fill ins(%dw_0 : f32) outs(%dw_e : tensor<4x6xf32>) -> tensor<4x6xf32>
  %dw = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d2, d0)>, affine_map<(d0, d1, d2) -> (d2, d1)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%g, %dy : tensor<8x4xf32>, tensor<8x6xf32>) outs(%dw_z : tensor<4x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<4x6xf32>
  return %dw : tensor<4x6xf32>
}

func.func private @weights(%x: tensor<8x4xf32>, %w: tensor<3x4xf32>) -> tensor<8x12xf32> {
  %g = shard.all_gather %w on @grid grid_axes = [0] gather_axis = 0 : tensor<3x4xf32> -> tensor<12x4xf32>
  %y_e = tensor.empty() : tensor<8x12xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<8x12xf32>) -> tensor<8x12xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %g : tensor<8x4xf32>, tensor<12x4xf32>) outs(%y_z : tensor<8x12xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x12xf32>
  return %y : tensor<8x12xf32>
}

func.func private @returned(%x: tensor<2x4xf32>) -> tensor<8x4xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<8x4xf32>
  return %g : tensor<8x4xf32>
}

func.func private @needs_a_result(%x: tensor<2x4xf32>, %w: tensor<4x4xf32>) -> tensor<8x4xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<8x4xf32>
  %y_e = tensor.empty() : tensor<8x4xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<8x4xf32>) -> tensor<8x4xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%g, %w : tensor<8x4xf32>, tensor<4x4xf32>) outs(%y_z : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x4xf32>
  %cs_e = tensor.empty() : tensor<4xf32>
  %cs_0 = arith.constant 0.0 : f32
  %cs_z = linalg.fill ins(%cs_0 : f32) outs(%cs_e : tensor<4xf32>) -> tensor<4xf32>
  %cs = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d1, d0)>, affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
    ins(%y : tensor<8x4xf32>) outs(%cs_z : tensor<4xf32>) {
  ^bb0(%i0: f32, %o: f32):
    %s = arith.addf %o, %i0 : f32
    linalg.yield %s : f32
  } -> tensor<4xf32>
  %ws_e = tensor.empty() : tensor<4x4xf32>
  %ws = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%w, %cs : tensor<4x4xf32>, tensor<4xf32>) outs(%ws_e : tensor<4x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<4x4xf32>
  %z_e = tensor.empty() : tensor<8x4xf32>
  %z_0 = arith.constant 0.0 : f32
  %z_z = linalg.fill ins(%z_0 : f32) outs(%z_e : tensor<8x4xf32>) -> tensor<8x4xf32>
  %z = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%g, %ws : tensor<8x4xf32>, tensor<4x4xf32>) outs(%z_z : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x4xf32>
  return %z : tensor<8x4xf32>
}

func.func private @through_a_reshape(%x: tensor<2x4xf32>, %w: tensor<6x4xf32>) -> tensor<4x2x6xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<8x4xf32>
  %v = tensor.expand_shape %g [[0, 1], [2]] output_shape [4, 2, 4] : tensor<8x4xf32> into tensor<4x2x4xf32>
  %y_e = tensor.empty() : tensor<4x2x6xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<4x2x6xf32>) -> tensor<4x2x6xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d3)>, affine_map<(d0, d1, d2, d3) -> (d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel", "reduction"]}
    ins(%v, %w : tensor<4x2x4xf32>, tensor<6x4xf32>) outs(%y_z : tensor<4x2x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<4x2x6xf32>
  return %y : tensor<4x2x6xf32>
}
