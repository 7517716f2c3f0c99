// pass: t3-fuse{policy=always}
// One product, and a chain of three that share an operand: each moves into the op with a zero of its own.
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

func.func private @three_products(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>, %v: tensor<6x4xf32>, %u: tensor<6x4xf32>) -> tensor<2x6xf32> {
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
  %q_0 = arith.constant 0.0 : f32
  %q_e = tensor.empty() : tensor<8x6xf32>
  %q_z = linalg.fill ins(%q_0 : f32) outs(%q_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %q = linalg.generic {indexing_maps = [#a, #b, #c], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %v : tensor<8x4xf32>, tensor<6x4xf32>) outs(%q_z : tensor<8x6xf32>) {
  ^bb0(%x_: f32, %y_: f32, %z_: f32):
    %m_ = arith.mulf %x_, %y_ : f32
    %s_ = arith.addf %z_, %m_ : f32
    linalg.yield %s_ : f32
  } -> tensor<8x6xf32>
  %pq_e = tensor.empty() : tensor<8x6xf32>
  %pq = linalg.generic {indexing_maps = [#e, #e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%p, %q : tensor<8x6xf32>, tensor<8x6xf32>) outs(%pq_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r_ = arith.addf %i0, %i1 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  %k_0 = arith.constant 0.0 : f32
  %k_e = tensor.empty() : tensor<8x6xf32>
  %k_z = linalg.fill ins(%k_0 : f32) outs(%k_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %k = linalg.generic {indexing_maps = [#a, #b, #c], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %u : tensor<8x4xf32>, tensor<6x4xf32>) outs(%k_z : tensor<8x6xf32>) {
  ^bb0(%x_: f32, %y_: f32, %z_: f32):
    %m_ = arith.mulf %x_, %y_ : f32
    %s_ = arith.addf %z_, %m_ : f32
    linalg.yield %s_ : f32
  } -> tensor<8x6xf32>
  %pqk_e = tensor.empty() : tensor<8x6xf32>
  %pqk = linalg.generic {indexing_maps = [#e, #e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%k, %pq : tensor<8x6xf32>, tensor<8x6xf32>) outs(%pqk_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r_ = arith.addf %i0, %i1 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  %s = shard.reduce_scatter %pqk on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  return %s : tensor<2x6xf32>
}

func.func private @used_elsewhere(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>) -> (tensor<2x6xf32>, tensor<8x6xf32>) {
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
  return %s, %p : tensor<2x6xf32>, tensor<8x6xf32>
}

func.func @main(%x: tensor<8x4xf32>, %w: tensor<6x4xf32>) -> (tensor<2x6xf32>, tensor<2x6xf32>) {
  %a = call @layer(%x, %w) : (tensor<8x4xf32>, tensor<6x4xf32>) -> tensor<2x6xf32>
  %b = call @layer(%x, %w) : (tensor<8x4xf32>, tensor<6x4xf32>) -> tensor<2x6xf32>
  return %a, %b : tensor<2x6xf32>, tensor<2x6xf32>
}

