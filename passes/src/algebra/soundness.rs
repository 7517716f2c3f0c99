//! Every rule on random tensors over all devices: its left side, made by the rule's own generator, and every right
//! side that it gives are written as operations and interpreted. Exact rules agree bit for bit in f32, the others
//! to 1e-12 in f64.

use std::collections::HashMap;

use egg::{Id, Language, RecExpr, Runner};
use t3c_ir::{
    Builder, Context, Element, Location, Ref, ScalarBody, ScalarOp, TensorType,
    function::{Function, Port, Signature, add_function, add_grid},
    interpreter::{Interpreter, Tensor},
};
use t3c_schedule::{Axis, Grid};

use super::{
    Cut, Graph, Layout, Leaf, Tables, Term,
    extract::{Choice, trees},
    rules::{Exactness, OPERANDS, Rule, all},
    tables::mask,
    type_of,
};
use crate::simplify::write::{Place, Writer};

/// Makes an instance of a rule's left side.
pub type Sample = fn(&mut Sampler) -> String;

/// Random terms over the tables that it fills.
pub struct Sampler {
    state: u64,
    tables: Tables,
    element: Element,
    shape: Vec<u64>,
    /// Where the dimensions of the last view came from.
    view: (Vec<usize>, usize),
    /// Whether sums come out alike in any order.
    integers: bool,
}

impl Sampler {
    fn new(seed: u64, element: Element) -> Self {
        let mut sampler = Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
            tables: Tables::default(),
            element,
            shape: vec![],
            view: (vec![], 0),
            integers: false,
        };
        sampler.tables.axes = [vec![2, 2], vec![2, 3], vec![3, 2]][sampler.below(3)].clone();
        let rank = 2 + sampler.below(2);
        sampler.rank(rank);
        sampler
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) as usize) % bound.max(1)
    }

    /// Gives values this many dimensions, each divided by the whole grid.
    pub fn rank(&mut self, rank: usize) {
        let devices: u64 = self.tables.axes.iter().map(|axis| u64::from(*axis)).product();
        self.shape = (0..rank).map(|_| devices * (1 + self.below(2) as u64)).collect();
    }

    /// Makes all elements small integers.
    pub fn integers(&mut self) {
        self.integers = true;
    }

    fn grouped(&mut self, axes: &[usize]) -> String {
        self.tables.group(axes).to_string()
    }

    /// A group along one axis or both, in either order.
    pub fn group(&mut self) -> String {
        let axes: &[usize] = [&[0][..], &[1], &[0, 1], &[1, 0]][self.below(4)];
        self.grouped(axes)
    }

    /// A group of one device.
    pub fn alone(&mut self) -> String {
        self.grouped(&[])
    }

    /// Two groups along different axes.
    pub fn groups(&mut self) -> (String, String) {
        let first = self.below(2);
        (self.grouped(&[first]), self.grouped(&[1 - first]))
    }

    /// A group along both axes.
    pub fn joint(&mut self) -> String {
        let first = self.below(2);
        self.grouped(&[first, 1 - first])
    }

    /// A dimension.
    pub fn dimension(&mut self) -> String {
        self.below(self.shape.len()).to_string()
    }

    /// Two different dimensions.
    pub fn dimensions(&mut self) -> (String, String) {
        let (first, rank) = (self.below(self.shape.len()), self.shape.len());
        let second = (first + 1 + self.below(rank - 1)) % rank;
        (first.to_string(), second.to_string())
    }

    /// A sum or a maximum.
    pub fn reduction(&mut self) -> String {
        self.below(2).to_string()
    }

    fn leaf(&mut self, shape: Vec<u64>, same: u64) -> String {
        self.tables.values.push(Leaf { r#type: TensorType::new(shape, self.element), same });
        format!("(value {})", self.tables.values.len() - 1)
    }

    /// A value that differs from device to device.
    pub fn value(&mut self) -> String {
        self.leaf(self.shape.clone(), 0)
    }

    fn axes(&self, group: &str) -> u64 {
        mask(&self.tables.groups[group.parse::<usize>().unwrap()])
    }

    /// A value that is the same on all devices of a group.
    pub fn same(&mut self, group: &str) -> String {
        self.leaf(self.shape.clone(), self.axes(group))
    }

    /// As [`Sampler::same`], as large as a gather along the dimension.
    pub fn same_whole(&mut self, group: &str, dimension: &str) -> String {
        let mut shape = self.shape.clone();
        shape[dimension.parse::<usize>().unwrap()] *= u64::from(self.tables.devices(group.parse().unwrap()));
        self.leaf(shape, self.axes(group))
    }

    /// How many operands elementwise work has.
    pub fn count(&mut self) -> usize {
        1 + self.below(OPERANDS)
    }

    fn function(&mut self, arguments: usize, make: impl FnOnce(&mut ScalarBody) -> Ref) -> String {
        let mut body = ScalarBody::new(vec![self.element; arguments + 1]);
        let value = make(&mut body);
        self.tables.function(body.yield_(value)).to_string()
    }

    /// Some function.
    pub fn map(&mut self, arguments: usize) -> String {
        let op = [ScalarOp::Tanh, ScalarOp::Exp, ScalarOp::NegF][self.below(3)];
        self.function(arguments, |body| {
            let first = body.unary(op, Ref::Arg(0));
            (1..arguments).fold(first, |sum, index| {
                let product = body.mul(sum, Ref::Arg(index));
                body.add(product, Ref::Arg(0))
            })
        })
    }

    /// Some function of values.
    pub fn map_of_values(&mut self) -> String {
        let count = self.count();
        let f = self.map(count);
        self.applied(&f, count)
    }

    fn applied(&mut self, f: &str, count: usize) -> String {
        let operands: Vec<String> = (0..count).map(|_| self.value()).collect();
        format!("(map {f} {})", operands.join(" "))
    }

    /// `Σ cᵢ·xᵢ`.
    pub fn linear(&mut self, arguments: usize) -> String {
        let element = self.element;
        let factors: Vec<f64> = (0..arguments).map(|_| self.below(7) as f64 - 2.5).collect();
        self.function(arguments, |body| {
            let mut terms = factors.iter().enumerate().map(|(index, factor)| (Ref::Arg(index), *factor));
            let scaled = |body: &mut ScalarBody, (x, factor): (Ref, f64)| {
                let factor = body.constant(factor, element);
                body.mul(x, factor)
            };
            let first = terms.next().map(|term| scaled(body, term)).unwrap();
            terms.fold(first, |sum, term| {
                let term = scaled(body, term);
                body.sub(sum, term)
            })
        })
    }

    /// As [`Sampler::linear`], of values.
    pub fn linear_of_values(&mut self) -> String {
        let count = self.count();
        let f = self.linear(count);
        self.applied(&f, count)
    }

    /// What changes places with a reduction bit by bit: ±2ᵏ for a sum, a monotone function for a maximum.
    pub fn scaling(&mut self, reduction: &str) -> String {
        let (element, exponent) = (self.element, self.below(9) as i32 - 4);
        if reduction == "0" {
            let factor = if self.below(2) == 0 { 2f64.powi(exponent) } else { -(2f64.powi(exponent)) };
            return self.function(1, |body| {
                let factor = body.constant(factor, element);
                body.mul(Ref::Arg(0), factor)
            });
        }
        let op = [ScalarOp::MulF, ScalarOp::AddF, ScalarOp::DivF, ScalarOp::SubF][self.below(4)];
        self.function(1, |body| {
            let constant = body.constant(0.3, element);
            body.binary(op, Ref::Arg(0), constant)
        })
    }

    /// What a maximum changes places with, where the other operand is the same everywhere.
    pub fn shift(&mut self) -> String {
        let op = [ScalarOp::AddF, ScalarOp::SubF, ScalarOp::MaxF, ScalarOp::MinF][self.below(4)];
        self.function(2, |body| body.binary(op, Ref::Arg(0), Ref::Arg(1)))
    }

    /// A product or a quotient.
    pub fn factor(&mut self) -> String {
        let op = [ScalarOp::MulF, ScalarOp::DivF][self.below(2)];
        self.function(2, |body| body.binary(op, Ref::Arg(0), Ref::Arg(1)))
    }

    /// A product.
    pub fn product(&mut self) -> String {
        self.function(2, |body| body.mul(Ref::Arg(0), Ref::Arg(1)))
    }

    fn shuffled(&mut self, rank: usize) -> Vec<usize> {
        let mut map: Vec<usize> = (0..rank).collect();
        (1..rank).for_each(|at| map.swap(at, self.below(at + 1)));
        map
    }

    /// The identity.
    pub fn identity(&mut self) -> String {
        let layout = Layout { map: (0..self.shape.len()).collect(), extents: vec![0; self.shape.len()] };
        self.tables.layout(layout).to_string()
    }

    /// Dimensions of a value in another order.
    pub fn permutation(&mut self) -> String {
        self.permutation_of(self.shape.len())
    }

    /// As [`Sampler::permutation`], of this many dimensions.
    pub fn permutation_of(&mut self, rank: usize) -> String {
        let map = self.shuffled(rank);
        self.tables.layout(Layout { map, extents: vec![0; rank] }).to_string()
    }

    /// Dimensions of a value in another order, and one that repeats.
    pub fn broadcast(&mut self) -> String {
        let rank = self.shape.len() + 1;
        let mut map = self.shuffled(rank);
        let repeated = map.pop().unwrap();
        let mut extents = vec![0; rank];
        extents[repeated] = self.shape[0];
        self.view = (map.clone(), repeated);
        self.tables.layout(Layout { map, extents }).to_string()
    }

    /// Dimensions of the last view.
    pub fn viewed_rank(&self) -> usize {
        self.view.0.len() + 1
    }

    /// A dimension of the last view that is one of the value's.
    pub fn viewed(&mut self) -> String {
        let at = self.below(self.view.0.len());
        self.view.0[at].to_string()
    }

    /// The dimension of the last view that repeats.
    pub fn repeated(&self) -> String {
        self.view.1.to_string()
    }

    /// A box of a term, whole but for one dimension.
    pub fn cut_of(&mut self, term: &str, dimension: &str) -> String {
        let mut graph = Graph::new(self.tables.clone());
        let id = graph.add_expr(&term.parse().unwrap());
        let mut sizes = type_of(&graph, id).shape;
        let at: usize = dimension.parse().unwrap();
        let (mut offsets, mut strides) = (vec![0; sizes.len()], vec![1; sizes.len()]);
        strides[at] = 1 + self.below(2) as u64;
        offsets[at] = self.below(2) as u64;
        sizes[at] = (sizes[at] - offsets[at]).div_ceil(strides[at]);
        self.tables.cut(Cut { offsets, sizes, strides }).to_string()
    }

    fn grid(&self) -> Grid {
        let axis = |(index, size): (usize, &u32)| Axis { name: format!("a{index}"), size: *size };
        Grid { axes: self.tables.axes.iter().enumerate().map(axis).collect() }
    }

    /// Each device's values.
    fn inputs(&self) -> Vec<Vec<Tensor>> {
        let grid = self.grid();
        let input = |device: u32, number: usize, leaf: &Leaf| {
            let coordinates = grid.coordinates(device);
            let place = coordinates.iter().enumerate().fold(0, |place, (axis, coordinate)| {
                place * 16 + if leaf.same >> axis & 1 == 1 { 0 } else { u64::from(*coordinate) + 1 }
            });
            let seed = place * 1000 + number as u64;
            match self.integers {
                true => Tensor::random_below(&leaf.r#type, 64, seed).unwrap(),
                false => Tensor::random(&leaf.r#type, seed).unwrap(),
            }
        };
        let values =
            |device| self.tables.values.iter().enumerate().map(move |(n, leaf)| input(device, n, leaf));
        (0..grid.devices()).map(|device| values(device).collect()).collect()
    }
}

/// What the chosen terms compute, on every device.
fn interpret(
    context: &Context,
    sampler: &Sampler,
    graph: &Graph,
    choice: &Choice,
    root: Id,
) -> Vec<Vec<f64>> {
    let location = Location::unknown(context.mlir());
    let module = context.module(location);
    add_grid(&module, "grid", &sampler.grid()).unwrap();
    let port = |leaf: &Leaf| Port::new("", leaf.r#type.clone());
    let signature = Signature {
        name: "f".into(),
        arguments: sampler.tables.values.iter().map(port).collect(),
        results: vec![Port::new("", type_of(graph, root))],
        public: true,
        unit: None,
    };
    let (function, block) = add_function(&module, &signature, location).unwrap();
    let builder = Builder::at_end(context.mlir(), block, location);
    let values = Function::cast(function).unwrap().arguments();
    let mut writer = Writer {
        graph,
        choice,
        grid: "grid",
        values: &values,
        standing: &Default::default(),
        replaced: &HashMap::new(),
        made: HashMap::new(),
    };
    let value = writer.value(root, Place { builder, before: None }).unwrap();
    builder.ret(&[value]).unwrap();
    module.verify().unwrap_or_else(|error| panic!("{error}\n{}", module.text(false)));
    let results = Interpreter::new(module.op()).run("f", &sampler.inputs());
    let results = results.unwrap_or_else(|error| panic!("{error}\n{}", module.text(false)));
    results.iter().map(|device| device[0].numbers()).collect()
}

/// The first form of each class: that of the instance.
fn instance(graph: &Graph) -> Choice {
    graph.classes().map(|class| (class.id, class.nodes[0].clone())).collect()
}

/// Applies a rule to one instance of its left side and compares; returns how many right sides there were.
fn check(context: &Context, rule: &Rule, seed: u64) -> usize {
    let element = if rule.exactness == Exactness::Exact { Element::F32 } else { Element::F64 };
    let mut sampler = Sampler::new(seed, element);
    let text = (rule.sample)(&mut sampler);
    let start: RecExpr<Term> = text.parse().unwrap_or_else(|error| panic!("{}: {text}: {error}", rule.name));
    let mut before = Graph::new(sampler.tables.clone());
    let root = before.add_expr(&start);
    before.rebuild();
    let expected = interpret(context, &sampler, &before, &instance(&before), root);
    let runner = Runner::<Term, Tables>::new(Tables::default())
        .with_egraph(before.clone())
        .with_iter_limit(1)
        .run(&rule.rewrites().unwrap());
    let graph = runner.egraph;
    let trees = trees(&graph);
    let canonical = |term: &Term| term.clone().map_children(|child| graph.find(child));
    let left = canonical(before.id_to_node(root));
    let root = graph.find(root);
    let mut compared = 0;
    for right in graph[root].nodes.iter().filter(|term| canonical(term) != left) {
        let mut choice = trees.clone();
        choice.insert(root, right.clone());
        let found = interpret(context, &sampler, &graph, &choice, root);
        compare(rule, &text, &expected, &found);
        compared += 1;
    }
    compared
}

fn compare(rule: &Rule, text: &str, expected: &[Vec<f64>], found: &[Vec<f64>]) {
    let largest = expected.iter().flatten().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    for (expected, found) in expected.iter().zip(found) {
        assert_eq!(expected.len(), found.len(), "{}: {text}", rule.name);
        for (x, y) in expected.iter().zip(found) {
            let equal = match rule.exactness {
                Exactness::Exact => x.to_bits() == y.to_bits(),
                Exactness::Reassociates => (x - y).abs() <= 1e-12 * largest,
            };
            assert!(equal, "{}: {text}: {x} became {y}", rule.name);
        }
    }
}

#[test]
fn every_rule_keeps_what_it_computes() {
    let context = Context::new();
    for rule in all() {
        let compared: usize = (0..6).map(|seed| check(&context, &rule, seed)).sum();
        assert!(compared >= 5, "{}: applied to {compared} of its samples", rule.name);
    }
}

#[test]
fn a_wrong_rule_is_caught() {
    let context = Context::new();
    let sample: Sample = |s| {
        let (g, d, x) = (s.group(), s.dimension(), s.value());
        format!("(gather {g} {d} (slice {g} {d} {x}))")
    };
    let forms = super::rules::one("(gather ?g ?d (slice ?g ?d ?x))", "?x");
    let rule =
        Rule { name: "wrong", exactness: Exactness::Exact, forms, given: super::rules::always, sample };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&context, &rule, 0)));
    assert!(outcome.is_err());
}
