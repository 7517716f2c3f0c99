//! Random models for one big device: a layer of contractions, elementwise work, reductions and broadcasts, called
//! several times, with parameters and activations annotated over one or two grid axes. Plain data, so that a
//! failing model shrinks.

use proptest::prelude::*;
use t3c_ir::{
    Builder, Context, Element, Location, Module, Ref, ScalarOp, Splits, TensorType, Val,
    function::{Function, Port, Signature, add_function, add_grid, entry},
    interpreter::{Interpreter, Tensor, gather, scatter},
};
use t3c_schedule::{Axis, Grid};

/// A whole model: `calls` calls of one layer on a stream of `[t, a]`.
#[derive(Clone, Debug)]
pub struct Model {
    /// Devices along each grid axis.
    pub axes: Vec<u32>,
    /// How often the layer is called.
    pub calls: usize,
    /// What the layer does. Choices are taken modulo what there is to choose from.
    pub steps: Vec<Step>,
}

/// A step of the layer; it makes a value from values before it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Step {
    /// A product with a new parameter over one or two dimensions.
    Contract {
        x: usize,
        reduced: usize,
        two: bool,
        out: usize,
        split: [usize; 2],
    },
    Unary {
        x: usize,
        op: usize,
    },
    /// `y` repeats along dimensions that it has not.
    Binary {
        x: usize,
        y: usize,
        op: usize,
    },
    /// A new parameter of one dimension is added.
    Bias {
        x: usize,
        dimension: usize,
        split: [usize; 2],
    },
    Fold {
        x: usize,
        dimension: usize,
        max: bool,
    },
    /// Divided by the norm along a dimension.
    Normalise {
        x: usize,
        dimension: usize,
    },
    Transpose {
        x: usize,
        by: usize,
    },
    /// A wish how the value be divided.
    Annotate {
        x: usize,
        split: [usize; 2],
    },
}

/// Models on grids of two to six devices.
pub fn models() -> impl Strategy<Value = Model> {
    let axes = prop_oneof![
        Just(vec![2]),
        Just(vec![3]),
        Just(vec![4]),
        Just(vec![2, 2]),
        Just(vec![2, 3]),
        Just(vec![3, 2])
    ];
    (axes, 1..3usize, prop::collection::vec(steps(), 1..7)).prop_map(|(axes, calls, steps)| Model {
        axes,
        calls,
        steps,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let pick = || 0..12usize;
    let split = || [0..12usize, 0..12];
    prop_oneof![
        4 => (pick(), pick(), proptest::bool::ANY, pick(), split())
            .prop_map(|(x, reduced, two, out, split)| Step::Contract { x, reduced, two, out, split }),
        2 => (pick(), pick()).prop_map(|(x, op)| Step::Unary { x, op }),
        2 => (pick(), pick(), pick()).prop_map(|(x, y, op)| Step::Binary { x, y, op }),
        1 => (pick(), pick(), split()).prop_map(|(x, dimension, split)| Step::Bias { x, dimension, split }),
        1 => (pick(), pick(), proptest::bool::ANY).prop_map(|(x, dimension, max)| Step::Fold { x, dimension, max }),
        1 => (pick(), pick()).prop_map(|(x, dimension)| Step::Normalise { x, dimension }),
        1 => (pick(), pick()).prop_map(|(x, by)| Step::Transpose { x, by }),
        1 => (pick(), split()).prop_map(|(x, split)| Step::Annotate { x, split }),
    ]
}

const LETTERS: [char; 4] = ['t', 'a', 'b', 'c'];
const F: Element = Element::F64;

fn tensor(dims: &[char]) -> TensorType {
    let extent = |letter: &char| if *letter == 'a' { 24 } else { 12 };
    TensorType::new(dims.iter().map(extent).collect::<Vec<u64>>(), F)
}

fn letters(dims: &[char]) -> String {
    dims.iter().collect()
}

struct Parameter {
    dims: Vec<char>,
    splits: Splits,
}

/// How each axis divides a tensor: the choices modulo its dimensions and none.
fn splits(rank: usize, axes: usize, choice: [usize; 2]) -> Splits {
    let mut splits: Splits = vec![vec![]; rank];
    for (axis, choice) in choice.into_iter().enumerate().take(axes) {
        if let Some(split) = splits.get_mut(choice % (rank + 1)) {
            split.push(axis);
        }
    }
    splits
}

/// The layer, run twice by the same code: without a builder to learn its parameters, then with one.
struct Layer<'m, 'c, 'a> {
    model: &'m Model,
    parameters: Vec<Parameter>,
    builder: Option<(Builder<'c, 'a>, Vec<Val<'c, 'a>>)>,
    values: Vec<(Vec<char>, Option<Val<'c, 'a>>)>,
}

impl<'m, 'c, 'a> Layer<'m, 'c, 'a> {
    fn new(model: &'m Model, builder: Option<(Builder<'c, 'a>, Vec<Val<'c, 'a>>)>) -> Self {
        let stream = builder.as_ref().map(|(_, arguments)| arguments[0]);
        Self { model, parameters: vec![], builder, values: vec![(vec!['t', 'a'], stream)] }
    }

    /// Runs all steps; the result is the stream plus what is left of the last value.
    fn run(&mut self) -> Option<Val<'c, 'a>> {
        let model = self.model;
        for step in &model.steps {
            if let Some(value) = self.step(step) {
                self.values.push(value);
            }
        }
        let (mut dims, mut value) = self.values.last().cloned()?;
        while let Some(at) = dims.iter().position(|letter| !['t', 'a'].contains(letter)) {
            (dims, value) = self.fold(&dims, value, at, false);
        }
        let (b, arguments) = self.builder.as_ref()?;
        let specification = format!("ta,{}->ta", letters(&dims));
        let value = value?;
        b.map(&specification, &[arguments[0], value], |body| body.add(Ref::Arg(0), Ref::Arg(1))).ok()
    }

    /// A parameter of these dimensions.
    fn parameter(&mut self, dims: Vec<char>, choice: [usize; 2]) -> Option<Val<'c, 'a>> {
        let splits = splits(dims.len(), self.model.axes.len(), choice);
        self.parameters.push(Parameter { dims, splits: splits.clone() });
        let (b, arguments) = self.builder.as_ref()?;
        b.shard(arguments[self.parameters.len()], "grid", &splits).ok()
    }

    fn step(&mut self, step: &Step) -> Option<(Vec<char>, Option<Val<'c, 'a>>)> {
        let pick = |x: usize| self.values[x % self.values.len()].clone();
        match *step {
            Step::Contract { x, reduced, two, out, split } => {
                let (dims, x) = pick(x);
                self.contract(&dims, x, (reduced, two), out, split)
            }
            Step::Unary { x, op } => {
                let (dims, x) = pick(x);
                let op = [ScalarOp::Tanh, ScalarOp::NegF, ScalarOp::Sin, ScalarOp::AbsF][op % 4];
                let specification = format!("{0}->{0}", letters(&dims));
                let value = self
                    .builder
                    .as_ref()
                    .and_then(|(b, _)| b.map(&specification, &[x?], |body| body.unary(op, Ref::Arg(0))).ok());
                Some((dims, value))
            }
            Step::Binary { x, y, op } => {
                let ((dims, x), (repeated, y)) = (pick(x), pick(y));
                if !repeated.iter().all(|letter| dims.contains(letter)) {
                    return None;
                }
                let op = [ScalarOp::AddF, ScalarOp::MulF, ScalarOp::SubF, ScalarOp::MaxF][op % 4];
                Some((dims.clone(), self.binary(&dims, x, &repeated, y, op)))
            }
            Step::Bias { x, dimension, split } => {
                let (dims, x) = pick(x);
                let dim = vec![*dims.get(dimension % dims.len().max(1))?];
                let bias = self.parameter(dim.clone(), split);
                Some((dims.clone(), self.binary(&dims, x, &dim, bias, ScalarOp::AddF)))
            }
            Step::Fold { x, dimension, max } => {
                let (dims, x) = pick(x);
                (dims.len() > 1).then(|| self.fold(&dims, x, dimension % dims.len(), max))
            }
            Step::Normalise { x, dimension } => {
                let (dims, x) = pick(x);
                (!dims.is_empty()).then(|| self.normalise(&dims, x, dimension % dims.len()))
            }
            Step::Transpose { x, by } => {
                let (dims, x) = pick(x);
                let mut turned = dims.clone();
                turned.rotate_left(by % dims.len().max(1));
                let specification = format!("{}->{}", letters(&dims), letters(&turned));
                let value = self.builder.as_ref().and_then(|(b, _)| {
                    b.map(&specification, &[x?], |body| {
                        let one = body.constant(1.0, F);
                        body.mul(Ref::Arg(0), one)
                    })
                    .ok()
                });
                Some((turned, value))
            }
            Step::Annotate { x, split } => {
                let (dims, x) = pick(x);
                let splits = splits(dims.len(), self.model.axes.len(), split);
                let value = self.builder.as_ref().and_then(|(b, _)| b.shard(x?, "grid", &splits).ok());
                Some((dims, value))
            }
        }
    }

    fn contract(
        &mut self,
        dims: &[char],
        x: Option<Val<'c, 'a>>,
        (reduced, two): (usize, bool),
        out: usize,
        split: [usize; 2],
    ) -> Option<(Vec<char>, Option<Val<'c, 'a>>)> {
        let rank = dims.len();
        if rank == 0 {
            return None;
        }
        let mut gone = vec![dims[reduced % rank]];
        if two && rank > 2 {
            gone.push(dims[(reduced + 1) % rank]);
        }
        let fresh: Vec<char> = LETTERS.into_iter().filter(|letter| !dims.contains(letter)).collect();
        let out = fresh[out % fresh.len()];
        let weight: Vec<char> = [out].into_iter().chain(gone.iter().copied()).collect();
        let result: Vec<char> =
            dims.iter().copied().filter(|letter| !gone.contains(letter)).chain([out]).collect();
        let specification = format!("{},{}->{}", letters(dims), letters(&weight), letters(&result));
        let w = self.parameter(weight, split);
        let value = self.builder.as_ref().and_then(|(b, _)| b.contract(&specification, x?, w?).ok());
        Some((result, value))
    }

    fn binary(
        &self,
        dims: &[char],
        x: Option<Val<'c, 'a>>,
        repeated: &[char],
        y: Option<Val<'c, 'a>>,
        op: ScalarOp,
    ) -> Option<Val<'c, 'a>> {
        let specification = format!("{0},{1}->{0}", letters(dims), letters(repeated));
        let (b, _) = self.builder.as_ref()?;
        b.map(&specification, &[x?, y?], |body| body.binary(op, Ref::Arg(0), Ref::Arg(1))).ok()
    }

    fn fold(
        &self,
        dims: &[char],
        x: Option<Val<'c, 'a>>,
        at: usize,
        max: bool,
    ) -> (Vec<char>, Option<Val<'c, 'a>>) {
        let mut left = dims.to_vec();
        left.remove(at);
        let specification = format!("{}->{}", letters(dims), letters(&left));
        let op = if max { ScalarOp::MaxF } else { ScalarOp::AddF };
        let value = self.builder.as_ref().and_then(|(b, _)| b.reduce(&specification, x?, op).ok());
        (left, value)
    }

    fn normalise(
        &self,
        dims: &[char],
        x: Option<Val<'c, 'a>>,
        at: usize,
    ) -> (Vec<char>, Option<Val<'c, 'a>>) {
        let mut left = dims.to_vec();
        left.remove(at);
        let value = self.builder.as_ref().and_then(|(b, _)| {
            let (all, left) = (letters(dims), letters(&left));
            let squares = b.structured(&format!("{all}->{left}"), &[x?], F, 0.0, |body| {
                let square = body.mul(Ref::Arg(0), Ref::Arg(0));
                body.add(Ref::Arg(1), square)
            });
            b.map(&format!("{all},{left}->{all}"), &[x?, squares.ok()?], |body| {
                let one = body.constant(1.0, F);
                let sum = body.add(Ref::Arg(1), one);
                let scale = body.unary(ScalarOp::Rsqrt, sum);
                body.mul(Ref::Arg(0), scale)
            })
            .ok()
        });
        (dims.to_vec(), value)
    }
}

/// The model as a module: `main` calls `layer`, each annotates the parameters that it takes.
pub fn build<'c>(context: &'c Context, model: &Model) -> Module<'c> {
    let location = Location::new(context.mlir(), "random.json", 1, 1);
    let module = context.module(location);
    let axis = |(index, size): (usize, &u32)| Axis { name: format!("axis{index}"), size: *size };
    add_grid(&module, "grid", &Grid { axes: model.axes.iter().enumerate().map(axis).collect() }).unwrap();
    let mut dry = Layer::new(model, None);
    dry.run();
    let stream = tensor(&['t', 'a']);
    let parameters = dry
        .parameters
        .iter()
        .enumerate()
        .map(|(index, p)| Port::new(format!("param/{index}"), tensor(&p.dims)));
    let arguments: Vec<Port> = [Port::new("x", stream.clone())].into_iter().chain(parameters).collect();
    for (name, public) in [("layer", false), ("main", true)] {
        let results = vec![Port::new("y", stream.clone())];
        let signature =
            Signature { name: name.into(), arguments: arguments.clone(), results, public, unit: None };
        let (op, block) = add_function(&module, &signature, location).unwrap();
        let b = Builder::at_end(context.mlir(), block, location);
        let arguments = Function::cast(op).unwrap().arguments();
        let result = if public {
            let annotated = arguments[1..].iter().zip(&dry.parameters);
            let parameters: Vec<Val<'_, '_>> =
                annotated.map(|(value, p)| b.shard(*value, "grid", &p.splits).unwrap()).collect();
            (0..model.calls).fold(arguments[0], |x, _| {
                let arguments: Vec<Val<'_, '_>> = [x].into_iter().chain(parameters.iter().copied()).collect();
                b.call("layer", &arguments, std::slice::from_ref(&stream)).unwrap()[0]
            })
        } else {
            Layer::new(model, Some((b, arguments))).run().expect("the layer has a result")
        };
        b.ret(&[result]).unwrap();
    }
    module.verify().unwrap_or_else(|error| panic!("{error}\n{}", module.text(false)));
    module
}

/// The entry's inputs, whole.
pub fn inputs(module: &Module<'_>) -> Vec<Tensor> {
    let ports = entry(module.op()).unwrap().argument_ports().unwrap();
    ports.iter().zip(1..).map(|(port, seed)| Tensor::random(&port.r#type, seed).unwrap()).collect()
}

/// What a model computes on one big device.
pub fn whole(module: &Module<'_>, inputs: &[Tensor]) -> Vec<Tensor> {
    let name = entry(module.op()).unwrap().name();
    Interpreter::new(module.op()).on_one_device().run_one(&name, inputs).unwrap()
}

/// What a partitioned model computes, its results put together again.
///
/// # Errors
/// What the interpreter refuses.
pub fn on_the_grid(module: &Module<'_>, inputs: &[Tensor]) -> Result<Vec<Tensor>, t3c_ir::Error> {
    let function = entry(module.op())?;
    let interpreter = Interpreter::new(module.op());
    let grid = interpreter.grid().clone();
    let parts = inputs
        .iter()
        .zip(function.argument_ports()?)
        .map(|(input, port)| scatter(input, &port.splits(), &grid))
        .collect::<Result<Vec<_>, _>>()?;
    let each = |device: usize| parts.iter().map(|parts| parts[device].clone()).collect();
    let inputs: Vec<Vec<Tensor>> = (0..grid.devices() as usize).map(each).collect();
    let results = interpreter.run(&function.name(), &inputs)?;
    let ports = function.result_ports()?;
    ports
        .iter()
        .enumerate()
        .map(|(index, port)| {
            let parts: Vec<Tensor> = results.iter().map(|device| device[index].clone()).collect();
            gather(&parts, &port.splits(), &grid)
        })
        .collect()
}
