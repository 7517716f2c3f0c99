// pass: t3-shard
// once
// Named operations; rows of the residual stream split over data and sequence: gathered before the columns' product,
// scattered after the rows'.
shard.grid @grid(shape = 2x2)
func.func @main(%x: tensor<8x6xf32>, %up: tensor<6x4xf32> {t3.name = "param/up"}, %down: tensor<4x6xf32> {t3.name = "param/down"}) -> tensor<8x6xf32> {
  %rows = shard.sharding @grid split_axes = [[0, 1]] : !shard.sharding
  %columns = shard.sharding @grid split_axes = [[], [1]] : !shard.sharding
  %inner = shard.sharding @grid split_axes = [[1]] : !shard.sharding
  %xs = shard.shard %x to %rows : tensor<8x6xf32>
  %us = shard.shard %up to %columns : tensor<6x4xf32>
  %ds = shard.shard %down to %inner : tensor<4x6xf32>
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<8x4xf32>
  %f0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<8x4xf32>) -> tensor<8x4xf32>
  %h = linalg.matmul ins(%xs, %us : tensor<8x6xf32>, tensor<6x4xf32>) outs(%f0 : tensor<8x4xf32>) -> tensor<8x4xf32>
  %e1 = tensor.empty() : tensor<8x6xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<8x6xf32>) -> tensor<8x6xf32>
  %o = linalg.matmul ins(%h, %ds : tensor<8x4xf32>, tensor<4x6xf32>) outs(%f1 : tensor<8x6xf32>) -> tensor<8x6xf32>
  %e2 = tensor.empty() : tensor<8x6xf32>
  %y = linalg.add ins(%xs, %o : tensor<8x6xf32>, tensor<8x6xf32>) outs(%e2 : tensor<8x6xf32>) -> tensor<8x6xf32>
  return %y : tensor<8x6xf32>
}
