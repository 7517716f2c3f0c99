// pass: t3-shard
// once
// Rows split over data: the gradient of a weight is a sum over them.
shard.grid @grid(shape = 2x3)
func.func @main(%x: tensor<4x5xf32>, %dy: tensor<4x6xf32>, %w: tensor<5x6xf32> {t3.name = "param/w"}) -> (tensor<5x6xf32> {t3.name = "grad/w"}, tensor<4x5xf32>) {
  %rows = shard.sharding @grid split_axes = [[0]] : !shard.sharding
  %columns = shard.sharding @grid split_axes = [[], [1]] : !shard.sharding
  %xs = shard.shard %x to %rows : tensor<4x5xf32>
  %dys = shard.shard %dy to %rows : tensor<4x6xf32>
  %ws = shard.shard %w to %columns : tensor<5x6xf32>
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<5x6xf32>
  %f0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<5x6xf32>) -> tensor<5x6xf32>
  %dw = linalg.matmul indexing_maps = [affine_map<(m, n, k) -> (k, m)>, affine_map<(m, n, k) -> (k, n)>, affine_map<(m, n, k) -> (m, n)>]
      ins(%xs, %dys : tensor<4x5xf32>, tensor<4x6xf32>) outs(%f0 : tensor<5x6xf32>) -> tensor<5x6xf32>
  %e1 = tensor.empty() : tensor<4x5xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<4x5xf32>) -> tensor<4x5xf32>
  %dx = linalg.matmul indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
      ins(%dys, %ws : tensor<4x6xf32>, tensor<5x6xf32>) outs(%f1 : tensor<4x5xf32>) -> tensor<4x5xf32>
  return %dw, %dx : tensor<5x6xf32>, tensor<4x5xf32>
}
