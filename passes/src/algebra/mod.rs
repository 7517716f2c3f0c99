//! The algebra around collectives, for `t3-simplify`: terms and what is known of them. Plain numbers; no MLIR.
//!
//! A term is a tensor on every device of the grid. Groups, scalar functions, layouts, cuts and values that the
//! algebra does not look into are numbers, given by [`Tables`]. The rules are in [`rules`], what a term costs in
//! [`cost`], and how the cheapest form is chosen in [`extract`].

pub mod cost;
pub mod extract;
pub mod rules;
pub mod scalar;
pub mod tables;

#[cfg(test)]
mod soundness;

use egg::{DidMerge, EGraph, Id, define_language};
use t3c_ir::{Element, TensorType};

pub use tables::{Cut, Layout, Leaf, Tables};

/// The number of a sum in the place of a reduction.
pub const SUM: u32 = 0;
/// The number of a maximum in the place of a reduction.
pub const MAX: u32 = 1;

define_language! {
    /// Terms, as text in the comments. `g` is a group, `d` a dimension, `r` a reduction.
    #[allow(missing_docs)]
    pub enum Term {
        // A group, dimension, reduction, function, layout, cut or value by its number.
        Num(u32),
        // `(value v)`: what the algebra does not look into.
        "value" = Value([Id; 1]),
        // `(gather g d x)`: the devices' parts of dimension `d`, one after the other.
        "gather" = Gather([Id; 3]),
        // `(slice g d x)`: the device's part of dimension `d`.
        "slice" = Slice([Id; 3]),
        // `(scatter g r d x)`: the device's part of all devices' `x`, reduced.
        "scatter" = Scatter([Id; 4]),
        // `(reduce g r x)`: all devices' `x`, reduced.
        "reduce" = Reduce([Id; 3]),
        // `(exchange g s c x)`: an all-to-all that splits dimension `s` and concatenates along `c`.
        "exchange" = Exchange([Id; 4]),
        // `(view m x)`: dimensions permuted and repeated, as layout `m` says.
        "view" = View([Id; 2]),
        // `(cut k x)`: a box of `x`, the same on every device.
        "cut" = Cut([Id; 2]),
        // `(map f x…)`: element by element of tensors of one shape.
        "map" = Map(Box<[Id]>),
    }
}

/// What is known of a class of equal terms.
#[derive(Clone, Debug, PartialEq)]
pub enum Facts {
    /// It is a number.
    Number(u32),
    /// It is a tensor.
    Tensor {
        /// Its type on one device.
        r#type: TensorType,
        /// Grid axes, one bit each, along which all devices hold the same.
        same: u64,
    },
}

/// An e-graph of the algebra.
pub type Graph = EGraph<Term, Tables>;

impl egg::Analysis<Term> for Tables {
    type Data = Facts;

    fn make(graph: &mut Graph, term: &Term, _id: Id) -> Facts {
        facts(graph, term)
    }

    fn merge(&mut self, known: &mut Facts, other: Facts) -> DidMerge {
        match (known, other) {
            (Facts::Tensor { same: known, r#type }, Facts::Tensor { same: other, r#type: other_type }) => {
                debug_assert_eq!(*r#type, other_type, "equal terms have one type");
                let both = *known | other;
                let changed = DidMerge(both != *known, both != other);
                *known = both;
                changed
            }
            _ => DidMerge(false, false),
        }
    }
}

/// The number that a class stands for.
pub fn number(graph: &Graph, id: Id) -> u32 {
    match graph[id].data {
        Facts::Number(number) => number,
        Facts::Tensor { .. } => 0,
    }
}

/// The type of a tensor.
pub fn type_of(graph: &Graph, id: Id) -> TensorType {
    tensor(graph, id).0
}

/// Bytes of a tensor.
pub fn bytes(graph: &Graph, id: Id) -> f64 {
    match &graph[id].data {
        Facts::Tensor { r#type, .. } => r#type.elements() as f64 * r#type.element.bytes() as f64,
        Facts::Number(_) => 0.0,
    }
}

/// Whether all devices of a group hold the same tensor.
pub fn is_same(graph: &Graph, group: u32, id: Id) -> bool {
    let axes = graph.analysis.mask(group);
    matches!(graph[id].data, Facts::Tensor { same, .. } if same & axes == axes)
}

fn tensor(graph: &Graph, id: Id) -> (TensorType, u64) {
    match &graph[id].data {
        Facts::Tensor { r#type, same } => (r#type.clone(), *same),
        Facts::Number(_) => (TensorType::new([], Element::F32), 0),
    }
}

fn scale(r#type: &mut TensorType, dimension: u32, change: impl Fn(u64) -> u64) {
    if let Some(extent) = r#type.shape.get_mut(dimension as usize) {
        *extent = change(*extent);
    }
}

/// Only well-typed terms are built: from verified operations, and by rules that keep types.
fn facts(graph: &Graph, term: &Term) -> Facts {
    let tables = &graph.analysis;
    let n = |id: Id| number(graph, id);
    let devices = |g: Id| u64::from(tables.devices(n(g)));
    let (r#type, same) = match term {
        Term::Num(number) => return Facts::Number(*number),
        Term::Value([value]) => {
            let leaf = &tables.values[n(*value) as usize];
            (leaf.r#type.clone(), leaf.same)
        }
        Term::Gather([g, d, x]) => {
            let (mut r#type, same) = tensor(graph, *x);
            scale(&mut r#type, n(*d), |extent| extent * devices(*g));
            (r#type, same | tables.mask(n(*g)))
        }
        Term::Slice([g, d, x]) | Term::Scatter([g, _, d, x]) => {
            let (mut r#type, same) = tensor(graph, *x);
            scale(&mut r#type, n(*d), |extent| extent / devices(*g));
            (r#type, same & !tables.mask(n(*g)))
        }
        Term::Reduce([g, _, x]) => {
            let (r#type, same) = tensor(graph, *x);
            (r#type, same | tables.mask(n(*g)))
        }
        Term::Exchange([g, s, c, x]) => {
            let (mut r#type, same) = tensor(graph, *x);
            scale(&mut r#type, n(*s), |extent| extent / devices(*g));
            scale(&mut r#type, n(*c), |extent| extent * devices(*g));
            (r#type, same & !tables.mask(n(*g)))
        }
        Term::View([m, x]) => {
            let (r#type, same) = tensor(graph, *x);
            (tables.layouts[n(*m) as usize].of(&r#type), same)
        }
        Term::Cut([k, x]) => {
            let (r#type, same) = tensor(graph, *x);
            let sizes = tables.cuts[n(*k) as usize].sizes.clone();
            (TensorType::new(sizes, r#type.element), same)
        }
        Term::Map(operands) => {
            let body = &tables.functions[n(operands[0]) as usize];
            let shape = operands.get(1).map(|x| tensor(graph, *x).0.shape).unwrap_or_default();
            let same = operands[1..].iter().fold(u64::MAX, |same, x| same & tensor(graph, *x).1);
            (TensorType::new(shape, body.element(body.yields[0])), same)
        }
    };
    Facts::Tensor { r#type, same }
}
