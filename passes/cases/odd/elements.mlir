// pass: every
// Element types that no pass computes with.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4xcomplex<f32>>, %y: tensor<4xi4>, %z: tensor<4xindex>, %q: tensor<4xf8E4M3FN>) -> (tensor<4xcomplex<f32>>, tensor<4xi4>, tensor<4xindex>, tensor<4xf8E4M3FN>) {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4xcomplex<f32>> -> tensor<4xcomplex<f32>>
  %b = shard.all_reduce %y on @grid grid_axes = [0] : tensor<4xi4> -> tensor<4xi4>
  %c = shard.all_reduce %z on @grid grid_axes = [0] : tensor<4xindex> -> tensor<4xindex>
  %d = shard.all_reduce %q on @grid grid_axes = [0] : tensor<4xf8E4M3FN> -> tensor<4xf8E4M3FN>
  return %a, %b, %c, %d : tensor<4xcomplex<f32>>, tensor<4xi4>, tensor<4xindex>, tensor<4xf8E4M3FN>
}
