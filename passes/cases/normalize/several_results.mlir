// pass: t3-normalize
// One operation of two results becomes two of one; a result that nothing reads goes.
#rows = affine_map<(i, j) -> (i, j)>
#row = affine_map<(i, j) -> (i)>
func.func @main(%x: tensor<3x4xf32>) -> (tensor<3xf32>, tensor<3xf32>, tensor<3x4xf32>) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<3xf32>
  %f = linalg.fill ins(%zero : f32) outs(%e : tensor<3xf32>) -> tensor<3xf32>
  %sums:2 = linalg.generic {indexing_maps = [#rows, #row, #row], iterator_types = ["parallel", "reduction"]}
      ins(%x : tensor<3x4xf32>) outs(%f, %f : tensor<3xf32>, tensor<3xf32>) {
  ^bb0(%in: f32, %a: f32, %b: f32):
    %square = arith.mulf %in, %in : f32
    %sum = arith.addf %a, %in : f32
    %squares = arith.addf %b, %square : f32
    linalg.yield %sum, %squares : f32, f32
  } -> (tensor<3xf32>, tensor<3xf32>)
  %e2 = tensor.empty() : tensor<3x4xf32>
  %both:2 = linalg.generic {indexing_maps = [#rows, #rows, #rows], iterator_types = ["parallel", "parallel"]}
      ins(%x : tensor<3x4xf32>) outs(%e2, %e2 : tensor<3x4xf32>, tensor<3x4xf32>) {
  ^bb0(%in: f32, %a: f32, %b: f32):
    %twice = arith.addf %in, %in : f32
    %negative = arith.negf %twice : f32
    linalg.yield %twice, %negative : f32, f32
  } -> (tensor<3x4xf32>, tensor<3x4xf32>)
  return %sums#0, %sums#1, %both#1 : tensor<3xf32>, tensor<3xf32>, tensor<3x4xf32>
}
