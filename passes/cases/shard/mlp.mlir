// pass: t3-shard
// Column then row: the hidden activations are split, and one all-reduce stands before the residual.
#ta = affine_map<(t, a, b) -> (t, a)>
#tb = affine_map<(t, a, b) -> (t, b)>
#ab = affine_map<(t, a, b) -> (a, b)>
#id = affine_map<(t, a) -> (t, a)>
shard.grid @grid(shape = 2)

func.func @main(%x: tensor<4x6xf32>, %up: tensor<8x6xf32> {t3.name = "param/up"}, %down: tensor<6x8xf32> {t3.name = "param/down"}) -> tensor<4x6xf32> {
  %rows = shard.sharding @grid split_axes = [[0], []] : !shard.sharding
  %columns = shard.sharding @grid split_axes = [[], [0]] : !shard.sharding
  %wu = shard.shard %up to %rows : tensor<8x6xf32>
  %wd = shard.shard %down to %columns : tensor<6x8xf32>
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<4x8xf32>
  %z0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<4x8xf32>) -> tensor<4x8xf32>
  %h = linalg.generic {indexing_maps = [#tb, #ab, #ta], iterator_types = ["parallel", "parallel", "reduction"]} ins(%x, %wu : tensor<4x6xf32>, tensor<8x6xf32>) outs(%z0 : tensor<4x8xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %o, %0 : f32
    linalg.yield %1 : f32
  } -> tensor<4x8xf32>
  %e1 = tensor.empty() : tensor<4x6xf32>
  %z1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<4x6xf32>) -> tensor<4x6xf32>
  %y = linalg.generic {indexing_maps = [#tb, #ab, #ta], iterator_types = ["parallel", "parallel", "reduction"]} ins(%h, %wd : tensor<4x8xf32>, tensor<6x8xf32>) outs(%z1 : tensor<4x6xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %o, %0 : f32
    linalg.yield %1 : f32
  } -> tensor<4x6xf32>
  %e2 = tensor.empty() : tensor<4x6xf32>
  %r = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = ["parallel", "parallel"]} ins(%x, %y : tensor<4x6xf32>, tensor<4x6xf32>) outs(%e2 : tensor<4x6xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.addf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<4x6xf32>
  return %r : tensor<4x6xf32>
}
