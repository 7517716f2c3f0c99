// pass: t3-outline, t3-schedule
// Constants and fills that a step reads get a kernel, others are cloned; the device's offset is a kernel of its own;
// what does not shrink waits for its user.
#v = affine_map<(d0) -> (d0)>
#s = affine_map<(d0) -> ()>
shard.grid @grid(shape = 2)

func.func private @other(%t: tensor<4xf32>) -> tensor<4xf32> {
  return %t : tensor<4xf32>
}

func.func @main(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xi64>) {
  %table = arith.constant dense<[1.0, 2.0, 3.0, 4.0]> : tensor<4xf32>
  %seen = call @other(%table) : (tensor<4xf32>) -> tensor<4xf32>
  %one = arith.constant 1.0 : f32
  %e = tensor.empty() : tensor<4xf32>
  %ones = linalg.fill ins(%one : f32) outs(%e : tensor<4xf32>) -> tensor<4xf32>
  %e1 = tensor.empty() : tensor<4xf32>
  %y = linalg.generic {indexing_maps = [#v, #v, #v], iterator_types = ["parallel"]}
    ins(%x, %table : tensor<4xf32>, tensor<4xf32>) outs(%e1 : tensor<4xf32>) {
  ^bb0(%a: f32, %b: f32, %o: f32):
    %r = arith.addf %a, %b : f32
    linalg.yield %r : f32
  } -> tensor<4xf32>
  %index = shard.process_multi_index on @grid axes = [0] : index
  %wide = arith.index_cast %index : index to i64
  %rows = arith.constant 4 : i64
  %first = arith.muli %wide, %rows : i64
  %offset = tensor.from_elements %first : tensor<i64>
  %e2 = tensor.empty() : tensor<4xi64>
  %ids = linalg.generic {indexing_maps = [#s, #v], iterator_types = ["parallel"]}
    ins(%offset : tensor<i64>) outs(%e2 : tensor<4xi64>) {
  ^bb0(%a: i64, %o: i64):
    %i = linalg.index 0 : index
    %n = arith.index_cast %i : index to i64
    %r = arith.addi %a, %n : i64
    linalg.yield %r : i64
  } -> tensor<4xi64>
  %e3 = tensor.empty() : tensor<4xf32>
  %z = linalg.generic {indexing_maps = [#v, #v, #v], iterator_types = ["parallel"]}
    ins(%y, %seen : tensor<4xf32>, tensor<4xf32>) outs(%e3 : tensor<4xf32>) {
  ^bb0(%a: f32, %b: f32, %o: f32):
    %r = arith.mulf %a, %b : f32
    linalg.yield %r : f32
  } -> tensor<4xf32>
  return %z, %ones, %ids : tensor<4xf32>, tensor<4xf32>, tensor<4xi64>
}
