// pass: every
// Dimensions without a size.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<?x4xf32>, %n: index) -> tensor<?x4xf32> {
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<?x4xf32> -> tensor<?x4xf32>
  %e = tensor.empty(%n) : tensor<?x4xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]} ins(%a : tensor<?x4xf32>) outs(%e : tensor<?x4xf32>) {
  ^bb0(%in: f32, %o: f32):
    %r = math.exp %in : f32
    linalg.yield %r : f32
  } -> tensor<?x4xf32>
  return %y : tensor<?x4xf32>
}
