// pass: t3-simplify
// Each device gets back the part that it gave; along another dimension nothing changes.
#e = affine_map<(d0, d1) -> (d0, d1)>
shard.grid @grid(shape = 4)

func.func private @same(%x: tensor<2x6xf32>) -> tensor<2x6xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %s = shard.all_slice %g on @grid grid_axes = [0] slice_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  %y_e = tensor.empty() : tensor<2x6xf32>
  %y = linalg.generic {indexing_maps = [#e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%s : tensor<2x6xf32>) outs(%y_e : tensor<2x6xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r_ = math.exp %i0 : f32
    linalg.yield %r_ : f32
  } -> tensor<2x6xf32>
  return %y : tensor<2x6xf32>
}

func.func private @other(%x: tensor<2x8xf32>) -> tensor<8x2xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x8xf32> -> tensor<8x8xf32>
  %s = shard.all_slice %g on @grid grid_axes = [0] slice_axis = 1 : tensor<8x8xf32> -> tensor<8x2xf32>
  return %s : tensor<8x2xf32>
}

