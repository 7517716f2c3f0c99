// pass: t3-simplify
// A slice at the process index times its own extent is the part of a sum that the device keeps; at any
// other offset it is not.
shard.grid @grid(shape = 2x3)

func.func private @chunk(%arg0: tensor<12x6xf32>) -> tensor<4x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [1] : tensor<12x6xf32> -> tensor<12x6xf32>
  %i = shard.process_multi_index on @grid axes = [1] : index
  %c4 = arith.constant 4 : index
  %at = arith.muli %i, %c4 : index
  %1 = tensor.extract_slice %0[%at, 0] [4, 6] [1, 1] : tensor<12x6xf32> to tensor<4x6xf32>
  return %1 : tensor<4x6xf32>
}

func.func private @both(%arg0: tensor<12x6xf32>) -> tensor<2x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0, 1] : tensor<12x6xf32> -> tensor<12x6xf32>
  %i:2 = shard.process_multi_index on @grid : index, index
  %c2 = arith.constant 2 : index
  %c6 = arith.constant 6 : index
  %j = arith.muli %i#0, %c6 : index
  %k = arith.muli %i#1, %c2 : index
  %at = arith.addi %j, %k : index
  %1 = tensor.extract_slice %0[%at, 0] [2, 6] [1, 1] : tensor<12x6xf32> to tensor<2x6xf32>
  return %1 : tensor<2x6xf32>
}

func.func private @linear(%arg0: tensor<12x6xf32>) -> tensor<2x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [0, 1] : tensor<12x6xf32> -> tensor<12x6xf32>
  %i = shard.process_linear_index on @grid : index
  %c2 = arith.constant 2 : index
  %at = arith.muli %i, %c2 : index
  %1 = tensor.extract_slice %0[%at, 0] [2, 6] [1, 1] : tensor<12x6xf32> to tensor<2x6xf32>
  return %1 : tensor<2x6xf32>
}

func.func private @other_axis(%arg0: tensor<12x6xf32>) -> tensor<4x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [1] : tensor<12x6xf32> -> tensor<12x6xf32>
  %i = shard.process_multi_index on @grid axes = [0] : index
  %c4 = arith.constant 4 : index
  %at = arith.muli %i, %c4 : index
  %1 = tensor.extract_slice %0[%at, 0] [4, 6] [1, 1] : tensor<12x6xf32> to tensor<4x6xf32>
  return %1 : tensor<4x6xf32>
}

func.func private @other_extent(%arg0: tensor<12x6xf32>) -> tensor<4x6xf32> {
  %0 = shard.all_reduce %arg0 on @grid grid_axes = [1] : tensor<12x6xf32> -> tensor<12x6xf32>
  %i = shard.process_multi_index on @grid axes = [1] : index
  %c2 = arith.constant 2 : index
  %at = arith.muli %i, %c2 : index
  %1 = tensor.extract_slice %0[%at, 0] [4, 6] [1, 1] : tensor<12x6xf32> to tensor<4x6xf32>
  return %1 : tensor<4x6xf32>
}
