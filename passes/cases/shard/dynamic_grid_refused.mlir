// pass: t3-shard
shard.grid @grid(shape = ?x2)
func.func @main(%x: tensor<4x6xf32>) -> tensor<4x6xf32> {
  %rows = shard.sharding @grid split_axes = [[0]] : !shard.sharding
  %xs = shard.shard %x to %rows : tensor<4x6xf32>
  return %xs : tensor<4x6xf32>
}
