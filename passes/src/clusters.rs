//! Which elementwise operations share a kernel: plain numbers, no MLIR.
//!
//! Operations get a *level*: it rises by one after every operation that runs alone (a product, a collective, a
//! call) and where a scalar meets a tensor. Those of one level that exchange values form a cluster. A path that
//! left a cluster and came back would cross a rise, so clusters never wait for each other in a circle.
//!
//! An operation that does not shrink what it reads takes the level of its first user instead of the first
//! possible one: it is computed where it is needed and not kept until then.

use std::{cmp::Reverse, collections::BinaryHeap};

use petgraph::unionfind::UnionFind;

/// How an operation may be combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Never: it is a step of its own.
    Alone,
    /// Makes a tensor.
    Tensor,
    /// Makes one number. It joins what it is computed from, but not what it scales: the updates of all
    /// parameters would hang together by their common factor.
    Scalar,
}

/// An operation, and the earlier ones whose results it uses.
#[derive(Clone, Debug)]
pub struct Node {
    /// How it may be combined.
    pub class: Class,
    /// Indices of earlier nodes.
    pub inputs: Vec<usize>,
    /// Whether its result is no smaller than what it reads.
    pub expands: bool,
}

/// The clusters in an order in which they can run, as close as possible to the given one; each lists its nodes
/// in the given order.
pub fn clusters(nodes: &[Node]) -> Vec<Vec<usize>> {
    let levels = levels(nodes);
    let mut sets = UnionFind::<usize>::new(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        for &input in &node.inputs {
            let share = nodes[input].class != Class::Alone && node.class != Class::Alone;
            if share && rise(nodes[input].class, node.class) == 0 && levels[input] == levels[index] {
                sets.union(input, index);
            }
        }
    }
    let labels = sets.into_labeling();
    in_order(nodes, &labels)
}

fn rise(from: Class, to: Class) -> u32 {
    u32::from(from == Class::Alone || (from == Class::Scalar && to == Class::Tensor))
}

fn levels(nodes: &[Node]) -> Vec<u32> {
    let mut levels: Vec<u32> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let after = |&input: &usize| levels[input] + rise(nodes[input].class, node.class);
        levels.push(node.inputs.iter().map(after).max().unwrap_or(0));
    }
    // Users come later in the list, so their levels are final when an operation's own is set.
    let mut latest: Vec<Option<u32>> = vec![None; nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        if let Some(level) = latest[index].filter(|_| node.expands && node.class != Class::Alone) {
            levels[index] = level;
        }
        for &input in &node.inputs {
            let level = levels[index] - rise(nodes[input].class, node.class);
            latest[input] = Some(latest[input].map_or(level, |known| known.min(level)));
        }
    }
    levels
}

/// Topological order of the clusters; of those that could run next, the one that ends first in the given order.
fn in_order(nodes: &[Node], labels: &[usize]) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); nodes.len()];
    for (index, &label) in labels.iter().enumerate() {
        members[label].push(index);
    }
    let mut waiting = vec![0usize; nodes.len()];
    let mut users = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for &input in node.inputs.iter().filter(|&&input| labels[input] != labels[index]) {
            users[labels[input]].push(labels[index]);
            waiting[labels[index]] += 1;
        }
    }
    let end = |label: usize| members[label].last().copied();
    let mut ready: BinaryHeap<Reverse<(usize, usize)>> = (0..nodes.len())
        .filter(|&label| waiting[label] == 0)
        .filter_map(|label| end(label).map(|last| Reverse((last, label))))
        .collect();
    let mut order = Vec::new();
    while let Some(Reverse((_, label))) = ready.pop() {
        order.push(members[label].clone());
        for &user in &users[label] {
            waiting[user] -= 1;
            if waiting[user] == 0
                && let Some(last) = end(user)
            {
                ready.push(Reverse((last, user)));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(class: Class, inputs: &[usize]) -> Node {
        Node { class, inputs: inputs.to_vec(), expands: true }
    }

    #[test]
    fn work_between_products_is_one_cluster() {
        use Class::{Alone, Tensor};
        let nodes = [
            node(Tensor, &[]),
            node(Tensor, &[0]),
            node(Alone, &[1]),
            node(Tensor, &[2, 0]),
            node(Tensor, &[3]),
        ];
        assert_eq!(clusters(&nodes), [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn a_cluster_around_an_independent_product_moves_before_its_user() {
        use Class::{Alone, Tensor};
        // 0 → 3 with the product 1 between them, which needs neither.
        let nodes = [node(Tensor, &[]), node(Alone, &[]), node(Alone, &[0]), node(Tensor, &[0])];
        assert_eq!(clusters(&nodes), [vec![1], vec![0, 3], vec![2]]);
    }

    #[test]
    fn a_common_factor_does_not_join_what_it_scales() {
        use Class::{Scalar, Tensor};
        let nodes = [node(Scalar, &[]), node(Scalar, &[0]), node(Tensor, &[1]), node(Tensor, &[1])];
        assert_eq!(clusters(&nodes), [vec![0, 1], vec![2], vec![3]]);
    }

    #[test]
    fn what_expands_is_computed_where_it_is_needed() {
        use Class::{Alone, Tensor};
        let mut nodes = [node(Tensor, &[]), node(Alone, &[]), node(Tensor, &[0, 1])];
        assert_eq!(clusters(&nodes), [vec![1], vec![0, 2]]);
        nodes[0].expands = false;
        assert_eq!(clusters(&nodes), [vec![0], vec![1], vec![2]]);
    }

    prop_compose! {
        fn graph()(raw in prop::collection::vec((0u8..3, any::<bool>(), prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 1..40)) -> Vec<Node> {
            raw.iter().enumerate().map(|(index, (class, expands, inputs))| Node {
                class: [Class::Alone, Class::Tensor, Class::Scalar][usize::from(*class)],
                expands: *expands,
                inputs: if index == 0 { vec![] } else { inputs.iter().map(|input| input.index(index)).collect() },
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn every_node_runs_once_after_its_inputs(nodes in graph()) {
            let order = clusters(&nodes);
            let flat: Vec<usize> = order.iter().flatten().copied().collect();
            let mut place = vec![usize::MAX; nodes.len()];
            for (at, &index) in flat.iter().enumerate() {
                prop_assert_eq!(place[index], usize::MAX);
                place[index] = at;
            }
            prop_assert_eq!(flat.len(), nodes.len());
            for (index, node) in nodes.iter().enumerate() {
                prop_assert!(node.inputs.iter().all(|&input| place[input] < place[index]));
            }
            for cluster in order.iter().filter(|cluster| cluster.len() > 1) {
                prop_assert!(cluster.iter().all(|&index| nodes[index].class != Class::Alone));
            }
        }
    }
}
