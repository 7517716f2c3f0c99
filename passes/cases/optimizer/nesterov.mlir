// pass: t3-optimizer{rule=sgd nesterov=true clip=none decay=matrices}
// Gradient descent that looks ahead: one state, one scalar; the bias does not decay. // once
func.func @train(%w: tensor<3x2xf32> {t3.name = "param/w"}, %b: tensor<3xf32> {t3.name = "param/bias"}, %g: tensor<3x2xf32> {t3.name = "g"}, %h: tensor<3xf32> {t3.name = "h"}, %l: tensor<f32> {t3.name = "l"}) -> (tensor<f32> {t3.name = "loss"}, tensor<3x2xf32> {t3.name = "grad/w"}, tensor<3xf32> {t3.name = "grad/bias"}) {
  return %l, %g, %h : tensor<f32>, tensor<3x2xf32>, tensor<3xf32>
}
