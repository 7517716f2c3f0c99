// pass: every
// A collective on a grid that the module has not.
func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4x4xf32> -> tensor<4x4xf32>
  return %a : tensor<4x4xf32>
}
