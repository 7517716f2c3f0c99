//! Random programs that each device runs, with explicit collectives. Plain data, so that a failing program shrinks.

use proptest::prelude::*;
use t3c_ir::{
    Builder, Context, Element, Location, Module, Ref, ScalarOp, TensorType, Val,
    function::{Function, Port, Signature, add_function, add_grid, entry},
    interpreter::{Interpreter, Tensor},
};
use t3c_schedule::{Axis, Grid};

const F: Element = Element::F64;

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
