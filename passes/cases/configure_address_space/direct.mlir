// pass: t3-fuse{policy=always},t3-configure-address-space{algorithm=direct}
// Three devices, each connected to both others: chunks go straight to their owner, parts to every reader.
shard.grid @grid(shape = 3)

func.func private @layer(%x: tensor<6x4xf32>, %w: tensor<6x4xf32>) -> tensor<2x6xf32> {
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
  %r = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 0 : tensor<6x6xf32> -> tensor<2x6xf32>
  return %r : tensor<2x6xf32>
}

func.func private @reader(%x: tensor<2x4xf32>, %w: tensor<6x4xf32>) -> tensor<6x6xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x4xf32> -> tensor<6x4xf32>
  %y_e = tensor.empty() : tensor<6x6xf32>
  %y_0 = arith.constant 0.0 : f32
  %y_z = linalg.fill ins(%y_0 : f32) outs(%y_e : tensor<6x6xf32>) -> tensor<6x6xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%g, %w : tensor<6x4xf32>, tensor<6x4xf32>) outs(%y_z : tensor<6x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o: f32):
    %m = arith.mulf %i0, %i1 : f32
    %s = arith.addf %o, %m : f32
    linalg.yield %s : f32
  } -> tensor<6x6xf32>
  return %y : tensor<6x6xf32>
}
