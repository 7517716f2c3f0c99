// pass: every
// Named operations, elementwise work on whole tensors, reshapes and sources that nobody reads.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<8x4xf32>, %w: tensor<4x8xf32>) -> (tensor<8x8xf32>, tensor<64xf32>) {
  %e = tensor.empty() : tensor<8x8xf32>
  %unused = arith.constant dense<1.0> : tensor<8x8xf32>
  %0 = linalg.matmul ins(%x, %w : tensor<8x4xf32>, tensor<4x8xf32>) outs(%e : tensor<8x8xf32>) -> tensor<8x8xf32>
  %1 = shard.all_reduce %0 on @grid grid_axes = [0] : tensor<8x8xf32> -> tensor<8x8xf32>
  %2 = math.tanh %1 : tensor<8x8xf32>
  %3 = arith.addf %2, %1 : tensor<8x8xf32>
  %4 = tensor.collapse_shape %3 [[0, 1]] : tensor<8x8xf32> into tensor<64xf32>
  %5 = linalg.transpose ins(%3 : tensor<8x8xf32>) outs(%e : tensor<8x8xf32>) permutation = [1, 0]
  return %5, %4 : tensor<8x8xf32>, tensor<64xf32>
}
