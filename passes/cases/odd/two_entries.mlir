// pass: every
// Two public functions.
shard.grid @grid(shape = 4)

func.func @one(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }
func.func @two(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }
