// pass: every
// More elements than can be counted.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4294967296x4294967296x4294967296xf32>) -> tensor<4294967296x4294967296x4294967296xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4294967296x4294967296x4294967296xf32> -> tensor<4294967296x4294967296x4294967296xf32>
  %b = shard.all_reduce %a on @grid grid_axes = [0] : tensor<4294967296x4294967296x4294967296xf32> -> tensor<4294967296x4294967296x4294967296xf32>
  return %b : tensor<4294967296x4294967296x4294967296xf32>
}
