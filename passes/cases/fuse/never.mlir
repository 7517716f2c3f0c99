// pass: t3-fuse{policy=never}
// Nothing is fused, and every pair says so.
#a = affine_map<(d0, d1, d2) -> (d0, d2)>
#b = affine_map<(d0, d1, d2) -> (d1, d2)>
#c = affine_map<(d0, d1, d2) -> (d0, d1)>
#e = affine_map<(d0, d1) -> (d0, d1)>
shard.grid @grid(shape = 4)

func.func private @layer(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>) -> tensor<2x6xf32> {
  %p_0 = arith.constant 0.0 : f32
  %p_e = tensor.empty() : tensor<8x6xf32>
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p = linalg.generic {indexing_maps = [#a, #b, #c], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x4xf32>, tensor<6x4xf32>) outs(%p_z : tensor<8x6xf32>) {
  ^bb0(%x_: f32, %y_: f32, %z_: f32):
    %m_ = arith.mulf %x_, %y_ : f32
    %s_ = arith.addf %z_, %m_ : f32
    linalg.yield %s_ : f32
  } -> tensor<8x6xf32>
  %s = shard.reduce_scatter %p on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %s : tensor<2x6xf32>
}

