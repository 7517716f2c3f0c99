// pass: t3-shard
// What the devices do not divide is refused by name and size.
shard.grid @grid(shape = 2)

func.func @main(%x: tensor<9x4xf32>) -> tensor<9x4xf32> {
  %split = shard.sharding @grid split_axes = [[0], []] : !shard.sharding
  %s = shard.shard %x to %split : tensor<9x4xf32>
  return %s : tensor<9x4xf32>
}
