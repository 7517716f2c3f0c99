// pass: every
// A function of several blocks.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4x4xf32>, %c: i1) -> tensor<4x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4x4xf32> -> tensor<4x4xf32>
  cf.cond_br %c, ^one, ^two(%a : tensor<4x4xf32>)
^one:
  %g = shard.all_slice %a on @grid grid_axes = [0] slice_axis = 0 : tensor<4x4xf32> -> tensor<1x4xf32>
  %h = shard.all_gather %g on @grid grid_axes = [0] gather_axis = 0 : tensor<1x4xf32> -> tensor<4x4xf32>
  cf.br ^two(%h : tensor<4x4xf32>)
^two(%y: tensor<4x4xf32>):
  return %y : tensor<4x4xf32>
}
