//! Random models for property tests: a layer of contractions, elementwise work, reductions and broadcasts, called
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

/// A program that each device runs, with explicit collectives, on a stream of square tensors.
#[derive(Clone, Debug)]
pub struct Program {
    /// Devices along each grid axis.
    pub axes: Vec<u32>,
    /// What it does; the last values are its results.
    pub moves: Vec<Move>,
}

/// A step of a program. A move that does not fit its value is left out.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Move {
    /// Gather, slice, reduce-scatter or all-to-all along dimension `d` (of two), over a group.
    Along {
        what: usize,
        x: usize,
        d: usize,
        group: usize,
        max: bool,
    },
    Reduce {
        x: usize,
        group: usize,
        max: bool,
    },
    Unary {
        x: usize,
        op: usize,
    },
    Scale {
        x: usize,
        factor: usize,
    },
    Binary {
        x: usize,
        y: usize,
        op: usize,
    },
    /// A vector that all devices hold is added.
    Bias {
        x: usize,
        d: usize,
    },
    Transpose {
        x: usize,
    },
    Cut {
        x: usize,
        d: usize,
    },
}

/// Programs on grids of two to six devices.
pub fn programs() -> impl Strategy<Value = Program> {
    let pick = || 0..8usize;
    let max = || proptest::bool::weighted(0.25);
    let moves = prop_oneof![
        6 => (pick(), pick(), pick(), pick(), max())
            .prop_map(|(what, x, d, group, max)| Move::Along { what, x, d, group, max }),
        2 => (pick(), pick(), max()).prop_map(|(x, group, max)| Move::Reduce { x, group, max }),
        1 => (pick(), pick()).prop_map(|(x, op)| Move::Unary { x, op }),
        1 => (pick(), pick()).prop_map(|(x, factor)| Move::Scale { x, factor }),
        2 => (pick(), pick(), pick()).prop_map(|(x, y, op)| Move::Binary { x, y, op }),
        1 => (pick(), pick()).prop_map(|(x, d)| Move::Bias { x, d }),
        1 => pick().prop_map(|x| Move::Transpose { x }),
        1 => (pick(), pick()).prop_map(|(x, d)| Move::Cut { x, d }),
    ];
    let axes = prop_oneof![Just(vec![2]), Just(vec![3]), Just(vec![2, 2]), Just(vec![2, 3])];
    (axes, prop::collection::vec(moves, 2..12)).prop_map(|(axes, moves)| Program { axes, moves })
}

/// Results of a program.
const RESULTS: usize = 3;
/// Extents up to which a value grows.
const LARGEST: u64 = 144;

/// The program as the only function `main` of a module.
pub fn build_program<'c>(context: &'c Context, program: &Program) -> Module<'c> {
    let location = Location::new(context.mlir(), "program.mlir", 1, 1);
    let module = context.module(location);
    let axis = |(index, size): (usize, &u32)| Axis { name: format!("axis{index}"), size: *size };
    let grid = Grid { axes: program.axes.iter().enumerate().map(axis).collect() };
    add_grid(&module, "grid", &grid).unwrap();
    let side = u64::from(grid.devices()).pow(2).max(8);
    let square = TensorType::new([side, side], F);
    let bias = Port::new("", TensorType::new([side], F)).with_splits(&[vec![]]);
    let mut signature = Signature {
        name: "main".into(),
        arguments: vec![Port::new("", square.clone()), Port::new("", square), bias],
        results: vec![],
        public: true,
        unit: None,
    };
    let (op, block) = add_function(&module, &signature, location).unwrap();
    let arguments = Function::cast(op).unwrap().arguments();
    let mut device = Device {
        b: Builder::at_end(context.mlir(), block, location),
        grid: &grid,
        bias: arguments[2],
        values: arguments[..2].to_vec(),
    };
    for step in &program.moves {
        if let Some(value) = device.step(step) {
            device.values.push(value);
        }
    }
    let results = device.values.split_off(device.values.len().saturating_sub(RESULTS));
    device.b.ret(&results).unwrap();
    let ports = results.iter().map(|value| Port::new("", TensorType::of(*value).unwrap()));
    signature.results = ports.collect();
    Function::cast(op).unwrap().set_signature(&signature.arguments, &signature.results).unwrap();
    module.verify().unwrap_or_else(|error| panic!("{error}\n{}", module.text(false)));
    module
}

struct Device<'g, 'c, 'a> {
    b: Builder<'c, 'a>,
    grid: &'g Grid,
    bias: Val<'c, 'a>,
    values: Vec<Val<'c, 'a>>,
}

impl<'c, 'a> Device<'_, 'c, 'a> {
    fn step(&self, step: &Move) -> Option<Val<'c, 'a>> {
        let pick = |x: usize| self.values[self.values.len() - 1 - x % self.values.len()];
        match *step {
            Move::Along { what, x, d, group, max } => self.along(what % 4, pick(x), d % 2, group, max),
            Move::Reduce { x, group, max } => {
                let (x, reduction) = (pick(x), max.then_some("max"));
                let r#type = TensorType::of(x).ok()?;
                let axes = self.group(group);
                self.b.collective("shard.all_reduce", x, ("grid", &axes), None, reduction, &r#type).ok()
            }
            Move::Unary { x, op } => {
                let op = [ScalarOp::Tanh, ScalarOp::Sin][op % 2];
                self.b.map("ab->ab", &[pick(x)], |body| body.unary(op, Ref::Arg(0))).ok()
            }
            Move::Scale { x, factor } => {
                let factor = [0.5, 0.3, -2.0][factor % 3];
                let scale = |body: &mut t3c_ir::ScalarBody| {
                    let factor = body.constant(factor, F);
                    body.mul(Ref::Arg(0), factor)
                };
                self.b.map("ab->ab", &[pick(x)], scale).ok()
            }
            Move::Binary { x, y, op } => {
                let (x, y) = (pick(x), pick(y));
                let op = [ScalarOp::AddF, ScalarOp::MulF, ScalarOp::SubF][op % 3];
                (TensorType::of(x).ok()? == TensorType::of(y).ok()?).then_some(())?;
                self.b.map("ab,ab->ab", &[x, y], |body| body.binary(op, Ref::Arg(0), Ref::Arg(1))).ok()
            }
            Move::Bias { x, d } => {
                let x = pick(x);
                let specification = ["ab,a->ab", "ab,b->ab"][d % 2];
                let fits = TensorType::of(x).ok()?.shape[d % 2] == TensorType::of(self.bias).ok()?.shape[0];
                fits.then_some(())?;
                self.b.map(specification, &[x, self.bias], |body| body.add(Ref::Arg(0), Ref::Arg(1))).ok()
            }
            Move::Transpose { x } => {
                let copy = |_: &mut t3c_ir::ScalarBody| Ref::Arg(0);
                self.b.map("ab->ba", &[pick(x)], copy).ok()
            }
            Move::Cut { x, d } => self.cut(pick(x), d % 2),
        }
    }

    fn group(&self, group: usize) -> Vec<usize> {
        let all: Vec<usize> = (0..self.grid.axes.len()).collect();
        match group % 4 {
            0 | 1 => vec![group % all.len()],
            2 => all,
            _ => all.into_iter().rev().collect(),
        }
    }

    fn along(&self, what: usize, x: Val<'c, 'a>, d: usize, group: usize, max: bool) -> Option<Val<'c, 'a>> {
        let axes = self.group(group);
        let devices = u64::from(self.grid.group_size(&axes));
        let mut r#type = TensorType::of(x).ok()?;
        let shrinks = |extent: u64| extent.is_multiple_of(devices).then_some(extent / devices);
        let grows = |extent: u64| Some(extent * devices).filter(|extent| *extent <= LARGEST);
        let (name, attribute) = match what {
            0 => ("shard.all_gather", "gather_axis"),
            1 => ("shard.all_slice", "slice_axis"),
            2 => ("shard.reduce_scatter", "scatter_axis"),
            _ => ("shard.all_to_all", "split_axis"),
        };
        r#type.shape[d] = if what == 0 { grows(r#type.shape[d])? } else { shrinks(r#type.shape[d])? };
        if what == 3 {
            r#type.shape[1 - d] = grows(r#type.shape[1 - d])?;
        }
        let reduction = (what == 2 && max).then_some("max");
        let dimension = Some((attribute, d));
        let value = self.b.collective(name, x, ("grid", &axes), dimension, reduction, &r#type).ok()?;
        if what == 3 {
            let other = t3c_ir::attributes::index_attr(self.b.context(), 1 - d as i64);
            t3c_ir::ffi::set_attribute(t3c_ir::ffi::value_owner(value)?, "concat_axis", other);
        }
        Some(value)
    }

    fn cut(&self, x: Val<'c, 'a>, d: usize) -> Option<Val<'c, 'a>> {
        use t3c_ir::attributes::{integers_attr, named};
        let mut r#type = TensorType::of(x).ok()?;
        r#type.shape[d] = Some(r#type.shape[d] / 2).filter(|extent| *extent > 0)?;
        let context = self.b.context();
        let sizes: Vec<i64> = r#type.shape.iter().map(|extent| *extent as i64).collect();
        let segments = melior::ir::Attribute::parse(context, "array<i32: 1, 0, 0, 0>")?;
        let attributes = [
            named(context, "operandSegmentSizes", segments),
            named(context, "static_offsets", integers_attr(context, &[0, 0])),
            named(context, "static_sizes", integers_attr(context, &sizes)),
            named(context, "static_strides", integers_attr(context, &[1, 1])),
        ];
        let result = [r#type.to_mlir(context)];
        let op = self.b.op("tensor.extract_slice", &[x], &result, &attributes, vec![]).ok()?;
        melior::ir::operation::OperationLike::result(&op, 0).ok().map(Into::into)
    }
}

/// What a program computes on every device.
///
/// # Errors
/// What the interpreter refuses.
pub fn run_program(module: &Module<'_>) -> Result<Vec<Vec<Tensor>>, t3c_ir::Error> {
    let interpreter = Interpreter::new(module.op());
    let ports = entry(module.op())?.argument_ports()?;
    let input = |device: u64, number: usize, port: &Port| {
        // The bias is the same on all devices.
        let device = if port.r#type.shape.len() == 1 { 0 } else { device };
        Tensor::random(&port.r#type, 100 * device + number as u64)
    };
    let inputs = (0..u64::from(interpreter.grid().devices()))
        .map(|device| ports.iter().enumerate().map(|(number, port)| input(device, number, port)).collect())
        .collect::<Result<Vec<Vec<Tensor>>, _>>()?;
    interpreter.run("main", &inputs)
}
