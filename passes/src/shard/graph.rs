//! The module as plain data, so that everything is decided and checked before anything is changed.

use std::collections::HashMap;

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Generic, Iterator, Op, ScalarBody, Splits, TensorType, Val,
    context::render_location,
    ffi,
    function::{self, Function, Port},
    generic::splat_value,
    units::{Unit, unit_of},
    views::annotation,
    walk,
};
use t3c_schedule::Grid;

use super::{Error, experts::Routing, reshape::Reshape, units::is_well_formed};

/// A module.
#[derive(Debug)]
pub struct Graph {
    /// The device grid.
    pub grid: Grid,
    /// Its functions, units left out, in module order.
    pub functions: Vec<FunctionGraph>,
    /// The routers of its experts.
    pub routings: Vec<Routing>,
    /// The share of rows that each expert takes, if it is known ([`LOAD`]).
    pub load: Vec<f64>,
}

/// A function.
#[derive(Debug)]
pub struct FunctionGraph {
    /// Its symbol.
    pub name: String,
    /// Whether execution can start here.
    pub public: bool,
    /// Where it comes from.
    pub location: String,
    /// Its arguments: the first values.
    pub arguments: Vec<Port>,
    /// Its results.
    pub results: Vec<Port>,
    /// Every value: arguments, then results of operations in order.
    pub values: Vec<Value>,
    /// Every operation of the body, in order.
    pub nodes: Vec<Node>,
}

/// A value.
#[derive(Debug)]
pub struct Value {
    /// Its type on one big device.
    pub r#type: TensorType,
    /// What can be made anew at any size, if it is that.
    pub free: Option<Free>,
    /// Operands that use it.
    pub uses: usize,
    /// The operations that use it, in order.
    pub users: Vec<usize>,
}

/// Tensors without content of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Free {
    /// Uninitialised.
    Empty,
    /// One number everywhere, by `linalg.fill`.
    Fill(f64),
    /// One number everywhere, as a constant.
    Splat(f64),
}

/// An operation.
#[derive(Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Operands, as indices into the function's values.
    pub operands: Vec<usize>,
    /// Results, likewise.
    pub results: Vec<usize>,
    /// Where it comes from.
    pub location: String,
}

/// Kinds of operations.
#[derive(Debug)]
pub enum Kind {
    /// Loops around a scalar body; operands are the inputs, the initial value and the captured tensors.
    Structured(Structured),
    /// A call of the function with this index.
    Call(usize),
    /// A call of a unit.
    Unit(Unit),
    /// A reshape.
    Reshape(Reshape),
    /// A wanted sharding.
    Annotation(Splits),
    /// The end of the function.
    Return,
    /// Constants, fills, empty tensors, shardings.
    Inert,
}

/// A structured operation without its operands.
#[derive(Debug)]
pub struct Structured {
    /// For each input, then the output: the loop of each dimension.
    pub maps: Vec<Vec<usize>>,
    /// The kind of each loop.
    pub iterators: Vec<Iterator>,
    /// The extent of each loop.
    pub extents: Vec<u64>,
    /// The scalar body.
    pub body: ScalarBody,
}

impl Structured {
    /// Inputs, without the initial value.
    pub fn inputs(&self) -> usize {
        self.maps.len() - 1
    }

    /// The loops of the output's dimensions.
    pub fn output(&self) -> &[usize] {
        &self.maps[self.maps.len() - 1]
    }
}

impl Graph {
    /// Reads a module.
    ///
    /// # Errors
    /// Names the first operation that the partitioner has no rule for.
    pub fn read(module: Op<'_, '_>, grid: Grid) -> Result<Self, Error> {
        let functions: Vec<Function<'_, '_>> = partitioned(module);
        let index: HashMap<String, usize> =
            functions.iter().enumerate().map(|(index, function)| (function.name(), index)).collect();
        let functions = functions
            .into_iter()
            .map(|function| Reader::new(module, &index).function(function))
            .collect::<Result<_, _>>()?;
        let units = function::functions(module).into_iter().filter_map(unit_of);
        let routings = units.filter_map(|unit| Routing::of(&unit)).collect();
        Ok(Self { grid, functions, routings, load: load(module) })
    }
}

/// On the module: `array<f64: …>`, the share of rows or the number of rows that each expert takes.
pub const LOAD: &str = "t3.expert_load";

fn load(module: Op<'_, '_>) -> Vec<f64> {
    let text = module.attribute(LOAD).map(|attribute| attribute.to_string()).unwrap_or_default();
    let numbers = text.trim_start_matches("array<f64").trim_matches([':', '>', ' ']);
    numbers.split(',').filter_map(|number| number.trim().parse().ok()).collect()
}

/// The functions that are partitioned: those with a body that are no units.
pub fn partitioned<'c, 'a>(module: Op<'c, 'a>) -> Vec<Function<'c, 'a>> {
    function::functions(module)
        .into_iter()
        .filter(|function| function.unit().is_none() && function.body().is_some())
        .collect()
}

struct Reader<'m, 'c, 'a> {
    module: Op<'c, 'a>,
    functions: &'m HashMap<String, usize>,
    known: HashMap<usize, usize>,
    values: Vec<Value>,
}

impl<'m, 'c, 'a> Reader<'m, 'c, 'a> {
    fn new(module: Op<'c, 'a>, functions: &'m HashMap<String, usize>) -> Self {
        Self { module, functions, known: HashMap::new(), values: Vec::new() }
    }

    fn function(mut self, function: Function<'c, 'a>) -> Result<FunctionGraph, Error> {
        for argument in function.arguments() {
            self.define(argument, None).map_err(|error| place(function.0, error))?;
        }
        let mut nodes = Vec::new();
        for operation in function.body().map(walk::operations).unwrap_or_default() {
            nodes.push(self.node(operation)?);
        }
        for (index, node) in nodes.iter().enumerate() {
            for &operand in &node.operands {
                let value = &mut self.values[operand];
                value.uses += 1;
                if value.users.last() != Some(&index) {
                    value.users.push(index);
                }
            }
        }
        Ok(FunctionGraph {
            name: function.name(),
            public: function.is_public(),
            location: render_location(function.0.location()),
            arguments: function.argument_ports()?,
            results: function.result_ports().map_err(|error| located(function.0, error))?,
            values: self.values,
            nodes,
        })
    }

    fn define(&mut self, value: Val<'c, 'a>, free: Option<Free>) -> Result<usize, Error> {
        let index = self.values.len();
        self.values.push(Value { r#type: TensorType::of(value)?, free, uses: 0, users: vec![] });
        self.known.insert(ffi::value_key(value), index);
        Ok(index)
    }

    fn operand(&self, value: Val<'c, 'a>, operation: Op<'c, 'a>) -> Result<usize, Error> {
        self.known.get(&ffi::value_key(value)).copied().ok_or_else(|| Error::NoRule {
            location: location(operation),
            what: "a value from outside".into(),
        })
    }

    fn operands(&self, values: &[Val<'c, 'a>], operation: Op<'c, 'a>) -> Result<Vec<usize>, Error> {
        values.iter().map(|&value| self.operand(value, operation)).collect()
    }

    fn node(&mut self, operation: Op<'c, 'a>) -> Result<Node, Error> {
        let name = walk::name(operation);
        let everything: Vec<Val<'c, 'a>> = operation.operands().collect();
        let (kind, operands) = match name.as_str() {
            "linalg.fill" if free(operation).is_none() => self.structured(operation)?,
            "linalg.fill" | "tensor.empty" | "arith.constant" => (Kind::Inert, vec![]),
            "shard.sharding" => return sharding(operation),
            "shard.shard" => {
                let splits = annotation(operation).ok_or_else(|| Error::NoRule {
                    location: location(operation),
                    what: "a sharding that is not a `shard.sharding` of this function".into(),
                })?;
                (Kind::Annotation(splits), self.operands(&everything[..1], operation)?)
            }
            "func.call" => (self.callee(operation)?, self.operands(&everything, operation)?),
            "func.return" => (Kind::Return, self.operands(&everything, operation)?),
            "tensor.expand_shape" | "tensor.collapse_shape" => {
                let reshape = Reshape::read(operation)?.ok_or_else(|| Error::NoRule {
                    location: location(operation),
                    what: "this reshape".into(),
                })?;
                (Kind::Reshape(reshape), self.operands(&everything[..1], operation)?)
            }
            _ if Generic::is(operation) => self.structured(operation)?,
            other => {
                return Err(Error::NoRule { location: location(operation), what: format!("`{other}`") });
            }
        };
        let results = operation
            .results()
            .map(|result| {
                self.define(result.into(), free(operation)).map_err(|error| place(operation, error))
            })
            .collect::<Result<_, _>>()?;
        Ok(Node { kind, operands, results, location: location(operation) })
    }

    fn structured(&self, operation: Op<'c, 'a>) -> Result<(Kind, Vec<usize>), Error> {
        let generic = Generic::read(operation)?;
        let values: Vec<Val<'c, 'a>> =
            generic.inputs.iter().copied().chain([generic.init]).chain(generic.captures).collect();
        let structured = Structured {
            maps: generic.maps,
            iterators: generic.iterators,
            extents: generic.extents,
            body: generic.body,
        };
        Ok((Kind::Structured(structured), self.operands(&values, operation)?))
    }

    fn callee(&self, call: Op<'c, 'a>) -> Result<Kind, Error> {
        let unknown =
            || Error::NoRule { location: location(call), what: "a call of an unknown function".into() };
        let callee = function::callee(self.module, call).ok_or_else(unknown)?;
        if let Some(unit) = unit_of(callee) {
            return if is_well_formed(&unit) {
                Ok(Kind::Unit(unit))
            } else {
                let what = format!("a {} unit of other operands than it takes", unit.kind.name());
                Err(Error::NoRule { location: location(call), what })
            };
        }
        self.functions.get(&callee.name()).copied().map(Kind::Call).ok_or_else(unknown)
    }
}

fn inert(operation: Op<'_, '_>) -> Node {
    Node { kind: Kind::Inert, operands: vec![], results: vec![], location: location(operation) }
}

/// A sharding, whose axes its users read.
fn sharding(operation: Op<'_, '_>) -> Result<Node, Error> {
    for (attribute, what) in [
        ("static_halo_sizes", "a sharding with halos"),
        ("static_sharded_dims_offsets", "a sharding with uneven parts (`sharded_dims_offsets`)"),
    ] {
        if t3c_ir::attributes::integers(operation, attribute).is_some_and(|numbers| !numbers.is_empty()) {
            return Err(Error::NoRule { location: location(operation), what: what.into() });
        }
    }
    if operation.operand_count() > 0 {
        let what = "a sharding with halos or parts that are values".into();
        return Err(Error::NoRule { location: location(operation), what });
    }
    Ok(inert(operation))
}

/// An error of the IR with the place of the operation that it is about, where it has none.
pub fn located(operation: Op<'_, '_>, error: t3c_ir::Error) -> Error {
    match error {
        t3c_ir::Error::Mlir(message) => t3c_ir::Error::at(operation, message).into(),
        other => other.into(),
    }
}

fn place(operation: Op<'_, '_>, error: Error) -> Error {
    match error {
        Error::Ir(error) => located(operation, error),
        other => other,
    }
}

/// Where an operation comes from.
pub fn location(operation: Op<'_, '_>) -> String {
    render_location(operation.location())
}

/// What an operation's result is, if it can be made anew at any size.
fn free(operation: Op<'_, '_>) -> Option<Free> {
    let result: Val<'_, '_> = operation.result(0).ok()?.into();
    if walk::is(operation, "tensor.empty") {
        return Some(Free::Empty);
    }
    let number = splat_value(result)?;
    Some(if walk::is(operation, "linalg.fill") { Free::Fill(number) } else { Free::Splat(number) })
}
