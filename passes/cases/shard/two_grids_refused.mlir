// pass: t3-shard
shard.grid @grid(shape = 2)
shard.grid @other(shape = 3)
func.func @main(%x: tensor<6x6xf32>) -> tensor<6x6xf32> {
  %rows = shard.sharding @grid split_axes = [[0]] : !shard.sharding
  %xs = shard.shard %x to %rows : tensor<6x6xf32>
  %columns = shard.sharding @other split_axes = [[], [0]] : !shard.sharding
  %ys = shard.shard %xs to %columns : tensor<6x6xf32>
  return %ys : tensor<6x6xf32>
}
