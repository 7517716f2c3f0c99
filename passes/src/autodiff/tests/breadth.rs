//! What imported programs have beside structured operations.

use t3c_ir::{
    Context, Module, ScalarOp,
    function::{self, Function},
    interpreter::{Interpreter, Tensor},
};

use super::{Autodiff, check, differentiated, entry, error, f64s, layer, random, weighted};

/// Inputs of the entry of a module: `ids` below 3.
fn inputs(module: &Module<'_>) -> Vec<Tensor> {
    let ports = function::entry(module.op()).unwrap().argument_ports().unwrap();
    let input = |(port, seed): (&function::Port, u64)| {
        if port.name == "ids" {
            return Tensor::random_below(&port.r#type, 3, seed).unwrap();
        }
        Tensor::random(&port.r#type, seed).unwrap()
    };
    ports.iter().zip(1..).map(input).collect()
}

/// The sum of squares of a vector.
const SQUARES: &str = r#"
func.func private @squares(%x: tensor<6xf64>) -> tensor<f64> {
  %c = arith.constant 0.0 : f64
  %e = tensor.empty() : tensor<f64>
  %z = linalg.fill ins(%c : f64) outs(%e : tensor<f64>) -> tensor<f64>
  %0 = linalg.generic {indexing_maps = [affine_map<(a) -> (a)>, affine_map<(a) -> ()>], iterator_types = ["reduction"]} ins(%x : tensor<6xf64>) outs(%z : tensor<f64>) {
  ^bb0(%i: f64, %o: f64):
    %q = arith.mulf %i, %i : f64
    %s = arith.addf %o, %q : f64
    linalg.yield %s : f64
  } -> tensor<f64>
  return %0 : tensor<f64>
}
"#;

/// A row at an offset that is data, written into another place, beside static slices and a concatenation; in a
/// function that is called, so that the offset is computed again in its backward.
#[test]
fn slices_and_concatenations_differentiate() {
    let source = SQUARES.to_owned()
        + r#"
func.func private @mix(%x: tensor<4x3xf64>, %y: tensor<4x3xf64>, %ids: tensor<2xi32>) -> tensor<6xf64> {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %i = tensor.extract %ids[%c0] : tensor<2xi32>
  %from = arith.index_cast %i : i32 to index
  %j = tensor.extract %ids[%c1] : tensor<2xi32>
  %to = arith.index_cast %j : i32 to index
  %xx = arith.mulf %x, %x : tensor<4x3xf64>
  %row = tensor.extract_slice %xx[%from, 0] [1, 3] [1, 1] : tensor<4x3xf64> to tensor<3xf64>
  %new = tensor.insert_slice %row into %y[%to, 0] [1, 3] [1, 1] : tensor<3xf64> into tensor<4x3xf64>
  %sum = arith.mulf %new, %xx : tensor<4x3xf64>
  %a = tensor.extract_slice %sum[0, 1] [2, 2] [2, 1] : tensor<4x3xf64> to tensor<2x2xf64>
  %b = tensor.extract_slice %new[2, 0] [2, 1] [1, 1] : tensor<4x3xf64> to tensor<2x1xf64>
  %all = tensor.concat dim(1) %a, %b : (tensor<2x2xf64>, tensor<2x1xf64>) -> tensor<2x3xf64>
  %flat = tensor.collapse_shape %all [[0, 1]] : tensor<2x3xf64> into tensor<6xf64>
  return %flat : tensor<6xf64>
}
func.func @train(%x: tensor<4x3xf64> {t3.name = "param/x"}, %y: tensor<4x3xf64> {t3.name = "param/y"}, %ids: tensor<2xi32> {t3.name = "ids"}) -> (tensor<f64> {t3.name = "loss"}) {
  %0 = func.call @mix(%x, %y, %ids) : (tensor<4x3xf64>, tensor<4x3xf64>, tensor<2xi32>) -> tensor<6xf64>
  %1 = func.call @squares(%0) : (tensor<6xf64>) -> tensor<f64>
  return %1 : tensor<f64>
}"#;
    let context = Context::new();
    let module = context.parse(&source, "slices.mlir").unwrap();
    let mut inputs = inputs(&module);
    check(&module, &inputs);
    // The row is written where it came from.
    inputs[2] = Tensor::i32([2], [1, 1]);
    check(&module, &inputs);
}

#[test]
fn named_operations_differentiate() {
    let source = SQUARES.to_owned()
        + r#"
func.func @train(%x: tensor<2x4xf64> {t3.name = "param/x"}, %y: tensor<4x3xf64> {t3.name = "param/y"}) -> (tensor<f64> {t3.name = "loss"}) {
  %c = arith.constant dense<0.0> : tensor<2x3xf64>
  %0 = linalg.matmul ins(%x, %y : tensor<2x4xf64>, tensor<4x3xf64>) outs(%c : tensor<2x3xf64>) -> tensor<2x3xf64>
  %1 = tensor.collapse_shape %0 [[0, 1]] : tensor<2x3xf64> into tensor<6xf64>
  %2 = func.call @squares(%1) : (tensor<6xf64>) -> tensor<f64>
  return %2 : tensor<f64>
}"#;
    let context = Context::new();
    let module = context.parse(&source, "named.mlir").unwrap();
    check(&module, &inputs(&module));
}

#[test]
fn each_of_several_results_has_its_gradient() {
    let source = r#"
#nd = affine_map<(n, d) -> (n, d)>
#n = affine_map<(n, d) -> (n)>
#id = affine_map<(n) -> (n)>
#none = affine_map<(n) -> ()>
func.func @train(%x: tensor<3x4xf64> {t3.name = "param/x"}, %s: tensor<3xf64> {t3.name = "param/s"}) -> (tensor<f64> {t3.name = "loss"}) {
  %c = arith.constant 0.0 : f64
  %e = tensor.empty() : tensor<3xf64>
  %z = linalg.fill ins(%c : f64) outs(%e : tensor<3xf64>) -> tensor<3xf64>
  %0:2 = linalg.generic {indexing_maps = [#nd, #n, #n], iterator_types = ["parallel", "reduction"]} ins(%x : tensor<3x4xf64>) outs(%s, %z : tensor<3xf64>, tensor<3xf64>) {
  ^bb0(%i: f64, %a: f64, %b: f64):
    %sum = arith.addf %a, %i : f64
    %square = arith.mulf %i, %i : f64
    %squares = arith.addf %b, %square : f64
    linalg.yield %sum, %squares : f64, f64
  } -> (tensor<3xf64>, tensor<3xf64>)
  %e0 = tensor.empty() : tensor<f64>
  %z0 = linalg.fill ins(%c : f64) outs(%e0 : tensor<f64>) -> tensor<f64>
  %1 = linalg.generic {indexing_maps = [#id, #id, #none], iterator_types = ["reduction"]} ins(%0#0, %0#1 : tensor<3xf64>, tensor<3xf64>) outs(%z0 : tensor<f64>) {
  ^bb0(%i: f64, %j: f64, %o: f64):
    %t = math.tanh %i : f64
    %p = arith.mulf %t, %j : f64
    %q = arith.addf %o, %p : f64
    linalg.yield %q : f64
  } -> tensor<f64>
  return %1 : tensor<f64>
}"#;
    let context = Context::new();
    let module = context.parse(source, "results.mlir").unwrap();
    check(&module, &inputs(&module));
}

#[test]
fn contributions_that_tie_share_the_gradient_of_an_extremum() {
    let context = Context::new();
    let ports = [("param/x", f64s(&[3, 4])), ("param/init", f64s(&[3]))];
    for op in [ScalarOp::MaxF, ScalarOp::MinF] {
        let module = entry(&context, &ports, |b, _, values| {
            let bound = b.accumulate("nd->n", &values[..1], &[], values[1], |body| {
                let value = body.mul(t3c_ir::Ref::Arg(0), t3c_ir::Ref::Arg(0));
                body.binary(op, t3c_ir::Ref::Arg(1), value)
            });
            let plain = b.reduce("nd->n", values[0], ScalarOp::MaxF).unwrap();
            weighted(b, b.add(bound.unwrap(), plain).unwrap())
        });
        check(&module, &random(&ports));
    }
    let module = entry(&context, &ports, |b, _, values| {
        let max = b.accumulate("nd->n", &values[..1], &[], values[1], |body| {
            body.binary(ScalarOp::MaxF, t3c_ir::Ref::Arg(1), t3c_ir::Ref::Arg(0))
        });
        b.reduce("n->", max.unwrap(), ScalarOp::AddF).unwrap()
    });
    let with = differentiated(&module, &Autodiff::default());
    let x = [1.0, 2.0, 2.0, 0.0, /**/ 5.0, 5.0, 5.0, 1.0, /**/ 0.0, 0.0, 0.0, 0.0];
    let inputs = [Tensor::f64([3, 4], x), Tensor::f64([3], [1.5, 5.0, 3.0])];
    let results = Interpreter::new(with.op()).run_one("train", &inputs).unwrap();
    let expected = [0.0, 0.5, 0.5, 0.0, /**/ 0.25, 0.25, 0.25, 0.0, /**/ 0.0, 0.0, 0.0, 0.0];
    assert_eq!(results[1].numbers(), expected);
    assert_eq!(results[2].numbers(), [0.0, 0.25, 1.0]);
}

/// A function that calls one that calls another, each twice.
#[test]
fn functions_that_call_functions_differentiate() {
    let source = SQUARES.to_owned()
        + r#"
func.func private @inner(%x: tensor<6xf64>, %w: tensor<6xf64>) -> (tensor<6xf64>, tensor<6xf64>) {
  %0 = arith.mulf %x, %w : tensor<6xf64>
  %1 = math.tanh %0 : tensor<6xf64>
  %2 = math.sin %x : tensor<6xf64>
  return %1, %2 : tensor<6xf64>, tensor<6xf64>
}
func.func private @outer(%x: tensor<6xf64>, %w: tensor<6xf64>) -> tensor<6xf64> {
  %0:2 = func.call @inner(%x, %w) : (tensor<6xf64>, tensor<6xf64>) -> (tensor<6xf64>, tensor<6xf64>)
  %1:2 = func.call @inner(%0#0, %0#1) : (tensor<6xf64>, tensor<6xf64>) -> (tensor<6xf64>, tensor<6xf64>)
  %2 = arith.addf %1#0, %x : tensor<6xf64>
  return %2 : tensor<6xf64>
}
func.func @train(%x: tensor<6xf64> {t3.name = "param/x"}, %a: tensor<6xf64> {t3.name = "param/a"}, %b: tensor<6xf64> {t3.name = "param/b"}) -> (tensor<f64> {t3.name = "loss"}) {
  %0 = func.call @outer(%x, %a) : (tensor<6xf64>, tensor<6xf64>) -> tensor<6xf64>
  %1 = func.call @outer(%0, %b) : (tensor<6xf64>, tensor<6xf64>) -> tensor<6xf64>
  %2 = func.call @squares(%1) : (tensor<6xf64>) -> tensor<f64>
  return %2 : tensor<f64>
}"#;
    let context = Context::new();
    let module = context.parse(&source, "calls.mlir").unwrap();
    let text = check(&module, &inputs(&module)).text(false);
    assert_eq!(text.matches("call @inner_backward").count(), 2, "{text}");
    assert_eq!(text.matches("call @outer_backward").count(), 2, "{text}");
}

/// Of a layer whose input is data, no gradient of the input is computed; what the loss does not depend on is zero.
#[test]
fn dead_and_zero_gradients_are_not_computed() {
    let context = Context::new();
    let (n, d, f) = (3, 4, 5);
    let ports = [
        ("x", f64s(&[n, d])),
        ("param/norm", f64s(&[d])),
        ("param/up", f64s(&[f, d])),
        ("param/down", f64s(&[d, f])),
        ("param/unused", f64s(&[2])),
    ];
    let module = entry(&context, &ports, |b, module, values| {
        layer(&context, module, n, d, f);
        let y = b.call("layer", &values[..4], &[f64s(&[n, d])]).unwrap()[0];
        weighted(b, y)
    });
    let with = check(&module, &random(&ports));
    let backward = function::function(with.op(), "layer_backward").unwrap();
    assert_eq!(backward.results().len(), 3, "no gradient of the layer's input");
    let unread: Vec<String> = function::functions(with.op())
        .into_iter()
        .flat_map(|function: Function<'_, '_>| super::super::activity::operations(function))
        .filter(|operation| {
            use melior::ir::operation::OperationLike;
            operation.result_count() > 0
                && operation.results().all(|result| t3c_ir::ffi::uses(result.into()).is_empty())
        })
        .map(t3c_ir::walk::name)
        .collect();
    assert!(unread.is_empty(), "{unread:?}\n{}", with.text(false));
}

#[test]
fn what_has_no_rule_says_what_is_needed() {
    let program = |body: &str| {
        format!(
            r#"#id = affine_map<(a) -> (a)>
#none = affine_map<(a) -> ()>
func.func @f(%x: tensor<4xf64> {{t3.name = "param/x"}}, %o: tensor<f64>, %i: tensor<4xi32>) -> (tensor<f64> {{t3.name = "loss"}}) {{
  {body}
  return %0 : tensor<f64>
}}"#
        )
    };
    let reduce = |combine: &str| {
        program(&format!(
            r#"%0 = linalg.generic {{indexing_maps = [#id, #none], iterator_types = ["reduction"]}} ins(%x : tensor<4xf64>) outs(%o : tensor<f64>) {{
  ^bb0(%i0: f64, %o0: f64):
    {combine}
    linalg.yield %r : f64
  }} -> tensor<f64>"#
        ))
    };
    let options = Autodiff::default();
    let text = error(&reduce("%r = arith.mulf %o0, %i0 : f64"), &options);
    assert!(text.contains("bad.mlir:4:") && text.contains("sum of logarithms"), "{text}");
    let text = error(&reduce("%t = math.tanh %o0 : f64\n    %r = arith.addf %t, %i0 : f64"), &options);
    assert!(text.contains("bad.mlir:4:") && text.contains("no sum into its output"), "{text}");
    let gather = r#"%0 = linalg.generic {indexing_maps = [#id, #none], iterator_types = ["reduction"]} ins(%i : tensor<4xi32>) outs(%o : tensor<f64>) {
  ^bb0(%i0: i32, %o0: f64):
    %at = arith.index_cast %i0 : i32 to index
    %v = tensor.extract %x[%at] : tensor<4xf64>
    %r = arith.addf %o0, %v : f64
    linalg.yield %r : f64
  } -> tensor<f64>"#;
    let text = error(&program(gather), &options);
    assert!(text.contains("bad.mlir:4:") && text.contains("the unit `lookup`"), "{text}");
}
