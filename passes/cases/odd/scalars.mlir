// pass: every
// Arguments that are no tensors.
shard.grid @grid(shape = 4)

func.func @main(%x: f32, %n: index, %v: vector<4xf32>, %m: memref<4x4xf32>) -> (f32, vector<4xf32>) {
  %0 = arith.mulf %x, %x : f32
  return %0, %v : f32, vector<4xf32>
}
