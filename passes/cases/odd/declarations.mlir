// pass: every
// Functions without bodies, called.
shard.grid @grid(shape = 4)

func.func private @f(tensor<4x4xf32>) -> tensor<4x4xf32>
func.func private @g(tensor<4x4xf32>) -> tensor<4x4xf32> attributes {t3.unit = "attention"}
func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = call @f(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %1 = call @g(%0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %1 : tensor<4x4xf32>
}
