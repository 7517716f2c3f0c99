// pass: every
// An annotation with an axis twice.
shard.grid @grid(shape = 2x2)

func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %s = shard.sharding @grid split_axes = [[0, 0]] : !shard.sharding
  %a = shard.shard %x to %s : tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
