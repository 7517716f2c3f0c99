// pass: t3-shard
// A fill that stays does not refer to the annotated value that goes.
shard.grid @grid(shape = 2)
func.func @f() -> tensor<6x6xi32> {
  %c1 = arith.constant 1 : i32
  %0 = tensor.empty() : tensor<6x6xi32>
  %s = shard.sharding @grid split_axes = [[0]] : !shard.sharding
  %e = shard.shard %0 to %s : tensor<6x6xi32>
  %1 = linalg.fill ins(%c1 : i32) outs(%e : tensor<6x6xi32>) -> tensor<6x6xi32>
  return %1 : tensor<6x6xi32>
}
