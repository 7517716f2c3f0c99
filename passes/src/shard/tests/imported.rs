//! Programs as other tools write them: every construct of the `shard` dialect is taken or refused at its place.

use t3c_ir::{Context, walk};

use crate::{pipelines, run_passes};

/// The collectives of the program that every device runs, or why there is none.
fn partition(grids: &str, function: &str) -> Result<Vec<String>, String> {
    let context = Context::new();
    let source = format!("{grids}\n{function}\n");
    let mut module = context.parse(&source, "case.mlir").unwrap_or_else(|error| panic!("{error}\n{source}"));
    let passes = pipelines::sharding(false);
    // Twice: nothing is left to do.
    for _ in 0..2 {
        run_passes(&mut module, &passes, &mut Vec::new()).map_err(|error| error.to_string())?;
    }
    let operations = walk::walk(module.op()).into_iter().map(walk::name);
    Ok(operations
        .filter_map(|name| name.strip_prefix("shard.").map(str::to_owned))
        .filter(|name| name != "grid")
        .collect())
}

fn takes(function: &str, collectives: &[&str]) {
    let grids = "shard.grid @line(shape = 2)";
    let found = partition(grids, function).unwrap_or_else(|error| panic!("{error}\n{function}"));
    assert_eq!(found, collectives, "{function}");
}

/// Refused with a place in the file and this text.
fn refuses(grids: &str, function: &str, text: &str) {
    let error = partition(grids, function).expect_err(function);
    assert!(error.contains("case.mlir:") && error.contains(text), "{error}\n{function}");
}

/// A function from a tensor to a tensor with these operations, of which `%y` is returned.
fn function(body: &str) -> String {
    format!(
        "func.func @main(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {{
  %rows = shard.sharding @line split_axes = [[0]] : !shard.sharding
  %columns = shard.sharding @line split_axes = [[], [0]] : !shard.sharding
  %whole = shard.sharding @line split_axes = [[]] : !shard.sharding
{body}
  return %y : tensor<2x4xf32>
}}"
    )
}

#[test]
fn annotations_are_kept_where_they_agree_and_moved_where_not() {
    let chain = |from: &str, to: &str| {
        function(&format!(
            "  %a = shard.shard %x to %{from} : tensor<2x4xf32>
  %b = math.absf %a : tensor<2x4xf32>
  %c = shard.shard %b to %{from} : tensor<2x4xf32>
  %y = shard.shard %c to %{to} annotate_for_users : tensor<2x4xf32>"
        ))
    };
    takes(&chain("whole", "whole"), &[]);
    takes(&chain("rows", "rows"), &[]);
    takes(&chain("rows", "whole"), &["all_gather"]);
    takes(&chain("rows", "columns"), &["all_to_all"]);
    takes(&chain("whole", "columns"), &["all_slice"]);
    takes(
        &function(
            "  %a = shard.shard %x to %rows : tensor<2x4xf32>
  %b = math.absf %a : tensor<2x4xf32>
  %c = shard.shard %b to %columns : tensor<2x4xf32>
  %d = math.absf %c : tensor<2x4xf32>
  %y = shard.shard %d to %rows : tensor<2x4xf32>",
        ),
        // There and back, with nothing but elementwise work between.
        &[],
    );
}

#[test]
fn an_integer_reduction_is_summed_once() {
    let reduce = "func.func @main(%x: tensor<6x6xi32>) -> tensor<i32> {
  %rows = shard.sharding @line split_axes = [[0]] : !shard.sharding
  %xs = shard.shard %x to %rows annotate_for_users : tensor<6x6xi32>
  %e = tensor.empty() : tensor<i32>
  %zero = arith.constant 0 : i32
  %f = linalg.fill ins(%zero : i32) outs(%e : tensor<i32>) -> tensor<i32>
  %whole = shard.sharding @line split_axes = [[]] : !shard.sharding
  %fs = shard.shard %f to %whole : tensor<i32>
  %y = linalg.reduce ins(%xs : tensor<6x6xi32>) outs(%fs : tensor<i32>) dimensions = [0, 1]
    (%in: i32, %init: i32) {
      %s = arith.addi %in, %init : i32
      linalg.yield %s : i32
    }
  return %y : tensor<i32>
}";
    // Only the first device starts from the initial value.
    takes(reduce, &["process_multi_index", "all_reduce"]);
}

#[test]
fn an_initial_value_and_a_batch_are_split_with_their_product() {
    let batched = "func.func @main(%a: tensor<2x3x4xf32>, %b: tensor<2x4x6xf32>, %init: tensor<2x3x6xf32>) -> tensor<2x3x6xf32> {
  %batch = shard.sharding @line split_axes = [[0]] : !shard.sharding
  %as = shard.shard %a to %batch : tensor<2x3x4xf32>
  %y = linalg.batch_matmul ins(%as, %b : tensor<2x3x4xf32>, tensor<2x4x6xf32>) outs(%init : tensor<2x3x6xf32>) -> tensor<2x3x6xf32>
  return %y : tensor<2x3x6xf32>
}";
    takes(batched, &["all_slice", "all_slice"]);
    let summed = "func.func @main(%a: tensor<3x4xf32>, %b: tensor<4x6xf32>, %init: tensor<3x6xf32>) -> tensor<3x6xf32> {
  %inner = shard.sharding @line split_axes = [[], [0]] : !shard.sharding
  %as = shard.shard %a to %inner : tensor<3x4xf32>
  %y = linalg.matmul ins(%as, %b : tensor<3x4xf32>, tensor<4x6xf32>) outs(%init : tensor<3x6xf32>) -> tensor<3x6xf32>
  return %y : tensor<3x6xf32>
}";
    takes(summed, &["all_slice", "process_multi_index", "all_reduce"]);
}

#[test]
fn programs_of_one_device_are_left_alone() {
    for (operation, result, name) in [
        ("shard.all_reduce %x on @line grid_axes = [0] reduction = max", "2x4", "all_reduce"),
        ("shard.all_gather %x on @line grid_axes = [0] gather_axis = 0", "4x4", "all_gather"),
        ("shard.all_slice %x on @line grid_axes = [0] slice_axis = 1", "2x2", "all_slice"),
        ("shard.all_to_all %x on @line grid_axes = [0] split_axis = 0 concat_axis = 1", "1x8", "all_to_all"),
        ("shard.reduce_scatter %x on @line grid_axes = [0] scatter_axis = 1", "2x2", "reduce_scatter"),
    ] {
        takes(
            &format!(
                "func.func @main(%x: tensor<2x4xf32>) -> tensor<{result}xf32> {{
  %y = {operation} : tensor<2x4xf32> -> tensor<{result}xf32>
  return %y : tensor<{result}xf32>
}}"
            ),
            &[name],
        );
    }
    for (operation, name) in [
        ("shard.broadcast %x on @line grid_axes = [0] root = [0]", "broadcast"),
        ("shard.recv %x on @line grid_axes = [0] source = [1]", "recv"),
        ("shard.send %x on @line grid_axes = [0] destination = [1]", "send"),
    ] {
        let body = format!("  %y = {operation} : (tensor<2x4xf32>) -> tensor<2x4xf32>");
        let function = format!(
            "func.func @main(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {{\n{body}\n  return %y : tensor<2x4xf32>\n}}"
        );
        takes(&function, &[name]);
    }
    let place = "func.func @main() -> tensor<index> {
  %me = shard.process_linear_index on @line : index
  %y = tensor.from_elements %me : tensor<index>
  return %y : tensor<index>
}";
    takes(place, &["process_linear_index"]);
}

#[test]
fn a_transfer_is_no_loop_of_a_schedule() {
    let context = Context::new();
    let source = "shard.grid @line(shape = 2)
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = shard.send %x on @line grid_axes = [0] destination = [1] : (tensor<4xf32>) -> tensor<4xf32>
  return %y : tensor<4xf32>
}";
    let mut module = context.parse(source, "case.mlir").unwrap();
    let passes = [pipelines::sharding(false), pipelines::schedule()].concat();
    let error = run_passes(&mut module, &passes, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("case.mlir:3:8") && error.contains("`shard.send` cannot be scheduled"), "{error}");
}

#[test]
fn what_has_no_rule_is_refused_at_its_place() {
    let line = "shard.grid @line(shape = 2)";
    let annotated = "  %a = shard.shard %x to %rows : tensor<2x4xf32>\n";
    for (body, text) in [
        (
            "  %s = shard.get_sharding %a : tensor<2x4xf32> -> !shard.sharding\n  %y = shard.shard %a to %s : tensor<2x4xf32>",
            "shard.get_sharding",
        ),
        (
            "  %y = shard.all_reduce %a on @line grid_axes = [0] : tensor<2x4xf32> -> tensor<2x4xf32>",
            "shard.all_reduce",
        ),
        (
            "  %y = linalg.softmax dimension(1) ins(%a : tensor<2x4xf32>) outs(%x : tensor<2x4xf32>) -> tensor<2x4xf32>",
            "linalg.softmax",
        ),
        ("  %y = tensor.cast %a : tensor<2x4xf32> to tensor<2x4xf32>", "tensor.cast"),
        (
            "  %h = shard.sharding @line split_axes = [[0]] sharded_dims_offsets = [0, 1, 2] : !shard.sharding\n  %y = shard.shard %a to %h : tensor<2x4xf32>",
            "uneven parts",
        ),
        (
            "  %h = shard.sharding @line split_axes = [[1]] : !shard.sharding\n  %y = shard.shard %a to %h : tensor<2x4xf32>",
            "axis",
        ),
    ] {
        refuses(line, &function(&format!("{annotated}{body}")), text);
    }
    refuses(
        "shard.grid @line(shape = ?)",
        &function("  %y = shard.shard %x to %rows : tensor<2x4xf32>"),
        "grid has axes",
    );
    refuses(
        "shard.grid @line(shape = 3)",
        &function("  %y = shard.shard %x to %rows : tensor<2x4xf32>"),
        "divide",
    );
    refuses(
        "shard.grid @line(shape = 70000x70000)",
        &function("  %y = shard.shard %x to %rows : tensor<2x4xf32>"),
        "at most",
    );
    refuses(
        line,
        "func.func @main(%x: tensor<4xi8>) -> tensor<4xi8> {
  %rows = shard.sharding @line split_axes = [[0]] : !shard.sharding
  %y = shard.shard %x to %rows : tensor<4xi8>
  return %y : tensor<4xi8>
}",
        "i8",
    );
    refuses(
        line,
        "func.func private @other(tensor<4xf32>) -> tensor<4xf32>
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %rows = shard.sharding @line split_axes = [[0]] : !shard.sharding
  %a = shard.shard %x to %rows : tensor<4xf32>
  %y = func.call @other(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %y : tensor<4xf32>
}",
        "unknown function",
    );
}
