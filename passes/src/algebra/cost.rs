//! What a choice of terms costs: bytes over links, bytes through memory, arithmetic; all in bytes of memory
//! traffic of one device.

use egg::Id;

use super::{Facts, Graph, Term, bytes, number};

/// How many bytes of memory traffic one byte on a link is worth: 1 TB/s against 150 GB/s on the paper's machine,
/// and no machine has faster links than memory.
const LINK: f64 = 7.0;

/// How many bytes of memory traffic one scalar operation is worth: elementwise work is seldom bound by it.
const OPERATION: f64 = 0.05;

/// Costs in one e-graph.
pub struct Costs<'g>(pub &'g Graph);

impl Costs<'_> {
    /// The cost of one operation without its operands'. `through` gives the tensor that an operand is a view of,
    /// for operands of elementwise work that need not be stored.
    pub fn of(&self, term: &Term, through: &dyn Fn(Id) -> Id) -> f64 {
        let graph = self.0;
        let devices = |g: Id| f64::from(graph.analysis.devices(number(graph, g)).max(1));
        // The share of a whole that comes from others.
        let others = |g: Id| (devices(g) - 1.0) / devices(g);
        // Every operation costs something, so that none is free to repeat.
        1.0 + match term {
            Term::Num(_) | Term::Value(_) => -1.0,
            Term::Gather([g, _, x]) => {
                let whole = bytes(graph, *x) * devices(*g);
                LINK * whole * others(*g) + bytes(graph, *x) + whole
            }
            Term::Scatter([g, _, _, x]) => {
                let whole = bytes(graph, *x);
                LINK * whole * others(*g) + whole + whole / devices(*g)
            }
            Term::Reduce([g, _, x]) => 2.0 * LINK * bytes(graph, *x) * others(*g) + 2.0 * bytes(graph, *x),
            Term::Exchange([g, _, _, x]) => LINK * bytes(graph, *x) * others(*g) + 2.0 * bytes(graph, *x),
            Term::Slice([g, _, x]) => 2.0 * bytes(graph, *x) / devices(*g),
            Term::View([m, x]) => {
                let layout = &graph.analysis.layouts[number(graph, *m) as usize];
                let repeated = layout.extents.iter().enumerate().filter(|(d, _)| layout.source(*d).is_none());
                let times: f64 = repeated.map(|(_, extent)| *extent as f64).product();
                bytes(graph, *x) * (1.0 + times)
            }
            Term::Cut([k, x]) => {
                let sizes = &graph.analysis.cuts[number(graph, *k) as usize].sizes;
                let elements: f64 = sizes.iter().map(|size| *size as f64).product();
                2.0 * elements * element_bytes(graph, *x)
            }
            Term::Map(operands) => {
                let body = &graph.analysis.functions[number(graph, operands[0]) as usize];
                let elements = operands.get(1).map_or(0.0, |x| bytes(graph, *x) / element_bytes(graph, *x));
                let read: f64 = operands[1..].iter().map(|x| bytes(graph, through(*x))).sum();
                let result = body.element(body.yields[0]).bytes() as f64;
                read + elements * (result + OPERATION * body.flops() as f64)
            }
        }
    }
}

fn element_bytes(graph: &Graph, id: Id) -> f64 {
    match &graph[id].data {
        Facts::Tensor { r#type, .. } => r#type.element.bytes() as f64,
        Facts::Number(_) => 1.0,
    }
}
