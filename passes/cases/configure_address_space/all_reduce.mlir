// pass: t3-split-all-reduce, t3-find-pairs, t3-fuse, t3-configure-address-space
// The whole road of one all-reduce in a layer that runs twice.
#a = affine_map<(d0, d1, d2) -> (d0, d2)>
#b = affine_map<(d0, d1, d2) -> (d1, d2)>
#c = affine_map<(d0, d1, d2) -> (d0, d1)>
#e = affine_map<(d0, d1) -> (d0, d1)>
shard.grid @grid(shape = 4)

func.func private @layer(%x: tensor<4096x2048xf32>, %w: tensor<1024x2048xf32>) -> tensor<4096x1024xf32> {
  %p_0 = arith.constant 0.0 : f32
  %p_e = tensor.empty() : tensor<4096x1024xf32>
  %p_z = linalg.fill ins(%p_0 : f32) outs(%p_e : tensor<4096x1024xf32>) -> tensor<4096x1024xf32>
  %p = linalg.generic {indexing_maps = [#a, #b, #c], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<4096x2048xf32>, tensor<1024x2048xf32>) outs(%p_z : tensor<4096x1024xf32>) {
  ^bb0(%x_: f32, %y_: f32, %z_: f32):
    %m_ = arith.mulf %x_, %y_ : f32
    %s_ = arith.addf %z_, %m_ : f32
    linalg.yield %s_ : f32
  } -> tensor<4096x1024xf32>
  %s = shard.all_reduce %p on @grid grid_axes = [0] : tensor<4096x1024xf32> -> tensor<4096x1024xf32>
  return %s : tensor<4096x1024xf32>
}

func.func @main(%x: tensor<4096x2048xf32>, %w: tensor<1024x2048xf32>) -> tensor<4096x1024xf32> {
  %a = call @layer(%x, %w) : (tensor<4096x2048xf32>, tensor<1024x2048xf32>) -> tensor<4096x1024xf32>
  %b = call @layer(%x, %w) : (tensor<4096x2048xf32>, tensor<1024x2048xf32>) -> tensor<4096x1024xf32>
  return %b : tensor<4096x1024xf32>
}

