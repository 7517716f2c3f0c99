// pass: t3-normalize
// Named operations, arithmetic on tensors, and a grid that nothing uses.
shard.grid @grid(shape = 2)
shard.grid @unused(shape = 4)
func.func @main(%x: tensor<2x3x4xf32>, %w: tensor<2x4x5xf32>, %b: tensor<5xf32>) -> (tensor<5xf32>, tensor<5x3xf32>) {
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<2x3x5xf32>
  %f0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<2x3x5xf32>) -> tensor<2x3x5xf32>
  %y = linalg.batch_matmul ins(%x, %w : tensor<2x3x4xf32>, tensor<2x4x5xf32>) outs(%f0 : tensor<2x3x5xf32>) -> tensor<2x3x5xf32>
  %tanh = math.tanh %y : tensor<2x3x5xf32>
  %sum = arith.addf %tanh, %y : tensor<2x3x5xf32>
  %e1 = tensor.empty() : tensor<3x5xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<3x5xf32>) -> tensor<3x5xf32>
  %r = linalg.reduce ins(%sum : tensor<2x3x5xf32>) outs(%f1 : tensor<3x5xf32>) dimensions = [0]
    (%in: f32, %acc: f32) {
      %s = arith.addf %in, %acc : f32
      linalg.yield %s : f32
    }
  %e2 = tensor.empty() : tensor<3x5xf32>
  %bias = linalg.broadcast ins(%b : tensor<5xf32>) outs(%e2 : tensor<3x5xf32>) dimensions = [0]
  %e3 = tensor.empty() : tensor<3x5xf32>
  %z = linalg.add ins(%r, %bias : tensor<3x5xf32>, tensor<3x5xf32>) outs(%e3 : tensor<3x5xf32>) -> tensor<3x5xf32>
  %e4 = tensor.empty() : tensor<5x3xf32>
  %t = linalg.transpose ins(%z : tensor<3x5xf32>) outs(%e4 : tensor<5x3xf32>) permutation = [1, 0]
  %c = shard.all_reduce %b on @grid grid_axes = [0] : tensor<5xf32> -> tensor<5xf32>
  return %c, %t : tensor<5xf32>, tensor<5x3xf32>
}
