// pass: t3-optimizer
// The gradient becomes a step: its norm, both moments, the new parameter. // once
func.func @train(%w: tensor<3x2xf32> {t3.name = "param/w"}, %g: tensor<3x2xf32> {t3.name = "g"}, %l: tensor<f32> {t3.name = "l"}) -> (tensor<f32> {t3.name = "loss"}, tensor<3x2xf32> {t3.name = "grad/w"}) {
  return %l, %g : tensor<f32>, tensor<3x2xf32>
}
