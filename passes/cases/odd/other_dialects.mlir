// pass: every
// Operations that no pass knows.
shard.grid @grid(shape = 4)

func.func @main(%x: tensor<4x4xf32>, %c: i1, %m: memref<4xf32>) -> tensor<4x4xf32> {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %four = arith.constant 4 : index
  %a = shard.all_reduce %x on @grid grid_axes = [0] : tensor<4x4xf32> -> tensor<4x4xf32>
  %0 = scf.if %c -> (tensor<4x4xf32>) {
    %g = shard.all_reduce %a on @grid grid_axes = [0] : tensor<4x4xf32> -> tensor<4x4xf32>
    scf.yield %g : tensor<4x4xf32>
  } else {
    scf.yield %a : tensor<4x4xf32>
  }
  %1 = scf.for %i = %zero to %four step %one iter_args(%y = %0) -> (tensor<4x4xf32>) {
    %z = arith.addf %y, %a : tensor<4x4xf32>
    scf.yield %z : tensor<4x4xf32>
  }
  %s = arith.constant 0.0 : f32
  %v = vector.transfer_read %m[%zero], %s : memref<4xf32>, vector<4xf32>
  return %1 : tensor<4x4xf32>
}
