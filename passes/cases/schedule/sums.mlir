// pass: t3-fuse{policy=always},t3-configure-address-space,t3-outline,t3-schedule
// The products of a sum add into one buffer, which what follows them reads.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>, %y: tensor<8x4xf32>, %v: tensor<6x4xf32>, %sc: tensor<8xf32>) -> (tensor<2x6xf32>, tensor<2x6xf32>) {
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
  %q_0 = arith.constant 0.0 : f32
  %q_z = linalg.fill ins(%q_0 : f32) outs(%q_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%y, %v : tensor<8x4xf32>, tensor<6x4xf32>) outs(%q_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %pq_e = tensor.empty() : tensor<8x6xf32>
  %pq = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p, %q : tensor<8x6xf32>, tensor<8x6xf32>) outs(%pq_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.addf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %r1 = shard.reduce_scatter %pq on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  %p2_e = tensor.empty() : tensor<8x6xf32>
  %p2_0 = arith.constant 0.0 : f32
  %p2_z = linalg.fill ins(%p2_0 : f32) outs(%p2_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p2 = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%y, %w : tensor<8x4xf32>, tensor<6x4xf32>) outs(%p2_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %q2_e = tensor.empty() : tensor<8x6xf32>
  %q2_0 = arith.constant 0.0 : f32
  %q2_z = linalg.fill ins(%q2_0 : f32) outs(%q2_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %q2 = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %v : tensor<8x4xf32>, tensor<6x4xf32>) outs(%q2_z : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<8x6xf32>
  %pq2_e = tensor.empty() : tensor<8x6xf32>
  %pq2 = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%p2, %q2 : tensor<8x6xf32>, tensor<8x6xf32>) outs(%pq2_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.addf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %z_e = tensor.empty() : tensor<8x6xf32>
  %z = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%pq2, %sc : tensor<8x6xf32>, tensor<8xf32>) outs(%z_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %r = arith.mulf %i0, %i1 : f32
    linalg.yield %r : f32
  } -> tensor<8x6xf32>
  %r2 = shard.reduce_scatter %z on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %r1, %r2 : tensor<2x6xf32>, tensor<2x6xf32>
}
