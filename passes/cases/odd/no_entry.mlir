// pass: every
// No public function.
shard.grid @grid(shape = 4)

func.func private @one(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }
