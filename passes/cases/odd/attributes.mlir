// pass: every
// Attributes of ours that say nothing sensible.
module attributes {t3.axes = [1, "tp"], t3.expert_load = "no numbers"} {
  shard.grid @grid(shape = 4)
  func.func private @unit(%x: tensor<4xf32>) -> tensor<4xf32> attributes {t3.unit = "no_such_unit"} { return %x : tensor<4xf32> }
  func.func private @kernel(%x: tensor<4xf32>) -> tensor<4xf32> attributes {t3.kernel = "no_such_kernel"} { return %x : tensor<4xf32> }
  func.func @main(%x: tensor<4xf32> {t3.name = 3, t3.split = [array<i64: 7, -2>, 5]}, %y: tensor<4xf32> {t3.split = "all"}) -> (tensor<4xf32> {t3.split = array<i64: 99>}) {
    %0 = call @unit(%x) : (tensor<4xf32>) -> tensor<4xf32>
    %1 = call @kernel(%0) : (tensor<4xf32>) -> tensor<4xf32>
    %2 = shard.all_reduce %1 on @grid grid_axes = [0] : tensor<4xf32> -> tensor<4xf32>
    return %2 : tensor<4xf32>
  }
}
