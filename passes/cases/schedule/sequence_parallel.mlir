// pass: t3-find-pairs,t3-fuse{policy=always},t3-configure-address-space,t3-outline,t3-schedule
// Sequence parallelism: a gather with two readers behind a norm, a scaled product with its reduce-scatter.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<2x4xf32>, %n: tensor<4xf32>, %up: tensor<6x4xf32>, %gate: tensor<6x4xf32>, %down: tensor<4x6xf32>, %sc: tensor<8xf32>) -> tensor<2x4xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<8x4xf32>
  %h_e = tensor.empty() : tensor<8x4xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%g, %n : tensor<8x4xf32>, tensor<4xf32>) outs(%h_e : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    linalg.yield %m : f32
  } -> tensor<8x4xf32>
  %u_e = tensor.empty() : tensor<8x6xf32>
  %u_0 = arith.constant 0.0 : f32
  %u_z = linalg.fill ins(%u_0 : f32) outs(%u_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %u = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%h, %up : tensor<8x4xf32>, tensor<6x4xf32>) outs(%u_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %v_e = tensor.empty() : tensor<8x6xf32>
  %v_0 = arith.constant 0.0 : f32
  %v_z = linalg.fill ins(%v_0 : f32) outs(%v_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %v = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%h, %gate : tensor<8x4xf32>, tensor<6x4xf32>) outs(%v_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %e_e = tensor.empty() : tensor<8x6xf32>
  %e = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%u, %v : tensor<8x6xf32>, tensor<8x6xf32>) outs(%e_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %x_ = math.exp %i1 : f32
    %m = arith.mulf %i0, %x_ : f32
    linalg.yield %m : f32
  } -> tensor<8x6xf32>
  %p_e = tensor.empty() : tensor<8x4xf32>
  %p_0 = arith.constant 0.0 : f32
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8x4xf32>) -> tensor<8x4xf32>
  %p = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%e, %down : tensor<8x6xf32>, tensor<4x6xf32>) outs(%p_z : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x4xf32>
  %q_e = tensor.empty() : tensor<8x4xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p, %sc : tensor<8x4xf32>, tensor<8xf32>) outs(%q_e : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x4xf32>
  %s = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x4xf32> -> tensor<2x4xf32>
  %y_e = tensor.empty() : tensor<2x4xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%s, %x : tensor<2x4xf32>, tensor<2x4xf32>) outs(%y_e : tensor<2x4xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.addf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<2x4xf32>
  return %y : tensor<2x4xf32>
}
