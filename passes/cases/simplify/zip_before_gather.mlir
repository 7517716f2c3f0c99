// pass: t3-simplify
// Two gathers become one, unless their whole values are needed anyway.
#e = affine_map<(d0, d1) -> (d0, d1)>
shard.grid @grid(shape = 4)

func.func private @f(%x: tensor<2x6xf32>, %y: tensor<2x6xf32>) -> tensor<8x6xf32> {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %h = shard.all_gather %y on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %z_e = tensor.empty() : tensor<8x6xf32>
  %z = linalg.generic {indexing_maps = [#e, #e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%g, %h : tensor<8x6xf32>, tensor<8x6xf32>) outs(%z_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r_ = arith.addf %i0, %i1 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  return %z : tensor<8x6xf32>
}

func.func private @needed(%x: tensor<2x6xf32>, %y: tensor<2x6xf32>) -> (tensor<8x6xf32>, tensor<8x6xf32>, tensor<8x6xf32>) {
  %g = shard.all_gather %x on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %h = shard.all_gather %y on @grid grid_axes = [0] gather_axis = 0 : tensor<2x6xf32> -> tensor<8x6xf32>
  %z_e = tensor.empty() : tensor<8x6xf32>
  %z = linalg.generic {indexing_maps = [#e, #e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%g, %h : tensor<8x6xf32>, tensor<8x6xf32>) outs(%z_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r_ = arith.addf %i0, %i1 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  return %g, %h, %z : tensor<8x6xf32>, tensor<8x6xf32>, tensor<8x6xf32>
}

