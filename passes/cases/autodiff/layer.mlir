// pass: t3-autodiff
// Attention and a gated MLP: one backward of the layer, whose attention is a unit again and keeps no scores. // once
#map = affine_map<(d0, d1) -> (d0, d1)>
#map1 = affine_map<(d0, d1) -> (d0)>
#map2 = affine_map<(d0) -> (d0)>
#map3 = affine_map<(d0, d1) -> (d1)>
#map4 = affine_map<(d0, d1, d2, d3, d4, d5) -> (d0, d5)>
#map5 = affine_map<(d0, d1, d2, d3, d4, d5) -> (d1, d2, d3, d4, d5)>
#map6 = affine_map<(d0, d1, d2, d3, d4, d5) -> (d0, d1, d2, d3, d4)>
#map7 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d4)>
#map8 = affine_map<(d0, d1, d2, d3, d4) -> (d1, d2, d3, d4)>
#map9 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3)>
#map10 = affine_map<(d0, d1, d2, d3) -> (d0, d3)>
#map11 = affine_map<(d0, d1, d2, d3) -> (d1, d2, d3)>
#map12 = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2)>
#map13 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d2, d3, d4)>
#map14 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1)>
#map15 = affine_map<(d0, d1, d2) -> (d0, d2)>
#map16 = affine_map<(d0, d1, d2) -> (d1, d2)>
#map17 = affine_map<(d0, d1, d2) -> (d0, d1)>
#map18 = affine_map<(d0, d1, d2, d3, d4, d5) -> (d0, d1, d2, d4, d5)>
#map19 = affine_map<(d0, d1, d2, d3, d4, d5) -> (d3, d1, d4, d5)>
#map20 = affine_map<(d0, d1, d2, d3, d4, d5) -> (d0, d1, d2, d3)>
#map21 = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#map22 = affine_map<(d0, d1, d2, d3) -> (d3)>
#map23 = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d4)>
#map24 = affine_map<(d0, d1, d2, d3, d4) -> (d4, d1, d3)>
#map25 = affine_map<(d0, d1) -> ()>
module {
  func.func private @layer(%arg0: tensor<4x8xf32> {t3.name = "hidden"}, %arg1: tensor<8xf32> {t3.name = "attention_norm"}, %arg2: tensor<2x1x2x2x8xf32> {t3.name = "q_proj"}, %arg3: tensor<2x2x2x8xf32> {t3.name = "k_proj"}, %arg4: tensor<2x4x8xf32> {t3.name = "v_proj"}, %arg5: tensor<8x2x1x4xf32> {t3.name = "o_proj"}, %arg6: tensor<8xf32> {t3.name = "mlp_norm"}, %arg7: tensor<6x8xf32> {t3.name = "gate_proj"}, %arg8: tensor<6x8xf32> {t3.name = "up_proj"}, %arg9: tensor<8x6xf32> {t3.name = "down_proj"}) -> tensor<4x8xf32> {
    %cst = arith.constant 0.000000e+00 : f32
    %0 = tensor.empty() : tensor<4xf32>
    %1 = linalg.fill ins(%cst : f32) outs(%0 : tensor<4xf32>) -> tensor<4xf32>
    %2 = linalg.generic {indexing_maps = [#map, #map1], iterator_types = ["parallel", "reduction"]} ins(%arg0 : tensor<4x8xf32>) outs(%1 : tensor<4xf32>) {
    ^bb0(%in: f32, %out: f32):
      %42 = arith.mulf %in, %in : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4xf32>
    %3 = tensor.empty() : tensor<4xf32>
    %4 = linalg.generic {indexing_maps = [#map2, #map2], iterator_types = ["parallel"]} ins(%2 : tensor<4xf32>) outs(%3 : tensor<4xf32>) {
    ^bb0(%in: f32, %out: f32):
      %cst_9 = arith.constant 8.000000e+00 : f32
      %cst_10 = arith.constant 9.99999974E-6 : f32
      %42 = arith.divf %in, %cst_9 : f32
      %43 = arith.addf %42, %cst_10 : f32
      %44 = math.rsqrt %43 : f32
      linalg.yield %44 : f32
    } -> tensor<4xf32>
    %5 = tensor.empty() : tensor<4x8xf32>
    %6 = linalg.generic {indexing_maps = [#map, #map1, #map3, #map], iterator_types = ["parallel", "parallel"]} ins(%arg0, %4, %arg1 : tensor<4x8xf32>, tensor<4xf32>, tensor<8xf32>) outs(%5 : tensor<4x8xf32>) {
    ^bb0(%in: f32, %in_9: f32, %in_10: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.mulf %42, %in_10 : f32
      linalg.yield %43 : f32
    } -> tensor<4x8xf32>
    %cst_0 = arith.constant 0.000000e+00 : f32
    %7 = tensor.empty() : tensor<4x2x1x2x2xf32>
    %8 = linalg.fill ins(%cst_0 : f32) outs(%7 : tensor<4x2x1x2x2xf32>) -> tensor<4x2x1x2x2xf32>
    %9 = linalg.generic {indexing_maps = [#map4, #map5, #map6], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel", "reduction"]} ins(%6, %arg2 : tensor<4x8xf32>, tensor<2x1x2x2x8xf32>) outs(%8 : tensor<4x2x1x2x2xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x2x1x2x2xf32>
    %cst_1 = arith.constant 0.000000e+00 : f32
    %10 = tensor.empty() : tensor<4x2x2x2xf32>
    %11 = linalg.fill ins(%cst_1 : f32) outs(%10 : tensor<4x2x2x2xf32>) -> tensor<4x2x2x2xf32>
    %12 = linalg.generic {indexing_maps = [#map7, #map8, #map9], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]} ins(%6, %arg3 : tensor<4x8xf32>, tensor<2x2x2x8xf32>) outs(%11 : tensor<4x2x2x2xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x2x2x2xf32>
    %cst_2 = arith.constant 0.000000e+00 : f32
    %13 = tensor.empty() : tensor<4x2x4xf32>
    %14 = linalg.fill ins(%cst_2 : f32) outs(%13 : tensor<4x2x4xf32>) -> tensor<4x2x4xf32>
    %15 = linalg.generic {indexing_maps = [#map10, #map11, #map12], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%6, %arg4 : tensor<4x8xf32>, tensor<2x4x8xf32>) outs(%14 : tensor<4x2x4xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x2x4xf32>
    %cst_3 = arith.constant dense<4> : tensor<4xi32>
    %16 = call @attention_4x2x1x2x2xf32_4x2x2x2xf32_4x2x4xf32_4xi32_4x2x1x4xf32(%9, %12, %15, %cst_3) : (tensor<4x2x1x2x2xf32>, tensor<4x2x2x2xf32>, tensor<4x2x4xf32>, tensor<4xi32>) -> tensor<4x2x1x4xf32>
    %cst_4 = arith.constant 0.000000e+00 : f32
    %17 = tensor.empty() : tensor<4x8xf32>
    %18 = linalg.fill ins(%cst_4 : f32) outs(%17 : tensor<4x8xf32>) -> tensor<4x8xf32>
    %19 = linalg.generic {indexing_maps = [#map13, #map8, #map14], iterator_types = ["parallel", "parallel", "reduction", "reduction", "reduction"]} ins(%16, %arg5 : tensor<4x2x1x4xf32>, tensor<8x2x1x4xf32>) outs(%18 : tensor<4x8xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x8xf32>
    %20 = tensor.empty() : tensor<4x8xf32>
    %21 = linalg.generic {indexing_maps = [#map, #map, #map], iterator_types = ["parallel", "parallel"]} ins(%arg0, %19 : tensor<4x8xf32>, tensor<4x8xf32>) outs(%20 : tensor<4x8xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.addf %in, %in_9 : f32
      linalg.yield %42 : f32
    } -> tensor<4x8xf32>
    %cst_5 = arith.constant 0.000000e+00 : f32
    %22 = tensor.empty() : tensor<4xf32>
    %23 = linalg.fill ins(%cst_5 : f32) outs(%22 : tensor<4xf32>) -> tensor<4xf32>
    %24 = linalg.generic {indexing_maps = [#map, #map1], iterator_types = ["parallel", "reduction"]} ins(%21 : tensor<4x8xf32>) outs(%23 : tensor<4xf32>) {
    ^bb0(%in: f32, %out: f32):
      %42 = arith.mulf %in, %in : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4xf32>
    %25 = tensor.empty() : tensor<4xf32>
    %26 = linalg.generic {indexing_maps = [#map2, #map2], iterator_types = ["parallel"]} ins(%24 : tensor<4xf32>) outs(%25 : tensor<4xf32>) {
    ^bb0(%in: f32, %out: f32):
      %cst_9 = arith.constant 8.000000e+00 : f32
      %cst_10 = arith.constant 9.99999974E-6 : f32
      %42 = arith.divf %in, %cst_9 : f32
      %43 = arith.addf %42, %cst_10 : f32
      %44 = math.rsqrt %43 : f32
      linalg.yield %44 : f32
    } -> tensor<4xf32>
    %27 = tensor.empty() : tensor<4x8xf32>
    %28 = linalg.generic {indexing_maps = [#map, #map1, #map3, #map], iterator_types = ["parallel", "parallel"]} ins(%21, %26, %arg6 : tensor<4x8xf32>, tensor<4xf32>, tensor<8xf32>) outs(%27 : tensor<4x8xf32>) {
    ^bb0(%in: f32, %in_9: f32, %in_10: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.mulf %42, %in_10 : f32
      linalg.yield %43 : f32
    } -> tensor<4x8xf32>
    %cst_6 = arith.constant 0.000000e+00 : f32
    %29 = tensor.empty() : tensor<4x6xf32>
    %30 = linalg.fill ins(%cst_6 : f32) outs(%29 : tensor<4x6xf32>) -> tensor<4x6xf32>
    %31 = linalg.generic {indexing_maps = [#map15, #map16, #map17], iterator_types = ["parallel", "parallel", "reduction"]} ins(%28, %arg7 : tensor<4x8xf32>, tensor<6x8xf32>) outs(%30 : tensor<4x6xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x6xf32>
    %cst_7 = arith.constant 0.000000e+00 : f32
    %32 = tensor.empty() : tensor<4x6xf32>
    %33 = linalg.fill ins(%cst_7 : f32) outs(%32 : tensor<4x6xf32>) -> tensor<4x6xf32>
    %34 = linalg.generic {indexing_maps = [#map15, #map16, #map17], iterator_types = ["parallel", "parallel", "reduction"]} ins(%28, %arg8 : tensor<4x8xf32>, tensor<6x8xf32>) outs(%33 : tensor<4x6xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x6xf32>
    %35 = tensor.empty() : tensor<4x6xf32>
    %36 = linalg.generic {indexing_maps = [#map, #map, #map], iterator_types = ["parallel", "parallel"]} ins(%31, %34 : tensor<4x6xf32>, tensor<4x6xf32>) outs(%35 : tensor<4x6xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %cst_10 = arith.constant 1.000000e+00 : f32
      %42 = arith.negf %in : f32
      %43 = math.exp %42 : f32
      %44 = arith.addf %cst_10, %43 : f32
      %45 = arith.divf %in, %44 : f32
      %46 = arith.mulf %45, %in_9 : f32
      linalg.yield %46 : f32
    } -> tensor<4x6xf32>
    %cst_8 = arith.constant 0.000000e+00 : f32
    %37 = tensor.empty() : tensor<4x8xf32>
    %38 = linalg.fill ins(%cst_8 : f32) outs(%37 : tensor<4x8xf32>) -> tensor<4x8xf32>
    %39 = linalg.generic {indexing_maps = [#map15, #map16, #map17], iterator_types = ["parallel", "parallel", "reduction"]} ins(%36, %arg9 : tensor<4x6xf32>, tensor<8x6xf32>) outs(%38 : tensor<4x8xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.mulf %in, %in_9 : f32
      %43 = arith.addf %out, %42 : f32
      linalg.yield %43 : f32
    } -> tensor<4x8xf32>
    %40 = tensor.empty() : tensor<4x8xf32>
    %41 = linalg.generic {indexing_maps = [#map, #map, #map], iterator_types = ["parallel", "parallel"]} ins(%21, %39 : tensor<4x8xf32>, tensor<4x8xf32>) outs(%40 : tensor<4x8xf32>) {
    ^bb0(%in: f32, %in_9: f32, %out: f32):
      %42 = arith.addf %in, %in_9 : f32
      linalg.yield %42 : f32
    } -> tensor<4x8xf32>
    return %41 : tensor<4x8xf32>
  }
  func.func private @attention_4x2x1x2x2xf32_4x2x2x2xf32_4x2x4xf32_4xi32_4x2x1x4xf32(%arg0: tensor<4x2x1x2x2xf32>, %arg1: tensor<4x2x2x2xf32>, %arg2: tensor<4x2x4xf32>, %arg3: tensor<4xi32>) -> tensor<4x2x1x4xf32> attributes {t3.scale = 5.000000e-01 : f64, t3.unit = "attention"} {
    %cst = arith.constant 0.000000e+00 : f32
    %0 = tensor.empty() : tensor<4x2x1x4xf32>
    %1 = linalg.fill ins(%cst : f32) outs(%0 : tensor<4x2x1x4xf32>) -> tensor<4x2x1x4xf32>
    %2 = linalg.generic {indexing_maps = [#map18, #map19, #map20], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction"]} ins(%arg0, %arg1 : tensor<4x2x1x2x2xf32>, tensor<4x2x2x2xf32>) outs(%1 : tensor<4x2x1x4xf32>) {
    ^bb0(%in: f32, %in_3: f32, %out: f32):
      %18 = arith.mulf %in, %in_3 : f32
      %19 = arith.addf %out, %18 : f32
      linalg.yield %19 : f32
    } -> tensor<4x2x1x4xf32>
    %3 = tensor.empty() : tensor<4x2x1x4xf32>
    %4 = linalg.generic {indexing_maps = [#map21, #map22, #map21], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%2, %arg3 : tensor<4x2x1x4xf32>, tensor<4xi32>) outs(%3 : tensor<4x2x1x4xf32>) {
    ^bb0(%in: f32, %in_3: i32, %out: f32):
      %18 = linalg.index 0 : index
      %19 = arith.index_cast %18 : index to i64
      %20 = linalg.index 3 : index
      %21 = arith.index_cast %20 : index to i64
      %22 = arith.extsi %in_3 : i32 to i64
      %23 = arith.cmpi sle, %21, %19 : i64
      %24 = arith.cmpi slt, %19, %22 : i64
      %25 = arith.andi %23, %24 : i1
      %cst_4 = arith.constant 5.000000e-01 : f32
      %26 = arith.mulf %in, %cst_4 : f32
      %cst_5 = arith.constant 0xFF800000 : f32
      %27 = arith.select %25, %26, %cst_5 : f32
      linalg.yield %27 : f32
    } -> tensor<4x2x1x4xf32>
    %cst_0 = arith.constant 0xFF800000 : f32
    %5 = tensor.empty() : tensor<4x2x1xf32>
    %6 = linalg.fill ins(%cst_0 : f32) outs(%5 : tensor<4x2x1xf32>) -> tensor<4x2x1xf32>
    %7 = linalg.generic {indexing_maps = [#map21, #map12], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%4 : tensor<4x2x1x4xf32>) outs(%6 : tensor<4x2x1xf32>) {
    ^bb0(%in: f32, %out: f32):
      %18 = arith.maximumf %out, %in : f32
      linalg.yield %18 : f32
    } -> tensor<4x2x1xf32>
    %8 = tensor.empty() : tensor<4x2x1x4xf32>
    %9 = linalg.generic {indexing_maps = [#map21, #map12, #map21], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%4, %7 : tensor<4x2x1x4xf32>, tensor<4x2x1xf32>) outs(%8 : tensor<4x2x1x4xf32>) {
    ^bb0(%in: f32, %in_3: f32, %out: f32):
      %18 = arith.subf %in, %in_3 : f32
      %19 = math.exp %18 : f32
      linalg.yield %19 : f32
    } -> tensor<4x2x1x4xf32>
    %cst_1 = arith.constant 0.000000e+00 : f32
    %10 = tensor.empty() : tensor<4x2x1xf32>
    %11 = linalg.fill ins(%cst_1 : f32) outs(%10 : tensor<4x2x1xf32>) -> tensor<4x2x1xf32>
    %12 = linalg.generic {indexing_maps = [#map21, #map12], iterator_types = ["parallel", "parallel", "parallel", "reduction"]} ins(%9 : tensor<4x2x1x4xf32>) outs(%11 : tensor<4x2x1xf32>) {
    ^bb0(%in: f32, %out: f32):
      %18 = arith.addf %out, %in : f32
      linalg.yield %18 : f32
    } -> tensor<4x2x1xf32>
    %13 = tensor.empty() : tensor<4x2x1x4xf32>
    %14 = linalg.generic {indexing_maps = [#map21, #map12, #map21], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%9, %12 : tensor<4x2x1x4xf32>, tensor<4x2x1xf32>) outs(%13 : tensor<4x2x1x4xf32>) {
    ^bb0(%in: f32, %in_3: f32, %out: f32):
      %18 = arith.divf %in, %in_3 : f32
      linalg.yield %18 : f32
    } -> tensor<4x2x1x4xf32>
    %cst_2 = arith.constant 0.000000e+00 : f32
    %15 = tensor.empty() : tensor<4x2x1x4xf32>
    %16 = linalg.fill ins(%cst_2 : f32) outs(%15 : tensor<4x2x1x4xf32>) -> tensor<4x2x1x4xf32>
    %17 = linalg.generic {indexing_maps = [#map23, #map24, #map9], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction"]} ins(%14, %arg2 : tensor<4x2x1x4xf32>, tensor<4x2x4xf32>) outs(%16 : tensor<4x2x1x4xf32>) {
    ^bb0(%in: f32, %in_3: f32, %out: f32):
      %18 = arith.mulf %in, %in_3 : f32
      %19 = arith.addf %out, %18 : f32
      linalg.yield %19 : f32
    } -> tensor<4x2x1x4xf32>
    return %17 : tensor<4x2x1x4xf32>
  }
  func.func @train(%arg0: tensor<4x8xf32> {t3.name = "hidden"}, %arg1: tensor<8xf32> {t3.name = "param/attention_norm"}, %arg2: tensor<2x1x2x2x8xf32> {t3.name = "param/q_proj"}, %arg3: tensor<2x2x2x8xf32> {t3.name = "param/k_proj"}, %arg4: tensor<2x4x8xf32> {t3.name = "param/v_proj"}, %arg5: tensor<8x2x1x4xf32> {t3.name = "param/o_proj"}, %arg6: tensor<8xf32> {t3.name = "param/mlp_norm"}, %arg7: tensor<6x8xf32> {t3.name = "param/gate_proj"}, %arg8: tensor<6x8xf32> {t3.name = "param/up_proj"}, %arg9: tensor<8x6xf32> {t3.name = "param/down_proj"}) -> (tensor<f32> {t3.name = "loss"}) {
    %0 = call @layer(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9) : (tensor<4x8xf32>, tensor<8xf32>, tensor<2x1x2x2x8xf32>, tensor<2x2x2x8xf32>, tensor<2x4x8xf32>, tensor<8x2x1x4xf32>, tensor<8xf32>, tensor<6x8xf32>, tensor<6x8xf32>, tensor<8x6xf32>) -> tensor<4x8xf32>
    %cst = arith.constant 0.000000e+00 : f32
    %1 = tensor.empty() : tensor<f32>
    %2 = linalg.fill ins(%cst : f32) outs(%1 : tensor<f32>) -> tensor<f32>
    %3 = linalg.generic {indexing_maps = [#map, #map25], iterator_types = ["reduction", "reduction"]} ins(%0 : tensor<4x8xf32>) outs(%2 : tensor<f32>) {
    ^bb0(%in: f32, %out: f32):
      %4 = arith.mulf %in, %in : f32
      %5 = arith.addf %out, %4 : f32
      linalg.yield %5 : f32
    } -> tensor<f32>
    return %3 : tensor<f32>
  }
}
