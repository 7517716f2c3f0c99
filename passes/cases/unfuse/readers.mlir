// pass: t3-fuse{policy=always},t3-unfuse
// Taken apart again: the gather, then its readers.
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
