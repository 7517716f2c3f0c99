//! Per-device programs with explicit collectives: the gradients of every device against differences of the one loss.

use t3c_ir::{
    Context, Module, Splits, function,
    interpreter::{Interpreter, Tensor, gather, scatter},
    splits,
};

use super::{Autodiff, differentiated, error};

const MAPS: &str = "
#nd = affine_map<(n, f, d) -> (n, d)>
#fd = affine_map<(n, f, d) -> (f, d)>
#nf = affine_map<(n, f, d) -> (n, f)>
#id = affine_map<(n, d) -> (n, d)>
#row = affine_map<(n, d) -> (n)>
#col = affine_map<(n, d) -> (d)>
#none = affine_map<(n, d) -> ()>
";

fn product(result: &str, [x, w]: [&str; 2], [n, f, d]: [u64; 3]) -> String {
    format!(
        r#"
  %{result}c = arith.constant dense<0.0> : tensor<{n}x{f}xf64>
  %{result} = linalg.generic {{indexing_maps = [#nd, #fd, #nf], iterator_types = ["parallel", "parallel", "reduction"]}} ins(%{x}, %{w} : tensor<{n}x{d}xf64>, tensor<{f}x{d}xf64>) outs(%{result}c : tensor<{n}x{f}xf64>) {{
  ^bb0(%i_: f64, %j_: f64, %o_: f64):
    %p_ = arith.mulf %i_, %j_ : f64
    %s_ = arith.addf %o_, %p_ : f64
    linalg.yield %s_ : f64
  }} -> tensor<{n}x{f}xf64>"#
    )
}

/// Rows scaled by the root of their sum of squares, and by a weight.
fn norm(result: &str, [x, weight]: [&str; 2], [n, d]: [u64; 2]) -> String {
    format!(
        r#"
  %{result}c = arith.constant dense<0.1> : tensor<{n}xf64>
  %{result}s = linalg.generic {{indexing_maps = [#id, #row], iterator_types = ["parallel", "reduction"]}} ins(%{x} : tensor<{n}x{d}xf64>) outs(%{result}c : tensor<{n}xf64>) {{
  ^bb0(%i_: f64, %o_: f64):
    %p_ = arith.mulf %i_, %i_ : f64
    %s_ = arith.addf %o_, %p_ : f64
    linalg.yield %s_ : f64
  }} -> tensor<{n}xf64>
  %{result}e = tensor.empty() : tensor<{n}x{d}xf64>
  %{result} = linalg.generic {{indexing_maps = [#id, #row, #col, #id], iterator_types = ["parallel", "parallel"]}} ins(%{x}, %{result}s, %{weight} : tensor<{n}x{d}xf64>, tensor<{n}xf64>, tensor<{d}xf64>) outs(%{result}e : tensor<{n}x{d}xf64>) {{
  ^bb0(%i_: f64, %q_: f64, %g_: f64, %o_: f64):
    %r_ = math.rsqrt %q_ : f64
    %p_ = arith.mulf %i_, %r_ : f64
    %s_ = arith.mulf %p_, %g_ : f64
    linalg.yield %s_ : f64
  }} -> tensor<{n}x{d}xf64>"#
    )
}

/// The sum of `x · tanh x`.
fn loss(result: &str, x: &str, [n, d]: [u64; 2]) -> String {
    format!(
        r#"
  %{result}c = arith.constant dense<0.0> : tensor<f64>
  %{result} = linalg.generic {{indexing_maps = [#id, #none], iterator_types = ["reduction", "reduction"]}} ins(%{x} : tensor<{n}x{d}xf64>) outs(%{result}c : tensor<f64>) {{
  ^bb0(%i_: f64, %o_: f64):
    %t_ = math.tanh %i_ : f64
    %p_ = arith.mulf %i_, %t_ : f64
    %s_ = arith.addf %o_, %p_ : f64
    linalg.yield %s_ : f64
  }} -> tensor<f64>"#
    )
}

fn argument(name: &str, shape: &[u64], split: &[&[usize]]) -> String {
    let shape: Vec<String> = shape.iter().map(u64::to_string).collect();
    let symbol = name.rsplit('/').next().unwrap();
    let split: Splits = split.iter().map(|axes| axes.to_vec()).collect();
    let split = if split.iter().all(Vec::is_empty) {
        String::new()
    } else {
        format!(", t3.split = {}", splits::render(&split))
    };
    format!("%{symbol}: tensor<{}xf64> {{t3.name = \"{name}\"{split}}}", shape.join("x"))
}

fn program(grid: &str, arguments: &[String], body: &str) -> String {
    format!(
        "{MAPS}shard.grid @grid(shape = {grid})\nfunc.func @train({}) -> (tensor<f64> {{t3.name = \"loss\"}}) {{{body}\n  return %loss : tensor<f64>\n}}",
        arguments.join(", ")
    )
}

fn collective(result: &str, name: &str, input: &str, axis: usize, rest: &str) -> String {
    format!("\n  %{result} = shard.{name} %{input} on @grid grid_axes = [{axis}] {rest}")
}

/// Differentiates and compares with central differences in whole arguments; returns the text.
fn check(source: &str) -> String {
    let context = Context::new();
    let module = context.parse(source, "spmd.mlir").unwrap();
    let with = differentiated(&module, &Autodiff::default());
    let text = with.text(false);
    let plain = Interpreter::new(module.op());
    let grid = plain.grid().clone();
    let ports = function::entry(module.op()).unwrap().argument_ports().unwrap();
    let whole: Vec<Tensor> = ports
        .iter()
        .zip(1..)
        .map(|(port, seed)| {
            let shape = splits::unblock(&port.r#type.shape, &port.splits(), &grid).unwrap();
            Tensor::random(&t3c_ir::TensorType::new(shape, t3c_ir::Element::F64), seed).unwrap()
        })
        .collect();
    let local = |whole: &[Tensor]| -> Vec<Vec<Tensor>> {
        let mut devices = vec![Vec::new(); grid.devices() as usize];
        for (tensor, port) in whole.iter().zip(&ports) {
            let pieces = scatter(tensor, &port.splits(), &grid).unwrap();
            devices.iter_mut().zip(pieces).for_each(|(all, piece)| all.push(piece));
        }
        devices
    };
    let loss = |whole: &[Tensor]| plain.run("train", &local(whole)).unwrap()[0][0].numbers()[0];
    let found = Interpreter::new(with.op()).run("train", &local(&whole)).unwrap();
    let parameters = (0..ports.len()).filter(|&index| ports[index].name.starts_with("param/"));
    for (number, index) in parameters.enumerate() {
        let pieces: Vec<Tensor> = found.iter().map(|results| results[1 + number].clone()).collect();
        let gradient = gather(&pieces, &ports[index].splits(), &grid)
            .unwrap_or_else(|error| panic!("{}: {error}\n{text}", ports[index].name));
        for (at, found) in gradient.numbers().into_iter().enumerate() {
            let moved = |by: f64| {
                let mut whole = whole.clone();
                let mut numbers = whole[index].numbers();
                numbers[at] += by;
                whole[index] = Tensor::from_numbers(&whole[index].r#type(), &numbers).unwrap();
                loss(&whole)
            };
            let h = 1e-4;
            let expected = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
            assert!(
                (found - expected).abs() <= 1e-8 * (1.0 + expected.abs()),
                "{}[{at}]: {found}, differences say {expected}\n{text}",
                ports[index].name
            );
        }
    }
    let _: Module<'_> = module;
    text
}

/// Megatron's layer on three devices: column and row products, the residual and the norm on all of them.
#[test]
fn an_all_reduce_is_the_identity_and_the_identity_an_all_reduce() {
    let arguments = [
        argument("x", &[4, 6], &[]),
        argument("param/g", &[6], &[]),
        argument("param/in", &[6, 6], &[]),
        argument("param/up", &[2, 6], &[&[0], &[]]),
        argument("param/down", &[6, 2], &[&[], &[0]]),
    ];
    let body = product("h", ["x", "in"], [4, 6, 6])
        + &norm("normal", ["h", "g"], [4, 6])
        + &product("u", ["normal", "up"], [4, 2, 6])
        + "\n  %t = math.tanh %u : tensor<4x2xf64>"
        + &product("partial", ["t", "down"], [4, 6, 2])
        + &collective("sum", "all_reduce", "partial", 0, ": tensor<4x6xf64> -> tensor<4x6xf64>")
        + "\n  %y = arith.addf %h, %sum : tensor<4x6xf64>"
        + &loss("loss", "y", [4, 6]);
    let text = check(&program("3", &arguments, &body));
    // One in the forward, and the backward's conjugate at the column product.
    assert_eq!(text.matches("shard.all_reduce").count(), 2, "{text}");
}

/// The layer as a function that is called twice, with parameters of its own each time.
#[test]
fn layers_of_a_per_device_program_are_differentiated_once() {
    let layer = norm("normal", ["h", "g"], [4, 6])
        + &product("u", ["normal", "up"], [4, 2, 6])
        + "\n  %t = math.tanh %u : tensor<4x2xf64>"
        + &product("partial", ["t", "down"], [4, 6, 2])
        + &collective("sum", "all_reduce", "partial", 0, ": tensor<4x6xf64> -> tensor<4x6xf64>")
        + "\n  %y = arith.addf %h, %sum : tensor<4x6xf64>";
    let types = "tensor<4x6xf64>, tensor<6xf64>, tensor<2x6xf64>, tensor<6x2xf64>";
    let call = |result: &str, input: &str, number: usize| {
        format!(
            "\n  %{result} = func.call @layer(%{input}, %g{number}, %up{number}, %down{number}) : ({types}) -> \
             tensor<4x6xf64>"
        )
    };
    let mut arguments = vec![argument("param/x", &[4, 6], &[])];
    for number in 0..2 {
        arguments.push(argument(&format!("param/g{number}"), &[6], &[]));
        arguments.push(argument(&format!("param/up{number}"), &[2, 6], &[&[0], &[]]));
        arguments.push(argument(&format!("param/down{number}"), &[6, 2], &[&[], &[0]]));
    }
    let body = call("a", "x", 0) + &call("b", "a", 1) + &loss("loss", "b", [4, 6]);
    let source = program("3", &arguments, &body)
        + &format!(
            "\nfunc.func private @layer(%h: tensor<4x6xf64>, %g: tensor<6xf64>, %up: tensor<2x6xf64>, %down: \
             tensor<6x2xf64>) -> tensor<4x6xf64> {{{layer}\n  return %y : tensor<4x6xf64>\n}}"
        );
    let text = check(&source);
    assert_eq!(text.matches("shard.all_reduce").count(), 2, "{text}");
    assert_eq!(text.matches("call @layer_backward").count(), 2, "{text}");
}

/// The same with rows of the residual split (sequence parallelism): gathers and reduce-scatters exchange places.
#[test]
fn gathers_become_reduce_scatters() {
    let arguments = [
        argument("param/x", &[2, 6], &[&[0], &[]]),
        argument("param/g", &[6], &[]),
        argument("param/up", &[2, 6], &[&[0], &[]]),
        argument("param/gate", &[2, 6], &[&[0], &[]]),
        argument("param/down", &[6, 2], &[&[], &[0]]),
    ];
    let body = norm("normal", ["x", "g"], [2, 6])
        + &collective(
            "all",
            "all_gather",
            "normal",
            0,
            "gather_axis = 0 : tensor<2x6xf64> -> tensor<4x6xf64>",
        )
        + &product("u", ["all", "up"], [4, 2, 6])
        + &product("v", ["all", "gate"], [4, 2, 6])
        + "\n  %t = math.tanh %v : tensor<4x2xf64>\n  %a = arith.mulf %t, %u : tensor<4x2xf64>"
        + &product("partial", ["a", "down"], [4, 6, 2])
        + &collective(
            "sum",
            "reduce_scatter",
            "partial",
            0,
            "scatter_axis = 0 : tensor<4x6xf64> -> tensor<2x6xf64>",
        )
        + "\n  %y = arith.addf %x, %sum : tensor<2x6xf64>"
        + &loss("own", "y", [2, 6])
        + &collective("loss", "all_reduce", "own", 0, ": tensor<f64> -> tensor<f64>");
    let text = check(&program("2", &arguments, &body));
    assert_eq!(text.matches("shard.reduce_scatter").count(), 2, "{text}");
    assert_eq!(text.matches("shard.all_gather").count(), 2, "{text}");
    // The loss, and the norm's weight, which all devices have.
    assert_eq!(text.matches("shard.all_reduce").count(), 2, "{text}");
}

/// Data-parallel times tensor-parallel: a replicated parameter's gradient is summed over the data's axis.
#[test]
fn replicated_parameters_are_summed_over_the_axes_that_split_the_data() {
    let arguments = [
        argument("x", &[2, 6], &[&[0], &[]]),
        argument("param/g", &[6], &[]),
        argument("param/up", &[2, 6], &[&[1], &[]]),
        argument("param/down", &[6, 2], &[&[], &[1]]),
    ];
    let body = norm("normal", ["x", "g"], [2, 6])
        + &product("u", ["normal", "up"], [2, 2, 6])
        + "\n  %t = math.tanh %u : tensor<2x2xf64>"
        + &product("partial", ["t", "down"], [2, 6, 2])
        + &collective("sum", "all_reduce", "partial", 1, ": tensor<2x6xf64> -> tensor<2x6xf64>")
        + &loss("own", "sum", [2, 6])
        + &collective("loss", "all_reduce", "own", 0, ": tensor<f64> -> tensor<f64>");
    check(&program("2x3", &arguments, &body));
}

#[test]
fn slices_and_exchanges_have_their_adjoints() {
    let arguments = [argument("param/x", &[6, 4], &[]), argument("param/w", &[2, 4], &[&[0], &[]])];
    let body = "\n  %sin = math.sin %x : tensor<6x4xf64>".to_owned()
        + &collective("own", "all_slice", "sin", 0, "slice_axis = 0 : tensor<6x4xf64> -> tensor<2x4xf64>")
        + "\n  %p = arith.mulf %own, %w : tensor<2x4xf64>\n  %q = math.tanh %p : tensor<2x4xf64>"
        + &collective(
            "moved",
            "all_to_all",
            "q",
            0,
            "split_axis = 1 concat_axis = 0 : tensor<2x4xf64> -> tensor<4x2xf64>",
        )
        + "\n  %r = arith.mulf %moved, %moved : tensor<4x2xf64>"
        + &loss("mine", "r", [4, 2])
        + &collective("loss", "all_reduce", "mine", 0, ": tensor<f64> -> tensor<f64>");
    let source = program("2", &arguments, &body.replace("6x4", "4x4"));
    let source = source.replace("%x: tensor<6x4xf64>", "%x: tensor<4x4xf64>");
    let text = check(&source);
    assert_eq!(text.matches("shard.all_to_all").count(), 2, "{text}");
    assert_eq!(text.matches("shard.all_gather").count(), 1, "{text}");
}

#[test]
fn a_maximum_over_devices_goes_to_the_devices_that_have_it() {
    let arguments = [argument("param/x", &[2, 2], &[&[0], &[]]), argument("param/w", &[2, 2], &[])];
    let body = "\n  %p = arith.mulf %x, %w : tensor<2x2xf64>".to_owned()
        + &collective("most", "all_reduce", "p", 0, "reduction = max : tensor<2x2xf64> -> tensor<2x2xf64>")
        + &loss("loss", "most", [2, 2]);
    check(&program("2", &arguments, &body));
    let scattered = collective(
        "most",
        "reduce_scatter",
        "x",
        0,
        "reduction = max scatter_axis = 0 : tensor<2x2xf64> -> tensor<1x2xf64>",
    ) + &loss("loss", "most", [1, 2]);
    let text = error(&program("2", &arguments, &scattered), &Autodiff::default());
    assert!(text.contains("bad.mlir:") && text.contains("take the maximum by all_reduce"), "{text}");
}
