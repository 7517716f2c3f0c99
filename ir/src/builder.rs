//! Builds operations at a place: the vocabulary in which importers and passes write graphs.

use melior::ir::{
    Attribute, Block, BlockLike, Identifier, Location, Operation, Region, RegionLike, Type, ValueLike,
    attribute::{DenseElementsAttribute, FloatAttribute, IntegerAttribute},
    operation::{OperationBuilder, OperationLike},
};
use t3c_schedule::Element;

use crate::{
    Blk, Error, Generic, Iterator, Op, Val,
    attributes::{Named, index_attr, named, symbol_attr},
    ffi,
    scalar::{Ref, ScalarBody, ScalarOp, multiply_add},
    types::{TensorType, element_type},
};

/// Where operations are inserted, and the location that they carry.
#[derive(Clone, Copy)]
pub struct Builder<'c, 'a> {
    context: &'c melior::Context,
    block: Blk<'c, 'a>,
    before: Option<Op<'c, 'a>>,
    location: Location<'c>,
}

/// A dimension letter of an einsum-like specification.
fn letters(specification: &str) -> Vec<Vec<char>> {
    specification
        .split([',', '>'])
        .map(|part| part.chars().filter(char::is_ascii_alphabetic).collect())
        .collect()
}

impl<'c, 'a> Builder<'c, 'a> {
    /// At the end of `block`.
    pub fn at_end(context: &'c melior::Context, block: Blk<'c, 'a>, location: Location<'c>) -> Self {
        Self { context, block, before: None, location }
    }

    /// Just before `operation`, with its location.
    ///
    /// # Errors
    /// When it sits in no block.
    pub fn before(operation: Op<'c, 'a>) -> Result<Self, Error> {
        let block = operation.block().ok_or_else(|| Error::at(operation, "sits in no block"))?;
        let context = ffi::context_of(operation);
        Ok(Self { context, block, before: Some(operation), location: operation.location() })
    }

    /// The same place under another location.
    pub fn at(self, location: Location<'c>) -> Self {
        Self { location, ..self }
    }

    /// The same place; `name` is put before the location, as `"model.layers.0.mlp" at file:line:column`.
    pub fn named(self, name: &str) -> Self {
        let location = Location::name(self.context, name, self.location);
        Self { location, ..self }
    }

    /// The context.
    pub fn context(&self) -> &'c melior::Context {
        self.context
    }

    /// The current location.
    pub fn location(&self) -> Location<'c> {
        self.location
    }

    /// Inserts a finished operation.
    pub fn insert(&self, operation: Operation<'c>) -> Op<'c, 'a> {
        match self.before {
            Some(before) => self.block.insert_operation_before(before, operation),
            None => self.block.append_operation(operation),
        }
    }

    /// Builds and inserts an operation.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn op(
        &self,
        name: &str,
        operands: &[Val<'c, 'a>],
        results: &[Type<'c>],
        attributes: &[Named<'c>],
        regions: Vec<Region<'c>>,
    ) -> Result<Op<'c, 'a>, Error> {
        let operation = OperationBuilder::new(name, self.location)
            .add_operands(operands)
            .add_results(results)
            .add_attributes(attributes)
            .add_regions_vec(regions)
            .build()?;
        Ok(self.insert(operation))
    }

    fn one(&self, operation: Op<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        Ok(operation.result(0)?.into())
    }

    /// A scalar constant.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn scalar(&self, value: f64, element: Element) -> Result<Val<'c, 'a>, Error> {
        let r#type = element_type(self.context, element);
        let operation = self.op(
            "arith.constant",
            &[],
            &[r#type],
            &[named(self.context, "value", self.number(value, element))],
            vec![],
        )?;
        self.one(operation)
    }

    fn number(&self, value: f64, element: Element) -> Attribute<'c> {
        let r#type = element_type(self.context, element);
        match element {
            Element::I64 | Element::I32 | Element::I1 => IntegerAttribute::new(r#type, value as i64).into(),
            _ => FloatAttribute::new(self.context, r#type, value).into(),
        }
    }

    /// A constant tensor with the same number everywhere.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn splat(&self, value: f64, r#type: &TensorType) -> Result<Val<'c, 'a>, Error> {
        let mlir = r#type.to_mlir(self.context);
        let dense = DenseElementsAttribute::splat(mlir, self.number(value, r#type.element));
        let operation =
            self.op("arith.constant", &[], &[mlir], &[named(self.context, "value", dense)], vec![])?;
        self.one(operation)
    }

    /// A constant f32 or f64 tensor from its elements (given in f64), row-major.
    ///
    /// # Errors
    /// When the element type is not a float or the count is wrong.
    pub fn constant(&self, values: &[f64], r#type: &TensorType) -> Result<Val<'c, 'a>, Error> {
        if values.len() as u64 != r#type.elements() {
            return Err(Error::Mlir(format!("{} values for a {type}", values.len(), r#type = r#type)));
        }
        let bytes: Vec<u8> = match r#type.element {
            Element::F32 => values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect(),
            Element::F64 => values.iter().flat_map(|&value| value.to_le_bytes()).collect(),
            other => return Err(Error::Mlir(format!("no dense constants of {other:?}"))),
        };
        let mlir = r#type.to_mlir(self.context);
        let dense = ffi::dense_from_bytes(mlir, &bytes);
        let operation =
            self.op("arith.constant", &[], &[mlir], &[named(self.context, "value", dense)], vec![])?;
        self.one(operation)
    }

    /// An uninitialised tensor.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn empty(&self, r#type: &TensorType) -> Result<Val<'c, 'a>, Error> {
        let operation = self.op("tensor.empty", &[], &[r#type.to_mlir(self.context)], &[], vec![])?;
        self.one(operation)
    }

    /// A tensor filled with one number (`linalg.fill` of a `tensor.empty`): every contraction has its own.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn fill(&self, value: f64, r#type: &TensorType) -> Result<Val<'c, 'a>, Error> {
        let (number, empty) = (self.scalar(value, r#type.element)?, self.empty(r#type)?);
        let element = element_type(self.context, r#type.element);
        let block = Block::new(&[(element, self.location), (element, self.location)]);
        let value: Val<'c, '_> = block.argument(0)?.into();
        block.append_operation(
            OperationBuilder::new("linalg.yield", self.location).add_operands(&[value]).build()?,
        );
        let region = Region::new();
        region.append_block(block);
        let segments = Attribute::parse(self.context, "array<i32: 1, 1>")
            .ok_or_else(|| Error::Mlir("cannot make operand segments".into()))?;
        let operation = self.op(
            "linalg.fill",
            &[number, empty],
            &[r#type.to_mlir(self.context)],
            &[named(self.context, "operandSegmentSizes", segments)],
            vec![region],
        )?;
        self.one(operation)
    }

    /// Inserts a generic.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn generic(&self, generic: &Generic<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let operation = self.insert(generic.build(self.context, self.location)?);
        self.one(operation)
    }

    /// A generic from an einsum-like specification such as `td,fd->tf`, one letter a loop. Loops of the output
    /// come first and are parallel, the others are reductions. The body's arguments are the inputs' elements,
    /// then the output's. Reductions start from a fill of `start`.
    ///
    /// # Errors
    /// When the specification does not fit the operands.
    pub fn structured(
        &self,
        specification: &str,
        inputs: &[Val<'c, 'a>],
        element: Element,
        start: f64,
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Val<'c, 'a>, Error> {
        self.structured_with(specification, inputs, &[], element, start, body)
    }

    /// As [`Builder::structured`], with tensors that the body reads by `tensor.extract`, and extents of loops
    /// that no input has.
    ///
    /// # Errors
    /// When the specification does not fit the operands.
    pub fn structured_with(
        &self,
        specification: &str,
        inputs: &[Val<'c, 'a>],
        captures: &[Val<'c, 'a>],
        element: Element,
        start: f64,
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Val<'c, 'a>, Error> {
        self.structured_over(specification, inputs, captures, &[], element, start, body)
    }

    /// As [`Builder::structured_with`]; `extents` gives the size of loops that no input has.
    ///
    /// # Errors
    /// When the specification does not fit the operands.
    #[allow(clippy::too_many_arguments)]
    pub fn structured_over(
        &self,
        specification: &str,
        inputs: &[Val<'c, 'a>],
        captures: &[Val<'c, 'a>],
        extents: &[(char, u64)],
        element: Element,
        start: f64,
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Val<'c, 'a>, Error> {
        let shape = self.shape(specification, inputs, captures, extents, element, body)?;
        let accumulates = shape.iterators.contains(&Iterator::Reduction) || shape.body.reads_output();
        let init = if accumulates { self.fill(start, &shape.result)? } else { self.empty(&shape.result)? };
        self.generic(&Generic { init, ..shape })
    }

    /// A generic whose output starts from `init`, which also gives the extents of the output's loops.
    ///
    /// # Errors
    /// When the specification does not fit the operands.
    pub fn accumulate(
        &self,
        specification: &str,
        inputs: &[Val<'c, 'a>],
        captures: &[Val<'c, 'a>],
        init: Val<'c, 'a>,
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Val<'c, 'a>, Error> {
        let r#type = TensorType::of(init)?;
        let output = letters(specification).pop().unwrap_or_default();
        let extents: Vec<(char, u64)> = output.into_iter().zip(r#type.shape).collect();
        let shape = self.shape(specification, inputs, captures, &extents, r#type.element, body)?;
        self.generic(&Generic { init, ..shape })
    }

    /// A generic without its initial value: the first input stands in for it.
    fn shape(
        &self,
        specification: &str,
        inputs: &[Val<'c, 'a>],
        captures: &[Val<'c, 'a>],
        extents: &[(char, u64)],
        element: Element,
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Generic<'c, 'a>, Error> {
        let mut loops = Loops::new(specification);
        let mut scalar = ScalarBody::new([]);
        for (index, input) in inputs.iter().enumerate() {
            let r#type = TensorType::of(*input)?;
            loops.bind(index, &r#type)?;
            scalar.args.push(r#type.element);
        }
        for &(letter, extent) in extents {
            loops.set(letter, extent);
        }
        scalar.args.push(element);
        let value = body(&mut scalar);
        let (maps, iterators, extents) = loops.finish()?;
        let shape: Vec<u64> = maps[inputs.len()].iter().map(|&index| extents[index]).collect();
        let init =
            *inputs.first().ok_or_else(|| Error::Mlir("a structured operation needs an input".into()))?;
        Ok(Generic {
            inputs: inputs.to_vec(),
            init,
            maps,
            iterators,
            extents,
            body: scalar.yield_(value),
            captures: captures.to_vec(),
            result: TensorType::new(shape, element),
        })
    }

    /// A contraction, accumulated into its own zero fill.
    ///
    /// # Errors
    /// When the specification does not fit the operands.
    pub fn contract(
        &self,
        specification: &str,
        a: Val<'c, 'a>,
        b: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let element = TensorType::of(a)?.element;
        self.structured(specification, &[a, b], element, 0.0, |body| {
            let multiply_add = multiply_add(element);
            let arguments = [Ref::Arg(0), Ref::Arg(1), Ref::Arg(2)];
            body.inline(&multiply_add, &arguments)[0]
        })
    }

    /// Elementwise work with broadcasting: the body's arguments are the inputs' elements.
    ///
    /// # Errors
    /// When the specification does not fit the operands.
    pub fn map(
        &self,
        specification: &str,
        inputs: &[Val<'c, 'a>],
        body: impl FnOnce(&mut ScalarBody) -> Ref,
    ) -> Result<Val<'c, 'a>, Error> {
        let element = TensorType::of(inputs[0])?.element;
        self.structured(specification, inputs, element, 0.0, body)
    }

    /// `x + y` of one shape.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn add(&self, x: Val<'c, 'a>, y: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let rank = TensorType::of(x)?.shape.len();
        let dims: String = ('a'..='z').take(rank).collect();
        self.map(&format!("{dims},{dims}->{dims}"), &[x, y], |body| body.add(Ref::Arg(0), Ref::Arg(1)))
    }

    /// Sums (or takes the maximum of) `x` over the letters missing from the output.
    ///
    /// # Errors
    /// When the specification does not fit.
    pub fn reduce(&self, specification: &str, x: Val<'c, 'a>, op: ScalarOp) -> Result<Val<'c, 'a>, Error> {
        let element = TensorType::of(x)?.element;
        let start = if op == ScalarOp::MaxF { f64::NEG_INFINITY } else { 0.0 };
        self.structured(specification, &[x], element, start, |body| body.binary(op, Ref::Arg(1), Ref::Arg(0)))
    }

    /// A call of a function of the module.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn call(
        &self,
        callee: &str,
        arguments: &[Val<'c, 'a>],
        results: &[TensorType],
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        let results: Vec<Type<'c>> = results.iter().map(|r#type| r#type.to_mlir(self.context)).collect();
        let attributes = [named(self.context, "callee", symbol_attr(self.context, callee))];
        let operation = self.op("func.call", arguments, &results, &attributes, vec![])?;
        Ok(operation.results().map(Into::into).collect())
    }

    /// The end of a function.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn ret(&self, values: &[Val<'c, 'a>]) -> Result<(), Error> {
        self.op("func.return", values, &[], &[], vec![]).map(drop)
    }

    /// A `shard` collective on `grid` along `axes`; `dimension` is the attribute and its value, where the
    /// collective has one.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn collective(
        &self,
        name: &str,
        input: Val<'c, 'a>,
        (grid, axes): (&str, &[usize]),
        dimension: Option<(&str, usize)>,
        reduction: Option<&str>,
        result: &TensorType,
    ) -> Result<Val<'c, 'a>, Error> {
        let context = self.context;
        let axes: Vec<i16> = axes.iter().map(|&axis| axis as i16).collect();
        let mut attributes = vec![
            named(context, "grid", symbol_attr(context, grid)),
            (Identifier::new(context, "grid_axes"), ffi::i16_array(context, &axes)),
        ];
        if let Some((attribute, dimension)) = dimension {
            attributes.push(named(context, attribute, index_attr(context, dimension as i64)));
        }
        if let Some(reduction) = reduction {
            let text = format!("#shard<partial {reduction}>");
            let attribute = Attribute::parse(context, &text)
                .ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))?;
            attributes.push(named(context, "reduction", attribute));
        }
        let operation = self.op(name, &[input], &[result.to_mlir(context)], &attributes, vec![])?;
        self.one(operation)
    }

    /// Annotates `value` with the grid axes that split each of its dimensions, outermost first.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn shard(&self, value: Val<'c, 'a>, grid: &str, splits: &[Vec<usize>]) -> Result<Val<'c, 'a>, Error> {
        let text = format!("#shard<axisarray{splits:?}>");
        let split_axes = Attribute::parse(self.context, &text)
            .ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))?;
        let sharding_type = Type::parse(self.context, "!shard.sharding")
            .ok_or_else(|| Error::Mlir("no !shard.sharding type".into()))?;
        let parse = |text: &str| {
            Attribute::parse(self.context, text).ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))
        };
        let (segments, operand_segments) = (parse("array<i64>")?, parse("array<i32: 0, 0>")?);
        let sharding = self.op(
            "shard.sharding",
            &[],
            &[sharding_type],
            &[
                named(self.context, "grid", symbol_attr(self.context, grid)),
                named(self.context, "operandSegmentSizes", operand_segments),
                named(self.context, "split_axes", split_axes),
                named(self.context, "static_halo_sizes", segments),
                named(self.context, "static_sharded_dims_offsets", segments),
            ],
            vec![],
        )?;
        let sharding = self.one(sharding)?;
        let operation = self.op("shard.shard", &[value, sharding], &[value.r#type()], &[], vec![])?;
        self.one(operation)
    }
}

/// The loops of a specification while their extents are being learned.
struct Loops {
    operands: Vec<Vec<char>>,
    order: Vec<char>,
    extents: Vec<Option<u64>>,
}

impl Loops {
    fn new(specification: &str) -> Self {
        let operands = letters(specification);
        let output = operands.last().cloned().unwrap_or_default();
        let mut order = output;
        for &letter in operands.iter().flatten() {
            if !order.contains(&letter) {
                order.push(letter);
            }
        }
        let extents = vec![None; order.len()];
        Self { operands, order, extents }
    }

    fn set(&mut self, letter: char, extent: u64) {
        if let Some(index) = self.order.iter().position(|&other| other == letter) {
            self.extents[index] = Some(extent);
        }
    }

    fn bind(&mut self, operand: usize, r#type: &TensorType) -> Result<(), Error> {
        let letters = self.operands.get(operand).cloned().unwrap_or_default();
        if letters.len() != r#type.shape.len() {
            return Err(Error::Mlir(format!("{} letters for a {type}", letters.len(), r#type = r#type)));
        }
        for (letter, &extent) in letters.into_iter().zip(&r#type.shape) {
            let index = self.order.iter().position(|&other| other == letter).unwrap_or(0);
            if self.extents[index].is_some_and(|known| known != extent) {
                return Err(Error::Mlir(format!(
                    "loop `{letter}` is both {:?} and {extent}",
                    self.extents[index]
                )));
            }
            self.extents[index] = Some(extent);
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn finish(self) -> Result<(Vec<Vec<usize>>, Vec<Iterator>, Vec<u64>), Error> {
        let Self { operands, order, extents } = self;
        let position = |letter: &char| order.iter().position(|other| other == letter).unwrap_or(0);
        let maps: Vec<Vec<usize>> =
            operands.iter().map(|letters| letters.iter().map(position).collect()).collect();
        let parallel = operands.last().map_or(0, Vec::len);
        let kind = |index| if index < parallel { Iterator::Parallel } else { Iterator::Reduction };
        let iterators = (0..order.len()).map(kind).collect();
        let extents = extents
            .into_iter()
            .zip(&order)
            .map(|(extent, letter)| {
                extent.ok_or_else(|| Error::Mlir(format!("loop `{letter}` has no extent")))
            })
            .collect::<Result<_, _>>()?;
        Ok((maps, iterators, extents))
    }
}
