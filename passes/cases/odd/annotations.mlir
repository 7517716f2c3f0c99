// pass: every
// Annotations with axes that the grid has not, more dimensions than the value, an axis twice.
shard.grid @grid(shape = 2x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %s = shard.sharding @grid split_axes = [[5]] : !shard.sharding
  %a = shard.shard %x to %s : tensor<4x4xf32>
  %t = shard.sharding @grid split_axes = [[0], [1], [0]] : !shard.sharding
  %b = shard.shard %a to %t : tensor<4x4xf32>
  %u = shard.sharding @grid split_axes = [[0, 0]] : !shard.sharding
  %c = shard.shard %b to %u : tensor<4x4xf32>
  return %c : tensor<4x4xf32>
}
