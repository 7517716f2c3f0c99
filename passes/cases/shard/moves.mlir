// pass: t3-shard
// once
// A value moves from one dimension to another by an exchange, and over both axes by one collective.
shard.grid @grid(shape = 2x3)
func.func @main(%x: tensor<6x12xf32>) -> (tensor<6x12xf32>, tensor<6x12xf32>, tensor<6x12xf32>) {
  %both = shard.sharding @grid split_axes = [[0, 1]] : !shard.sharding
  %columns = shard.sharding @grid split_axes = [[], [0, 1]] : !shard.sharding
  %inner = shard.sharding @grid split_axes = [[0], [1]] : !shard.sharding
  %whole = shard.sharding @grid split_axes = [[]] : !shard.sharding
  %a = shard.shard %x to %both : tensor<6x12xf32>
  %b = shard.shard %a to %columns annotate_for_users : tensor<6x12xf32>
  %c = shard.shard %a to %inner annotate_for_users : tensor<6x12xf32>
  %d = shard.shard %a to %whole annotate_for_users : tensor<6x12xf32>
  return %b, %c, %d : tensor<6x12xf32>, tensor<6x12xf32>, tensor<6x12xf32>
}
