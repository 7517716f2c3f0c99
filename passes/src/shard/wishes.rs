//! What later operations would like a value to be: for what can be made in more than one way, such as the rows of a
//! lookup's gradient, or a dimension that is only broadcast.

use t3c_ir::{Iterator as Loop, Splits, splits};

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
    let users = function.values[value].users.iter().map(|&user| &function.nodes[user]);
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

/// The splits of the annotation or of the parameter that a value's only use gives it.
pub fn direct(planner: &Planner<'_>, index: usize, value: usize) -> Option<Splits> {
    let function = &planner.graph.functions[index];
    let [user] = function.values[value].users.as_slice() else { return None };
    let node = &function.nodes[*user];
    match &node.kind {
        Kind::Annotation(splits) => Some(real(&planner.graph.grid, splits)),
        Kind::Return if function.public => {
            let position = node.operands.iter().position(|&operand| operand == value)?;
            let port = &function.results[position];
            Some(planner.parameter(index, &port.name, &port.r#type.shape)?.splits)
        }
        _ => None,
    }
}

/// How the state lies that a gradient ends in, through work of elements and sums: of what it reaches, that which is
/// split most.
pub fn state(planner: &Planner<'_>, index: usize, value: usize) -> Option<Splits> {
    let function = &planner.graph.functions[index];
    let (mut pending, mut seen, mut best) = (vec![value], vec![], None);
    while let Some(value) = pending.pop() {
        if seen.contains(&value) {
            continue;
        }
        seen.push(value);
        for node in function.values[value].users.iter().map(|&user| &function.nodes[user]) {
            let Some(position) = node.operands.iter().position(|&operand| operand == value) else { continue };
            match &node.kind {
                Kind::Annotation(_) => pending.extend(&node.results),
                Kind::Structured(structured)
                    if structured.maps.get(position).is_some_and(|map| map == structured.output()) =>
                {
                    pending.extend(&node.results);
                }
                Kind::Return if function.public => {
                    let port = &function.results[position];
                    let like = planner.parameter(index, &port.name, &port.r#type.shape);
                    best = best
                        .into_iter()
                        .chain(like.map(|like| like.splits))
                        .max_by_key(|splits| splits.concat().len());
                }
                _ => {}
            }
        }
    }
    best
}

/// How far [`beside`] looks.
const DEPTH: usize = 8;

/// The axes of each dimension of a value that the operands beside it have where it is read, through elementwise
/// work; `made` gives the splits of values made so far.
pub fn beside(function: &FunctionGraph, value: usize, made: &impl Fn(usize) -> Option<Splits>) -> Splits {
    look(function, value, made, DEPTH)
}

fn look(
    function: &FunctionGraph,
    value: usize,
    made: &impl Fn(usize) -> Option<Splits>,
    depth: usize,
) -> Splits {
    let mut found = splits::whole(function.values[value].r#type.shape.len());
    let Some(depth) = depth.checked_sub(1) else { return found };
    for &user in &function.values[value].users {
        let node = &function.nodes[user];
        let Kind::Structured(structured) = &node.kind else { continue };
        let operands = node.operands[..structured.inputs()].iter().zip(&structured.maps);
        let (own, others): (Vec<_>, Vec<_>) = operands.partition(|(operand, _)| **operand == value);
        let Some((_, map)) = own.first() else { continue };
        let mut loops: Splits = splits::whole(structured.extents.len());
        for (&other, map) in others {
            fill(&mut loops, map, made(other).unwrap_or_default());
        }
        if structured.iterators.iter().all(|kind| *kind == Loop::Parallel) {
            fill(&mut loops, structured.output(), look(function, node.results[0], made, depth));
        }
        for (found, &at) in found.iter_mut().zip(*map).filter(|(found, _)| found.is_empty()) {
            found.clone_from(&loops[at]);
        }
    }
    found
}

/// Gives loops that have no axes yet those of the dimensions that run along them.
fn fill(loops: &mut Splits, map: &[usize], axes: Splits) {
    for (&at, axes) in map.iter().zip(axes).filter(|(at, _)| loops[**at].is_empty()).collect::<Vec<_>>() {
        loops[at] = axes;
    }
}
