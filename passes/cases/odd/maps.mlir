// pass: every
// Structured operations that are no projected permutations, with several results, and that read others.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4x4xf32>, %k: tensor<2xf32>, %t: tensor<8xf32>) -> (tensor<3xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %c = arith.constant 0.0 : f32
  %e3 = tensor.empty() : tensor<3xf32>
  %e4 = tensor.empty() : tensor<4xf32>
  %z = linalg.fill ins(%c : f32) outs(%e3 : tensor<3xf32>) -> tensor<3xf32>
  %s = tensor.extract_slice %t[0] [4] [1] : tensor<8xf32> to tensor<4xf32>
  %0 = linalg.generic {indexing_maps = [affine_map<(i, j) -> (i + j)>, affine_map<(i, j) -> (j)>, affine_map<(i, j) -> (i)>], iterator_types = ["parallel", "reduction"]}
    ins(%s, %k : tensor<4xf32>, tensor<2xf32>) outs(%z : tensor<3xf32>) {
  ^bb0(%a: f32, %b: f32, %o: f32):
    %m = arith.mulf %a, %b : f32
    %r = arith.addf %o, %m : f32
    linalg.yield %r : f32
  } -> tensor<3xf32>
  %1:2 = linalg.generic {indexing_maps = [affine_map<(i) -> (i)>, affine_map<(i) -> (i)>, affine_map<(i) -> (i)>], iterator_types = ["parallel"]}
    ins(%s : tensor<4xf32>) outs(%e4, %e4 : tensor<4xf32>, tensor<4xf32>) {
  ^bb0(%a: f32, %o: f32, %p: f32):
    linalg.yield %a, %a : f32, f32
  } -> (tensor<4xf32>, tensor<4xf32>)
  %2 = linalg.generic {indexing_maps = [affine_map<(i) -> (i)>], iterator_types = ["parallel"]} outs(%e4 : tensor<4xf32>) {
  ^bb0(%o: f32):
    %i = linalg.index 0 : index
    %v = tensor.extract %x[%i, %i] : tensor<4x4xf32>
    linalg.yield %v : f32
  } -> tensor<4xf32>
  return %0, %1#0, %1#1, %2 : tensor<3xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
