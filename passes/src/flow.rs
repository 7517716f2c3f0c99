//! Who uses whose results in one block: the graph on which pairs are found and moved into regions.

use std::collections::{HashMap, HashSet};

use melior::ir::{BlockLike, ValueLike, operation::OperationLike};
use petgraph::{
    graph::{DiGraph, NodeIndex},
    visit::Dfs,
};
use t3c_ir::{Blk, Op, Val, ffi, walk};

/// The operations of a block as a graph: an edge from the maker of a value to each operation that reads it, itself
/// or in its body.
pub struct Flow<'c, 'a> {
    /// The module, for symbols.
    pub module: Op<'c, 'a>,
    graph: DiGraph<Op<'c, 'a>, ()>,
    nodes: HashMap<usize, NodeIndex>,
    arguments: HashSet<usize>,
}

impl<'c, 'a> Flow<'c, 'a> {
    /// The graph of `block`.
    pub fn of(module: Op<'c, 'a>, block: Blk<'c, 'a>) -> Self {
        let mut graph = DiGraph::new();
        let operations = walk::operations(block);
        let nodes: HashMap<usize, NodeIndex> =
            operations.iter().map(|op| (ffi::op_key(*op), graph.add_node(*op))).collect();
        let arguments = (0..block.argument_count()).filter_map(|index| block.argument(index).ok());
        let arguments = arguments.map(|argument| ffi::value_key(argument.into())).collect();
        let mut flow = Self { module, graph, nodes, arguments };
        for user in operations {
            let owners: Vec<Op<'c, 'a>> =
                flow.reads(user).into_iter().filter_map(|value| flow.owner(value)).collect();
            for owner in owners {
                let (owner, user) = (flow.nodes[&ffi::op_key(owner)], flow.nodes[&ffi::op_key(user)]);
                flow.graph.update_edge(owner, user, ());
            }
        }
        flow
    }

    /// In program order.
    pub fn operations(&self) -> impl Iterator<Item = Op<'c, 'a>> {
        self.graph.node_weights().copied()
    }

    /// The operation of the block that makes `value`.
    pub fn owner(&self, value: Val<'c, 'a>) -> Option<Op<'c, 'a>> {
        ffi::value_owner(value).filter(|op| self.nodes.contains_key(&ffi::op_key(*op)))
    }

    /// The distinct values of the block that `op` reads, as operands or in its body.
    pub fn reads(&self, op: Op<'c, 'a>) -> Vec<Val<'c, 'a>> {
        let mut read: Vec<Val<'c, 'a>> = Vec::new();
        for value in walk::walk(op).into_iter().flat_map(|inner| inner.operands().collect::<Vec<_>>()) {
            let known = self.owner(value).is_some() || self.arguments.contains(&ffi::value_key(value));
            if known && !read.contains(&value) {
                read.push(value);
            }
        }
        read
    }

    /// The distinct operations of the block that read `value`, as operands or in their bodies.
    pub fn users(&self, value: Val<'c, 'a>) -> Vec<Op<'c, 'a>> {
        let mut users: Vec<Op<'c, 'a>> = Vec::new();
        for (user, _) in ffi::uses(value) {
            let mut holder = Some(user);
            while let Some(op) = holder.filter(|op| !self.nodes.contains_key(&ffi::op_key(*op))) {
                holder = ffi::parent(op);
            }
            users.extend(holder.filter(|op| !users.iter().any(|known| ffi::same_op(*known, *op))));
        }
        users
    }

    /// Everything that needs a result of `starts`, directly or not, by key.
    pub fn dependents(&self, starts: &[Op<'c, 'a>]) -> HashSet<usize> {
        let mut found = HashSet::new();
        for start in starts {
            let mut search = Dfs::new(&self.graph, self.nodes[&ffi::op_key(*start)]);
            while let Some(node) = search.next(&self.graph) {
                found.insert(ffi::op_key(self.graph[node]));
            }
        }
        starts.iter().for_each(|start| {
            found.remove(&ffi::op_key(*start));
        });
        found
    }

    /// Whether a region can hold `op`: all that it reads are tensors, or cheap enough to repeat inside.
    pub fn is_movable(&self, op: Op<'c, 'a>) -> bool {
        self.reads(op).into_iter().all(|value| is_tensor(value) || self.owner(value).is_some_and(is_source))
    }
}

/// Whether an operation is cheap to repeat wherever its result is used: a constant, an empty tensor, a fill of a
/// constant.
pub fn is_source(op: Op<'_, '_>) -> bool {
    let is = |name| walk::is(op, name);
    let of_sources = || op.operands().all(|value| ffi::value_owner(value).is_some_and(is_source));
    is("arith.constant") || is("tensor.empty") || (is("linalg.fill") && of_sources())
}

/// Whether a value is a tensor.
pub fn is_tensor(value: Val<'_, '_>) -> bool {
    value.r#type().to_string().starts_with("tensor<")
}
