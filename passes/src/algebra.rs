//! The algebra around collectives, for `t3-simplify`: terms, rules and what a term costs. Plain numbers; no MLIR.
//!
//! A term is a tensor on every device of the grid. Groups, dimensions, scalar functions and values that the
//! algebra does not look into are numbers, given by tables that the pass keeps.

use std::collections::BTreeSet;

use egg::{CostFunction, DidMerge, EGraph, Id, Language, Rewrite, Subst, Var, define_language, rewrite};
use t3c_ir::{Element, TensorType};

define_language! {
    /// Terms, as text in the comments. `g` is a group, `d` a dimension, `f` a function of one element or of two.
    #[allow(missing_docs)]
    pub enum Term {
        // A group, dimension, function or value by its number.
        Num(u32),
        // `(value v)`: what the algebra does not look into.
        "value" = Value([Id; 1]),
        // `(gather g d x)`: the devices' parts of dimension `d`, one after the other.
        "gather" = Gather([Id; 3]),
        // `(slice g d x)`: the device's part of dimension `d`.
        "slice" = Slice([Id; 3]),
        // `(scatter g d x)`: the device's part of the sum of all devices' `x`.
        "scatter" = Scatter([Id; 3]),
        // `(reduce g x)`: the sum of all devices' `x`.
        "reduce" = Reduce([Id; 2]),
        // `(map f x)`: element by element.
        "map" = Map([Id; 2]),
        // `(zip f x y)`: element by element of two tensors of one shape.
        "zip" = Zip([Id; 3]),
    }
}

/// The tables behind the numbers of terms.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Devices of each group.
    pub devices: Vec<u32>,
    /// Element type of each function's result.
    pub elements: Vec<Element>,
    /// The type of each value.
    pub values: Vec<TensorType>,
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
        /// Groups whose devices all hold the same.
        same_in: BTreeSet<u32>,
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
            (Facts::Tensor { same_in: known, .. }, Facts::Tensor { same_in: other, .. }) => {
                let before = known.len();
                known.extend(other.iter().copied());
                DidMerge(known.len() > before, known.len() > other.len())
            }
            _ => DidMerge(false, false),
        }
    }
}

fn number(graph: &Graph, id: Id) -> u32 {
    match graph[id].data {
        Facts::Number(number) => number,
        Facts::Tensor { .. } => 0,
    }
}

fn tensor(graph: &Graph, id: Id) -> (TensorType, BTreeSet<u32>) {
    match &graph[id].data {
        Facts::Tensor { r#type, same_in } => (r#type.clone(), same_in.clone()),
        Facts::Number(_) => (TensorType::new([], Element::F32), BTreeSet::new()),
    }
}

fn facts(graph: &Graph, term: &Term) -> Facts {
    let tables = &graph.analysis;
    let group_of = |id: Id| (number(graph, id), u64::from(tables.devices[number(graph, id) as usize]));
    let (r#type, same_in) = match *term {
        Term::Num(number) => return Facts::Number(number),
        Term::Value([value]) => (tables.values[number(graph, value) as usize].clone(), BTreeSet::new()),
        Term::Gather([g, d, x]) => {
            let ((group, devices), (mut r#type, mut same_in)) = (group_of(g), tensor(graph, x));
            r#type.shape[number(graph, d) as usize] *= devices;
            same_in.insert(group);
            (r#type, same_in)
        }
        Term::Slice([g, d, x]) | Term::Scatter([g, d, x]) => {
            let ((_, devices), (mut r#type, _)) = (group_of(g), tensor(graph, x));
            r#type.shape[number(graph, d) as usize] /= devices;
            (r#type, BTreeSet::new())
        }
        Term::Reduce([g, x]) => {
            let ((group, _), (r#type, mut same_in)) = (group_of(g), tensor(graph, x));
            same_in.insert(group);
            (r#type, same_in)
        }
        Term::Map([f, x]) => {
            let (mut r#type, same_in) = tensor(graph, x);
            r#type.element = tables.elements[number(graph, f) as usize];
            (r#type, same_in)
        }
        Term::Zip([f, x, y]) => {
            let ((mut r#type, left), (_, right)) = (tensor(graph, x), tensor(graph, y));
            r#type.element = tables.elements[number(graph, f) as usize];
            (r#type, left.intersection(&right).copied().collect())
        }
    };
    Facts::Tensor { r#type, same_in }
}

/// The rules. Each keeps every bit of the result, given the order of addition of the collective that it leaves,
/// and names the same values on both sides.
pub fn rules() -> Vec<Rewrite<Term, Tables>> {
    vec![
        // Each device gets back the part that it gave.
        rewrite!("gather-then-slice"; "(slice ?g ?d (gather ?g ?d ?x))" => "?x"),
        // Only where all devices hold the same: else the parts belong to different wholes.
        rewrite!("slice-then-gather"; "(gather ?g ?d (slice ?g ?d ?x))" => "?x" if is_same("?g", "?x")),
        // A sum of which each device keeps its part.
        rewrite!("reduce-then-slice"; "(slice ?g ?d (reduce ?g ?x))" => "(scatter ?g ?d ?x)"),
        // Work on a part costs less than on the whole; a cast moves to the side of the narrower type.
        rewrite!("map-before-gather"; "(map ?f (gather ?g ?d ?x))" => "(gather ?g ?d (map ?f ?x))"),
        rewrite!("map-after-gather"; "(gather ?g ?d (map ?f ?x))" => "(map ?f (gather ?g ?d ?x))"),
        rewrite!("slice-before-map"; "(slice ?g ?d (map ?f ?x))" => "(map ?f (slice ?g ?d ?x))"),
        // One gather instead of two.
        rewrite!("zip-before-gather"; "(zip ?f (gather ?g ?d ?x) (gather ?g ?d ?y))" => "(gather ?g ?d (zip ?f ?x ?y))"),
        rewrite!("slice-before-zip"; "(slice ?g ?d (zip ?f ?x ?y))" => "(zip ?f (slice ?g ?d ?x) (slice ?g ?d ?y))"),
    ]
}

/// Whether all devices of the group hold the same value.
fn is_same(group: &str, value: &str) -> impl Fn(&mut Graph, Id, &Subst) -> bool + use<> {
    let variable = |name: &str| name.parse::<Var>().ok();
    let (group, value) = (variable(group), variable(value));
    move |graph, _, found| {
        let (Some(group), Some(value)) = (group, value) else { return false };
        let group = number(graph, found[group]);
        matches!(&graph[found[value]].data, Facts::Tensor { same_in, .. } if same_in.contains(&group))
    }
}

/// How many bytes of memory traffic one byte on a link is worth: 1 TB/s against 150 GB/s on the paper's machine,
/// and no machine has faster links than memory.
const LINK: f64 = 7.0;

/// The cost of a term, in bytes of memory traffic on one device.
pub struct Bytes<'g>(pub &'g Graph);

impl Bytes<'_> {
    /// The cost of one operation, without its operands'.
    pub fn own(&self, term: &Term) -> f64 {
        let graph = self.0;
        let bytes = |id: Id| {
            let r#type = tensor(graph, id).0;
            (r#type.elements() * r#type.element.bytes()) as f64
        };
        let devices = |id: Id| f64::from(graph.analysis.devices[number(graph, id) as usize].max(1));
        // Every operation costs something, so that none is free to repeat.
        1.0 + match *term {
            Term::Num(_) | Term::Value(_) => -1.0,
            Term::Gather([g, _, x]) => {
                let (part, devices) = (bytes(x), devices(g));
                LINK * part * (devices - 1.0) + part * (devices + 1.0)
            }
            Term::Scatter([g, _, x]) => {
                let part = bytes(x) / devices(g);
                LINK * part * (devices(g) - 1.0) + bytes(x) + part
            }
            Term::Reduce([g, x]) => 2.0 * LINK * bytes(x) * (devices(g) - 1.0) / devices(g) + 2.0 * bytes(x),
            Term::Slice([g, _, x]) => 2.0 * bytes(x) / devices(g),
            Term::Map([f, x]) => bytes(x) + self.result(f, x),
            Term::Zip([f, x, y]) => bytes(x) + bytes(y) + self.result(f, x),
        }
    }

    fn result(&self, function: Id, operand: Id) -> f64 {
        let element = self.0.analysis.elements[number(self.0, function) as usize];
        (tensor(self.0, operand).0.elements() * element.bytes()) as f64
    }
}

impl CostFunction<Term> for Bytes<'_> {
    type Cost = f64;

    fn cost<C: FnMut(Id) -> f64>(&mut self, term: &Term, mut costs: C) -> f64 {
        term.fold(self.own(term), |sum, operand| sum + costs(operand))
    }
}

#[cfg(test)]
mod tests {
    use egg::{Extractor, RecExpr, Runner};

    use super::*;

    fn tables() -> Tables {
        let value = |shape: &[u64], element| TensorType::new(shape, element);
        Tables {
            devices: vec![4],
            elements: vec![Element::F32, Element::Bf16],
            values: vec![
                value(&[8, 6], Element::F32),
                value(&[2, 6], Element::F32),
                value(&[2, 6], Element::Bf16),
            ],
        }
    }

    fn simplest(text: &str) -> String {
        let start: RecExpr<Term> = text.parse().unwrap();
        let runner = Runner::<Term, Tables>::new(tables()).with_expr(&start).run(&rules());
        let extractor = Extractor::new(&runner.egraph, Bytes(&runner.egraph));
        extractor.find_best(runner.roots[0]).1.to_string()
    }

    #[test]
    fn each_rule_applies_where_it_should() {
        for (before, after) in [
            ("(slice 0 0 (gather 0 0 (value 1)))", "(value 1)"),
            ("(slice 0 1 (gather 0 0 (value 1)))", "(slice 0 1 (gather 0 0 (value 1)))"),
            // An argument may differ from device to device; a sum does not.
            ("(gather 0 0 (slice 0 0 (value 0)))", "(gather 0 0 (slice 0 0 (value 0)))"),
            ("(gather 0 0 (slice 0 0 (reduce 0 (value 0))))", "(reduce 0 (value 0))"),
            ("(slice 0 0 (reduce 0 (value 0)))", "(scatter 0 0 (value 0))"),
            ("(map 0 (gather 0 0 (value 1)))", "(gather 0 0 (map 0 (value 1)))"),
            (
                "(zip 0 (gather 0 0 (value 1)) (gather 0 0 (value 2)))",
                "(gather 0 0 (zip 0 (value 1) (value 2)))",
            ),
            // Casts: narrow before the gather, widen after it.
            ("(map 1 (gather 0 0 (value 1)))", "(gather 0 0 (map 1 (value 1)))"),
            ("(gather 0 0 (map 0 (value 2)))", "(map 0 (gather 0 0 (value 2)))"),
            ("(slice 0 0 (map 0 (reduce 0 (value 0))))", "(map 0 (scatter 0 0 (value 0)))"),
        ] {
            assert_eq!(simplest(before), after, "{before}");
        }
    }
}
