// pass: t3-split-all-reduce
// The outermost dimension that the devices divide is scattered; with none, the op stays and says why.
shard.grid @grid(shape = 4)

func.func @second_dimension(%x: tensor<6x16xf32>) -> tensor<6x16xf32> {
  %0 = shard.all_reduce %x on @grid grid_axes = [0] : tensor<6x16xf32> -> tensor<6x16xf32>
  return %0 : tensor<6x16xf32>
}

func.func @declined(%x: tensor<3x5xf32>) -> tensor<3x5xf32> {
  %0 = shard.all_reduce %x on @grid grid_axes = [0] : tensor<3x5xf32> -> tensor<3x5xf32>
  return %0 : tensor<3x5xf32>
}

func.func @scalar(%x: tensor<f32>) -> tensor<f32> {
  %0 = shard.all_reduce %x on @grid grid_axes = [0] : tensor<f32> -> tensor<f32>
  return %0 : tensor<f32>
}

func.func @maximum(%x: tensor<8xf32>) -> tensor<8xf32> {
  %0 = shard.all_reduce %x on @grid grid_axes = [0] reduction = max : tensor<8xf32> -> tensor<8xf32>
  return %0 : tensor<8xf32>
}
