// One product whose ring reduce-scatter is configured for four devices; scripts/plugin.sh reads it with mlir-opt.
shard.grid @grid(shape = 4)
func.func @down_proj(%x: tensor<8x4xf32>, %w: tensor<4x6xf32>) -> tensor<2x6xf32> {
  %0 = t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0 chunks = [
    #t3.chunk<relative = 1, store = remote, op = update, threshold = 0, trigger = none, to = 3>,
    #t3.chunk<relative = 2, store = local, op = update, threshold = 2, trigger = dma, to = 3>,
    #t3.chunk<relative = 3, store = local, op = update, threshold = 2, trigger = dma, to = 3>,
    #t3.chunk<relative = 0, store = local, op = update, threshold = 2, trigger = done>
  ] block = 1 (%x, %w) : (tensor<8x4xf32>, tensor<4x6xf32>) -> tensor<2x6xf32> {
  ^bb0(%a: tensor<8x4xf32>, %b: tensor<4x6xf32>):
    %zero = arith.constant dense<0.0> : tensor<8x6xf32>
    %p = linalg.matmul ins(%a, %b : tensor<8x4xf32>, tensor<4x6xf32>) outs(%zero : tensor<8x6xf32>) -> tensor<8x6xf32>
    t3.yield %p : tensor<8x6xf32>
  }
  return %0 : tensor<2x6xf32>
}
