// pass: t3-shard
shard.grid @grid(shape = 2)
func.func @main(%x: tensor<?x6xf32>) -> tensor<?x6xf32> {
  %rows = shard.sharding @grid split_axes = [[0]] : !shard.sharding
  %xs = shard.shard %x to %rows : tensor<?x6xf32>
  return %xs : tensor<?x6xf32>
}
