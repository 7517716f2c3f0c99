// pass: every
// An annotation with an axis that the grid has not.
shard.grid @grid(shape = 2x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %s = shard.sharding @grid split_axes = [[5]] : !shard.sharding
  %a = shard.shard %x to %s : tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
