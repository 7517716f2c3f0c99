// pass: t3-shard
// The split dimension would be the inner part of one: each device's elements are no block of it.
shard.grid @grid(shape = 2)
func.func @main(%x: tensor<4x6xf32>) -> tensor<24xf32> {
  %columns = shard.sharding @grid split_axes = [[], [0]] : !shard.sharding
  %xs = shard.shard %x to %columns : tensor<4x6xf32>
  %flat = tensor.collapse_shape %xs [[0, 1]] : tensor<4x6xf32> into tensor<24xf32>
  return %flat : tensor<24xf32>
}
