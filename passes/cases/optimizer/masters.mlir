// pass: t3-optimizer{master=true accumulate=true}
// bf16 parameters step on f32 masters, once `apply` is 1; until then gradients only add up. // once
func.func @train(%w: tensor<64x65xbf16> {t3.name = "param/w"}, %g: tensor<64x65xbf16> {t3.name = "g"}, %l: tensor<f32> {t3.name = "l"}) -> (tensor<f32> {t3.name = "loss"}, tensor<64x65xbf16> {t3.name = "grad/w"}) {
  return %l, %g : tensor<f32>, tensor<64x65xbf16>
}
