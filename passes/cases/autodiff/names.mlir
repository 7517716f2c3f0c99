// pass: t3-autodiff
// Locations name the forward's value: `"mlp.up_proj.backward" at names.mlir:7:8`. // once // locations
func.func @train(%x: tensor<4x6xf32> {t3.name = "x"}, %w: tensor<8x6xf32> {t3.name = "param/up_proj"}) -> (tensor<f32> {t3.name = "loss"}) {
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<4x8xf32>
  %z0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<4x8xf32>) -> tensor<4x8xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(n, f, d) -> (n, d)>, affine_map<(n, f, d) -> (f, d)>, affine_map<(n, f, d) -> (n, f)>], iterator_types = ["parallel", "parallel", "reduction"]} ins(%x, %w : tensor<4x6xf32>, tensor<8x6xf32>) outs(%z0 : tensor<4x8xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %o, %0 : f32
    linalg.yield %1 : f32
  } -> tensor<4x8xf32> loc("mlp.up_proj"("config.json":3:5))
  %e = tensor.empty() : tensor<f32>
  %z = linalg.fill ins(%zero : f32) outs(%e : tensor<f32>) -> tensor<f32>
  %loss = linalg.generic {indexing_maps = [affine_map<(n, f) -> (n, f)>, affine_map<(n, f) -> ()>], iterator_types = ["reduction", "reduction"]} ins(%h : tensor<4x8xf32>) outs(%z : tensor<f32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.tanh %p : f32
    %1 = arith.addf %o, %0 : f32
    linalg.yield %1 : f32
  } -> tensor<f32> loc("loss"("config.json":1:1))
  return %loss : tensor<f32>
}
