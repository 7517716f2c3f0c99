// pass: t3-simplify
// A sum of which each device keeps its part; elementwise work moves to the part.
#e = affine_map<(d0, d1) -> (d0, d1)>
shard.grid @grid(shape = 4)

func.func private @f(%x: tensor<8x6xf32>) -> tensor<2x6xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  %e_e = tensor.empty() : tensor<8x6xf32>
  %e = linalg.generic {indexing_maps = [#e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%a : tensor<8x6xf32>) outs(%e_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r_ = math.exp %i0 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  %s = shard.all_slice %e on @grid grid_axes = [0] slice_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %s : tensor<2x6xf32>
}

func.func private @both_used(%x: tensor<8x6xf32>) -> (tensor<2x6xf32>, tensor<8x6xf32>) {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  %s = shard.all_slice %a on @grid grid_axes = [0] slice_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %s, %a : tensor<2x6xf32>, tensor<8x6xf32>
}

