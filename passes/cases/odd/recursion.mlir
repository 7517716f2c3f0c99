// pass: every
// A function that calls itself, and two that call each other.
shard.grid @grid(shape = 4)

func.func private @self(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = call @self(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %0 : tensor<4x4xf32>
}
func.func private @ping(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = call @pong(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %0 : tensor<4x4xf32>
}
func.func private @pong(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = call @ping(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %0 : tensor<4x4xf32>
}
func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = call @self(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %1 = call @ping(%0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %1 : tensor<4x4xf32>
}
