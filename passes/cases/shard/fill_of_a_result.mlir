// pass: t3-shard
// A fill overwrites what is rewritten: it is made anew.
shard.grid @grid(shape = 2)
func.func @f(%x: tensor<6x6xf32>) -> tensor<6x6xf32> {
  %c = arith.constant 1.0 : f32
  %s = shard.sharding @grid split_axes = [[0]] : !shard.sharding
  %xs = shard.shard %x to %s : tensor<6x6xf32>
  %1 = linalg.fill ins(%c : f32) outs(%xs : tensor<6x6xf32>) -> tensor<6x6xf32>
  %2 = shard.shard %1 to %s annotate_for_users : tensor<6x6xf32>
  return %2 : tensor<6x6xf32>
}
