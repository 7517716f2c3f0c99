//! How often each function runs: a layer stands in the module once and is called many times.

use std::collections::HashMap;

use petgraph::{
    algo::toposort,
    graph::{DiGraph, NodeIndex},
    visit::EdgeRef,
};
use t3c_ir::{
    Op,
    attributes::string,
    function::{Function, functions},
    walk,
};

use crate::pass::PassError;

/// For each function, how often one run of every public function enters it; 0 when nothing calls it.
///
/// # Errors
/// When a function calls itself, directly or not.
pub fn call_counts(module: Op<'_, '_>) -> Result<HashMap<String, u64>, PassError> {
    let all = functions(module);
    let mut graph: DiGraph<(Function<'_, '_>, u64), u64> = DiGraph::new();
    let nodes: HashMap<String, NodeIndex> = all
        .iter()
        .map(|function| (function.name(), graph.add_node((*function, u64::from(function.is_public())))))
        .collect();
    for function in &all {
        let caller = nodes[&function.name()];
        for callee in callees(*function).iter().filter_map(|name| nodes.get(name)) {
            graph.add_edge(caller, *callee, 1);
        }
    }
    let order = toposort(&graph, None).map_err(|cycle| {
        let (function, _) = graph[cycle.node_id()];
        PassError::at(function.0, format!("@{} calls itself", function.name()))
    })?;
    for node in order {
        let count = graph[node].1;
        let targets: Vec<NodeIndex> = graph.edges(node).map(|edge| edge.target()).collect();
        for target in targets {
            graph[target].1 = graph[target].1.saturating_add(count);
        }
    }
    Ok(nodes.into_iter().map(|(name, node)| (name, graph[node].1)).collect())
}

fn callees(function: Function<'_, '_>) -> Vec<String> {
    let calls = walk::walk(function.0).into_iter().filter(|op| walk::is(*op, "func.call"));
    calls.filter_map(|call| string(call, "callee")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_multiply_along_the_way() {
        let context = t3c_ir::Context::new();
        let text = r"
            func.func private @leaf() { return }
            func.func private @layer() { call @leaf() : () -> () call @leaf() : () -> () return }
            func.func @main() { call @layer() : () -> () call @layer() : () -> () call @leaf() : () -> () return }
            func.func private @unused() { return }";
        let module = context.parse(text, "calls.mlir").unwrap();
        let counts = call_counts(module.op()).unwrap();
        assert_eq!((counts["main"], counts["layer"], counts["leaf"], counts["unused"]), (1, 2, 5, 0));
        let text = "func.func @f() { call @f() : () -> () return }";
        let module = context.parse(text, "f.mlir").unwrap();
        assert!(call_counts(module.op()).unwrap_err().to_string().contains("@f calls itself"));
    }
}
