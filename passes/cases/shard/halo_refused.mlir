// pass: t3-shard
shard.grid @grid(shape = 2)
func.func @main(%x: tensor<4x6xf32>) -> tensor<4x6xf32> {
  %halo = shard.sharding @grid split_axes = [[0]] halo_sizes = [1, 1] : !shard.sharding
  %xs = shard.shard %x to %halo : tensor<4x6xf32>
  return %xs : tensor<4x6xf32>
}
