// pass: t3-outline, t3-schedule
// Nothing split, nothing fused: the all-reduce is a step.
#a = affine_map<(d0, d1, d2) -> (d0, d2)>
#b = affine_map<(d0, d1, d2) -> (d1, d2)>
#c = affine_map<(d0, d1, d2) -> (d0, d1)>
#e = affine_map<(d0, d1) -> (d0, d1)>
#row = affine_map<(d0, d1) -> (d0)>
shard.grid @grid(shape = 4)

func.func private @layer(%x: tensor<8x6xf32> {t3.name = "x"}, %w1: tensor<4x6xf32> {t3.name = "param/up"}, %w2: tensor<6x4xf32> {t3.name = "param/down"}) -> (tensor<8x6xf32> {t3.name = "y"}) {
  %n_0 = arith.constant 0.0 : f32
  %n_e = tensor.empty() : tensor<8xf32>
  %n_z = linalg.fill ins(%n_0 : f32) outs(%n_e : tensor<8xf32>) -> tensor<8xf32>
  %n = linalg.generic {indexing_maps = [#e, #row], iterator_types = ["parallel", "reduction"]}
    ins(%x : tensor<8x6xf32>) outs(%n_z : tensor<8xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %q_ = arith.mulf %i0, %i0 : f32
    %r_ = arith.addf %o_, %q_ : f32
    linalg.yield %r_ : f32
  } -> tensor<8xf32>
  %xn_e = tensor.empty() : tensor<8x6xf32>
  %xn = linalg.generic {indexing_maps = [#e, #row, #e], iterator_types = ["parallel", "parallel"]}
    ins(%x, %n : tensor<8x6xf32>, tensor<8xf32>) outs(%xn_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %k_ = math.rsqrt %i1 : f32
    %r_ = arith.mulf %i0, %k_ : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  %u_0 = arith.constant 0.0 : f32
  %u_e = tensor.empty() : tensor<8x4xf32>
  %u_z = linalg.fill ins(%u_0 : f32) outs(%u_e : tensor<8x4xf32>) -> tensor<8x4xf32>
  %u = linalg.generic {indexing_maps = [#a, #b, #c], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%xn, %w1 : tensor<8x6xf32>, tensor<4x6xf32>) outs(%u_z : tensor<8x4xf32>) {
  ^bb0(%x_: f32, %y_: f32, %z_: f32):
    %m_ = arith.mulf %x_, %y_ : f32
    %s_ = arith.addf %z_, %m_ : f32
    linalg.yield %s_ : f32
  } -> tensor<8x4xf32>
  %a_e = tensor.empty() : tensor<8x4xf32>
  %a = linalg.generic {indexing_maps = [#e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%u : tensor<8x4xf32>) outs(%a_e : tensor<8x4xf32>) {
  ^bb0(%i0: f32, %o_: f32):
    %r_ = math.exp %i0 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x4xf32>
  %d_0 = arith.constant 0.0 : f32
  %d_e = tensor.empty() : tensor<8x6xf32>
  %d_z = linalg.fill ins(%d_0 : f32) outs(%d_e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %d = linalg.generic {indexing_maps = [#a, #b, #c], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%a, %w2 : tensor<8x4xf32>, tensor<6x4xf32>) outs(%d_z : tensor<8x6xf32>) {
  ^bb0(%x_: f32, %y_: f32, %z_: f32):
    %m_ = arith.mulf %x_, %y_ : f32
    %s_ = arith.addf %z_, %m_ : f32
    linalg.yield %s_ : f32
  } -> tensor<8x6xf32>
  %s = shard.all_reduce %d on @grid grid_axes = [0] : tensor<8x6xf32> -> tensor<8x6xf32>
  %y_e = tensor.empty() : tensor<8x6xf32>
  %y = linalg.generic {indexing_maps = [#e, #e, #e], iterator_types = ["parallel", "parallel"]}
    ins(%s, %x : tensor<8x6xf32>, tensor<8x6xf32>) outs(%y_e : tensor<8x6xf32>) {
  ^bb0(%i0: f32, %i1: f32, %o_: f32):
    %r_ = arith.addf %i0, %i1 : f32
    linalg.yield %r_ : f32
  } -> tensor<8x6xf32>
  return %y : tensor<8x6xf32>
}

func.func @main(%x: tensor<8x6xf32> {t3.name = "x"}, %w1: tensor<4x6xf32> {t3.name = "param/up"}, %w2: tensor<6x4xf32> {t3.name = "param/down"}) -> (tensor<8x6xf32> {t3.name = "logits"}) {
  %a = call @layer(%x, %w1, %w2) : (tensor<8x6xf32>, tensor<4x6xf32>, tensor<6x4xf32>) -> tensor<8x6xf32>
  %b = call @layer(%a, %w1, %w2) : (tensor<8x6xf32>, tensor<4x6xf32>, tensor<6x4xf32>) -> tensor<8x6xf32>
  return %b : tensor<8x6xf32>
}

