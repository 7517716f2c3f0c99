//! What later operations would like a value to be: for units that can make their result in more than one way.

use super::{
    graph::{FunctionGraph, Kind, Node},
    plan::{Planner, real},
};

/// The axes along which the rows (dimension 0) of a value are wanted in the end: those of the annotation or of the
/// parameter that it reaches through operations that keep the dimension.
pub fn rows(planner: &Planner<'_>, function: usize, value: usize) -> Vec<usize> {
    let mut seen = vec![];
    search(planner, function, value, &mut seen).unwrap_or_default()
}

fn search(planner: &Planner<'_>, index: usize, value: usize, seen: &mut Vec<usize>) -> Option<Vec<usize>> {
    if seen.contains(&value) {
        return None;
    }
    seen.push(value);
    let function = &planner.graph.functions[index];
    let users = function.nodes.iter().filter(|node| node.operands.contains(&value));
    users.filter_map(|node| wish(planner, (index, function), value, node, seen)).next()
}

fn wish(
    planner: &Planner<'_>,
    (index, function): (usize, &FunctionGraph),
    value: usize,
    node: &Node,
    seen: &mut Vec<usize>,
) -> Option<Vec<usize>> {
    match &node.kind {
        Kind::Annotation(splits) => real(&planner.graph.grid, splits).into_iter().next(),
        Kind::Return if function.public => {
            let position = node.operands.iter().position(|&operand| operand == value)?;
            let port = &function.results[position];
            planner.parameter(index, &port.name, &port.r#type.shape)?.splits.into_iter().next()
        }
        Kind::Structured(structured) => {
            let position = node.operands.iter().position(|&operand| operand == value)?;
            let kept = structured.maps.get(position)?.first()? == structured.output().first()?;
            if kept { search(planner, index, node.results[0], seen) } else { None }
        }
        _ => None,
    }
}
