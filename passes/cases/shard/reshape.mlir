// pass: t3-shard
// once
// The split dimension stays outermost in both reshapes; a constant that differs along it is sliced; an unused
// argument is left alone.
shard.grid @grid(shape = 2)
func.func private @elsewhere(tensor<4xf32>) -> tensor<4xf32>
func.func @main(%x: tensor<4x6xf32>, %unused: tensor<3xf32>) -> tensor<4x6xf32> {
  %columns = shard.sharding @grid split_axes = [[], [0]] : !shard.sharding
  %xs = shard.shard %x to %columns : tensor<4x6xf32>
  %heads = tensor.expand_shape %xs [[0], [1, 2]] output_shape [4, 2, 3] : tensor<4x6xf32> into tensor<4x2x3xf32>
  %c = arith.constant dense<[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]> : tensor<2x3xf32>
  %e = tensor.empty() : tensor<4x2x3xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(i, j, k) -> (i, j, k)>, affine_map<(i, j, k) -> (j, k)>, affine_map<(i, j, k) -> (i, j, k)>],
      iterator_types = ["parallel", "parallel", "parallel"]}
      ins(%heads, %c : tensor<4x2x3xf32>, tensor<2x3xf32>) outs(%e : tensor<4x2x3xf32>) {
  ^bb0(%a: f32, %b: f32, %out: f32):
    %s = arith.mulf %a, %b : f32
    linalg.yield %s : f32
  } -> tensor<4x2x3xf32>
  %flat = tensor.collapse_shape %y [[0], [1, 2]] : tensor<4x2x3xf32> into tensor<4x6xf32>
  return %flat : tensor<4x6xf32>
}
