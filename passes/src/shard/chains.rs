//! Sums of scalars, such as the pieces of a gradient's norm: contributions are added first, so that the sum needs
//! one all-reduce and not one a piece.

use t3c_ir::{Ref, ScalarOp};

use super::graph::{FunctionGraph, Kind};

/// The order in which a function's operations are planned, and the sums of scalars among them.
#[derive(Debug)]
pub struct Order {
    /// Every node once. The additions of one sum stand together where the last of them stood.
    pub nodes: Vec<usize>,
    /// The additions of each sum, in order.
    pub sums: Vec<Vec<usize>>,
}

impl Order {
    /// Finds the sums of a function.
    pub fn of(function: &FunctionGraph) -> Self {
        let mut owner: Vec<Option<usize>> = vec![None; function.nodes.len()];
        let mut sums: Vec<Vec<usize>> = Vec::new();
        for node in (0..function.nodes.len()).rev().filter(|&node| is_scalar_sum(function, node)) {
            let result = function.nodes[node].results[0];
            let user = single_user(function, result).and_then(|user| owner[user]);
            let sum = user.unwrap_or_else(|| {
                sums.push(vec![]);
                sums.len() - 1
            });
            sums[sum].push(node);
            owner[node] = Some(sum);
        }
        sums.iter_mut().for_each(|sum| sum.reverse());
        let mut nodes = Vec::with_capacity(function.nodes.len());
        for (node, &sum) in owner.iter().enumerate() {
            match sum {
                None => nodes.push(node),
                Some(sum) if sums[sum].last() == Some(&node) => nodes.extend(&sums[sum]),
                Some(_) => {}
            }
        }
        sums.retain(|sum| sum.len() > 1);
        Self { nodes, sums }
    }

    /// The sum that begins with `node`.
    pub fn begins(&self, node: usize) -> Option<&[usize]> {
        self.sums.iter().find(|sum| sum[0] == node).map(Vec::as_slice)
    }
}

fn is_scalar_sum(function: &FunctionGraph, node: usize) -> bool {
    let node = &function.nodes[node];
    let Kind::Structured(structured) = &node.kind else { return false };
    let body = &structured.body;
    structured.maps.len() == 3
        && structured.iterators.is_empty()
        && body.insts.len() == 1
        && body.insts[0].op == ScalarOp::AddF
        && body.insts[0].operands == [Ref::Arg(0), Ref::Arg(1)]
        && body.yields == [Ref::Inst(0)]
}

fn single_user(function: &FunctionGraph, value: usize) -> Option<usize> {
    if function.values[value].uses != 1 {
        return None;
    }
    function.values[value].users.first().copied()
}

/// The operands of each addition of a sum, with its terms reordered so that those for which `first` holds come
/// first.
pub fn reorder(function: &FunctionGraph, sum: &[usize], first: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
    let inner: Vec<usize> = sum.iter().map(|&node| function.nodes[node].results[0]).collect();
    let mut terms: Vec<usize> = sum
        .iter()
        .flat_map(|&node| &function.nodes[node].operands[..2])
        .copied()
        .filter(|value| !inner.contains(value))
        .collect();
    terms.sort_by_key(|&value| !first(value));
    let mut terms = terms.into_iter();
    sum.iter()
        .map(|&node| {
            let operands = &function.nodes[node].operands;
            let term =
                |value: usize| if inner.contains(&value) { None } else { terms.next() }.unwrap_or(value);
            operands[..2].iter().copied().map(term).chain(operands[2..].iter().copied()).collect()
        })
        .collect()
}
