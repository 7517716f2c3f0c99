// pass: t3-normalize,t3-find-pairs
// Named operations become generics; fills stay, so that the product is known to start from zero.
shard.grid @grid(shape = 4)

func.func private @named(%x: tensor<8x4xf32>, %w: tensor<4x6xf32>, %b: tensor<6xf32>) -> (tensor<2x6xf32>, tensor<8xf32>, tensor<6x8xf32>) {
  %0 = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<8x6xf32>
  %z = linalg.fill ins(%0 : f32) outs(%e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %p = linalg.matmul ins(%x, %w : tensor<8x4xf32>, tensor<4x6xf32>) outs(%z : tensor<8x6xf32>) -> tensor<8x6xf32>
  %c = linalg.broadcast ins(%b : tensor<6xf32>) outs(%e : tensor<8x6xf32>) dimensions = [0]
  %q = linalg.mul ins(%p, %c : tensor<8x6xf32>, tensor<8x6xf32>) outs(%e : tensor<8x6xf32>) -> tensor<8x6xf32>
  %r = shard.reduce_scatter %q on @grid grid_axes = [0] scatter_axis = 0 : tensor<8x6xf32> -> tensor<2x6xf32>
  %te = tensor.empty() : tensor<6x8xf32>
  %t = linalg.transpose ins(%c : tensor<8x6xf32>) outs(%te : tensor<6x8xf32>) permutation = [1, 0]
  %ve = tensor.empty() : tensor<8xf32>
  %vz = linalg.fill ins(%0 : f32) outs(%ve : tensor<8xf32>) -> tensor<8xf32>
  %s = linalg.reduce ins(%c : tensor<8x6xf32>) outs(%vz : tensor<8xf32>) dimensions = [1] (%i: f32, %o: f32) {
    %a = arith.addf %i, %o : f32
    linalg.yield %a : f32
  }
  return %r, %s, %t : tensor<2x6xf32>, tensor<8xf32>, tensor<6x8xf32>
}
