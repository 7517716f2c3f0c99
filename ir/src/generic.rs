//! `linalg.generic` (and `linalg.fill`) as plain data plus values: read it, reason about it, write a new one.

use melior::ir::{
    AffineMap, Attribute, Block, BlockLike, Location, Region, RegionLike, Type, ValueLike,
    attribute::ArrayAttribute,
    operation::{OperationBuilder, OperationLike},
};
use t3c_schedule::Element;

use crate::{
    Error, Op, Val,
    attributes::named,
    ffi,
    scalar::{Inst, Predicate, Ref, ScalarBody, ScalarOp},
    structured,
    types::{TensorType, element_of, element_type},
    walk,
};

/// The kind of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Iterator {
    Parallel,
    Reduction,
}

/// A structured operation: loops, operands with their indexing maps, and a scalar body.
///
/// Every map is a projected permutation and is kept as the list of loops, one a dimension of the operand.
/// Exactly one output, whose initial value is `init`.
#[derive(Clone, Debug)]
pub struct Generic<'c, 'a> {
    /// Tensors (or scalars, as rank 0) that are read.
    pub inputs: Vec<Val<'c, 'a>>,
    /// The initial value of the output.
    pub init: Val<'c, 'a>,
    /// For each input, then the output: the loop of each of its dimensions.
    pub maps: Vec<Vec<usize>>,
    /// The kind of each loop.
    pub iterators: Vec<Iterator>,
    /// The extent of each loop.
    pub extents: Vec<u64>,
    /// The body. Its arguments are the inputs' elements, then the output's.
    pub body: ScalarBody,
    /// Tensors that the body reads by `tensor.extract`.
    pub captures: Vec<Val<'c, 'a>>,
    /// The type of the result.
    pub result: TensorType,
}

impl<'c, 'a> Generic<'c, 'a> {
    /// Whether `operation` has the form of this view, without reading it.
    pub fn is(operation: Op<'_, '_>) -> bool {
        walk::is(operation, "linalg.generic")
            || walk::is(operation, "linalg.fill")
            || structured::is(operation)
    }

    /// Reads an operation.
    ///
    /// # Errors
    /// Names what the view cannot express: several results, a map that is no projected permutation, an
    /// instruction without a scalar form.
    pub fn read(operation: Op<'c, 'a>) -> Result<Self, Error> {
        if walk::is(operation, "linalg.fill") {
            return Self::read_fill(operation);
        }
        let mut all = Self::read_all(operation)?;
        match (all.pop(), all.is_empty()) {
            (Some(generic), true) => Ok(generic),
            _ => Err(Error::at(operation, "expected a linalg.generic with one result")),
        }
    }

    fn read_fill(operation: Op<'c, 'a>) -> Result<Self, Error> {
        let (value, init) = (operation.operand(0)?, operation.operand(1)?);
        let result = TensorType::of(init)?;
        let rank = result.shape.len();
        let body = ScalarBody::new([result.element; 2]).yield_(Ref::Arg(0));
        Ok(Self {
            inputs: vec![value],
            init,
            maps: vec![vec![], (0..rank).collect()],
            iterators: vec![Iterator::Parallel; rank],
            extents: result.shape.clone(),
            body,
            captures: vec![],
            result,
        })
    }

    /// Builds the operation; it sits nowhere yet.
    ///
    /// # Errors
    /// When MLIR refuses a part of it.
    pub fn build(
        &self,
        context: &'c melior::Context,
        location: Location<'c>,
    ) -> Result<melior::ir::Operation<'c>, Error> {
        let maps: Vec<Attribute<'c>> = self
            .maps
            .iter()
            .map(|map| {
                let results: Vec<_> =
                    map.iter().map(|&index| melior::ir::AffineExpr::dim(context, index)).collect();
                ffi::affine_map_attribute(AffineMap::new(context, self.iterators.len(), 0, &results))
            })
            .collect();
        let iterators = self
            .iterators
            .iter()
            .map(|kind| {
                let text = match kind {
                    Iterator::Parallel => "#linalg.iterator_type<parallel>",
                    Iterator::Reduction => "#linalg.iterator_type<reduction>",
                };
                Attribute::parse(context, text).ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let operands: Vec<Val<'c, 'a>> = self.inputs.iter().copied().chain([self.init]).collect();
        let segments = Attribute::parse(context, &format!("array<i32: {}, 1>", self.inputs.len()))
            .ok_or_else(|| Error::Mlir("cannot make operand segments".into()))?;
        let region = Region::new();
        region.append_block(self.build_body(context, location)?);
        Ok(OperationBuilder::new("linalg.generic", location)
            .add_operands(&operands)
            .add_results(&[self.result.to_mlir(context)])
            .add_attributes(&[
                named(context, "indexing_maps", ArrayAttribute::new(context, &maps)),
                named(context, "iterator_types", ArrayAttribute::new(context, &iterators)),
                named(context, "operandSegmentSizes", segments),
            ])
            .add_regions([region])
            .build()?)
    }

    fn build_body(&self, context: &'c melior::Context, location: Location<'c>) -> Result<Block<'c>, Error> {
        let arguments: Vec<_> =
            self.body.args.iter().map(|&element| (element_type(context, element), location)).collect();
        let block = Block::new(&arguments);
        let mut emitter =
            BodyEmitter { context, location, block: &block, body: &self.body, values: Vec::new() };
        for inst in &self.body.insts {
            emitter.emit(inst, &self.captures)?;
        }
        let yields: Vec<_> =
            self.body.yields.iter().map(|&value| emitter.value(value)).collect::<Result<_, _>>()?;
        block
            .append_operation(OperationBuilder::new("linalg.yield", location).add_operands(&yields).build()?);
        Ok(block)
    }

    /// Whether this is a contraction of two inputs: `out + a · b`.
    pub fn is_contraction(&self) -> bool {
        self.inputs.len() == 2 && self.body.is_multiply_add() && self.iterators.contains(&Iterator::Reduction)
    }

    /// Whether a contraction is worth a matrix-product kernel. Many tiny products, such as rotary embedding's
    /// 2×2 rotations (batched over tokens and frequencies), are loops.
    pub fn is_matrix_product(&self) -> bool {
        /// Multiply-adds of one product below which packing costs more than it saves.
        const SMALLEST: u64 = 1024;
        self.contraction().is_some_and(|contraction| {
            let shape = contraction.gemm_shape();
            shape.batch == 1 || shape.m * shape.n * shape.k >= SMALLEST
        })
    }

    /// Whether every loop is parallel and the body does not read the output.
    pub fn is_elementwise(&self) -> bool {
        self.iterators.iter().all(|kind| *kind == Iterator::Parallel) && !self.body.reads_output()
    }

    /// The map of the output.
    pub fn output_map(&self) -> &[usize] {
        self.maps.last().map_or(&[], Vec::as_slice)
    }

    /// Floating-point operations of the whole operation.
    pub fn flops(&self) -> u64 {
        self.extents.iter().product::<u64>() * self.body.flops()
    }

    /// The contraction as the schedule describes it, if it is one.
    pub fn contraction(&self) -> Option<t3c_schedule::Contraction> {
        self.is_contraction().then(|| t3c_schedule::Contraction {
            extents: self.extents.clone(),
            a: self.maps[0].clone(),
            b: self.maps[1].clone(),
            c: self.maps[2].clone(),
        })
    }
}

/// Whether `value` is zero everywhere: a fill of zero or a zero constant.
pub fn is_zero(value: Val<'_, '_>) -> bool {
    splat_value(value) == Some(0.0)
}

/// The number that fills `value`, where it is a constant splat or a fill of a constant.
pub fn splat_value(value: Val<'_, '_>) -> Option<f64> {
    let owner = ffi::value_owner(value)?;
    if walk::is(owner, "linalg.fill") {
        return splat_value(owner.operand(0).ok()?);
    }
    if !walk::is(owner, "arith.constant") {
        return None;
    }
    constant_number(owner)
}

fn constant_number(constant: Op<'_, '_>) -> Option<f64> {
    use melior::ir::attribute::{FloatAttribute, IntegerAttribute};
    let attribute = constant.attribute("value").ok()?;
    if let Ok(float) = FloatAttribute::try_from(attribute) {
        return Some(float.value());
    }
    if let Ok(integer) = IntegerAttribute::try_from(attribute) {
        return Some(integer.value() as f64);
    }
    let element = TensorType::of(constant.result(0).ok()?.into()).ok()?.element;
    let (bytes, splat) = ffi::dense_bytes(attribute, element.bytes() as usize)?;
    splat.then(|| number_from_bytes(&bytes, element)).flatten()
}

/// One element from its little-endian bytes.
pub fn number_from_bytes(bytes: &[u8], element: Element) -> Option<f64> {
    Some(match element {
        Element::F64 => f64::from_le_bytes(bytes.try_into().ok()?),
        Element::F32 => f64::from(f32::from_le_bytes(bytes.try_into().ok()?)),
        Element::I64 => i64::from_le_bytes(bytes.try_into().ok()?) as f64,
        Element::I32 => f64::from(i32::from_le_bytes(bytes.try_into().ok()?)),
        Element::I1 => f64::from(bytes.first()? & 1),
        Element::Bf16 => {
            f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes.try_into().ok()?)) << 16))
        }
        Element::F16 => return None,
    })
}

pub(crate) fn projected_permutation(attribute: Attribute<'_>) -> Option<Vec<usize>> {
    let map = ffi::affine_map_of(attribute)?;
    let results: Option<Vec<usize>> = (0..map.result_count())
        .map(|index| {
            let loop_ = map.result(index).ok()?;
            loop_.is_dim().then(|| loop_.dim_position())
        })
        .collect();
    results.filter(|results| (1..results.len()).all(|index| !results[..index].contains(&results[index])))
}

pub(crate) fn read_body<'c, 'a>(
    operation: Op<'c, 'a>,
    block: crate::Blk<'c, 'a>,
) -> Result<(ScalarBody, Vec<Val<'c, 'a>>), Error> {
    let mut reader =
        BodyReader { operation, known: Vec::new(), captures: Vec::new(), body: ScalarBody::new([]) };
    for index in 0..block.argument_count() {
        let argument: Val<'c, 'a> = block.argument(index)?.into();
        let element = element_of(argument.r#type())
            .ok_or_else(|| Error::at(operation, format!("unsupported scalar type {}", argument.r#type())))?;
        reader.body.args.push(element);
        reader.known.push((ffi::value_key(argument), Ref::Arg(index)));
    }
    for inst in walk::operations(block) {
        reader.read(inst)?;
    }
    Ok((reader.body, reader.captures))
}

struct BodyReader<'c, 'a> {
    operation: Op<'c, 'a>,
    known: Vec<(usize, Ref)>,
    captures: Vec<Val<'c, 'a>>,
    body: ScalarBody,
}

impl<'c, 'a> BodyReader<'c, 'a> {
    fn value(&mut self, value: Val<'c, 'a>) -> Result<Ref, Error> {
        let key = ffi::value_key(value);
        if let Some((_, found)) = self.known.iter().find(|(other, _)| *other == key) {
            return Ok(*found);
        }
        let owner = ffi::value_owner(value)
            .filter(|owner| walk::is(*owner, "arith.constant"))
            .ok_or_else(|| Error::at(self.operation, "the body captures a scalar that is not a constant"))?;
        self.constant(owner)
    }

    fn constant(&mut self, constant: Op<'c, 'a>) -> Result<Ref, Error> {
        let result: Val<'c, 'a> = constant.result(0)?.into();
        let element = element_of(result.r#type());
        let number = constant_number(constant);
        let (Some(element), Some(number)) = (element, number) else {
            return Err(Error::at(constant, "unsupported constant in a body"));
        };
        let value = match element {
            Element::I1 | Element::I32 | Element::I64 => {
                self.body.push(ScalarOp::ConstInt(number as i64), &[], element)
            }
            _ => self.body.constant(number, element),
        };
        self.known.push((ffi::value_key(result), value));
        Ok(value)
    }

    fn read(&mut self, inst: Op<'c, 'a>) -> Result<(), Error> {
        let name = walk::name(inst);
        match name.as_str() {
            "linalg.yield" => {
                let yields: Vec<_> = inst.operands().collect();
                self.body.yields =
                    yields.into_iter().map(|value| self.value(value)).collect::<Result<_, _>>()?;
                return Ok(());
            }
            "arith.constant" => return self.constant(inst).map(drop),
            _ => {}
        }
        let result: Val<'c, 'a> = inst.result(0)?.into();
        let element = element_of(result.r#type())
            .ok_or_else(|| Error::at(inst, format!("unsupported scalar type {}", result.r#type())))?;
        let mut operands: Vec<Val<'c, 'a>> = inst.operands().collect();
        let op = if name == "tensor.extract" {
            let tensor = operands.remove(0);
            self.captures.push(tensor);
            ScalarOp::Extract(self.captures.len() - 1)
        } else {
            scalar_op(inst, &name).ok_or_else(|| {
                Error::at(
                    inst,
                    format!(
                        "`{name}` has no scalar form; expected arith, math, linalg.index or tensor.extract"
                    ),
                )
            })?
        };
        let operands = operands.into_iter().map(|value| self.value(value)).collect::<Result<Vec<_>, _>>()?;
        let value = self.body.push(op, &operands, element);
        self.known.push((ffi::value_key(result), value));
        Ok(())
    }
}

const FLOAT_OPS: [(&str, ScalarOp); 18] = [
    ("arith.addf", ScalarOp::AddF),
    ("arith.subf", ScalarOp::SubF),
    ("arith.mulf", ScalarOp::MulF),
    ("arith.divf", ScalarOp::DivF),
    ("arith.negf", ScalarOp::NegF),
    ("arith.maximumf", ScalarOp::MaxF),
    ("arith.minimumf", ScalarOp::MinF),
    ("math.powf", ScalarOp::PowF),
    ("math.exp", ScalarOp::Exp),
    ("math.log", ScalarOp::Log),
    ("math.sqrt", ScalarOp::Sqrt),
    ("math.rsqrt", ScalarOp::Rsqrt),
    ("math.tanh", ScalarOp::Tanh),
    ("math.erf", ScalarOp::Erf),
    ("math.sin", ScalarOp::Sin),
    ("math.cos", ScalarOp::Cos),
    ("math.absf", ScalarOp::AbsF),
    ("arith.sitofp", ScalarOp::IntToFloat),
];

const INT_OPS: [(&str, ScalarOp); 8] = [
    ("arith.addi", ScalarOp::AddI),
    ("arith.subi", ScalarOp::SubI),
    ("arith.muli", ScalarOp::MulI),
    ("arith.divsi", ScalarOp::DivI),
    ("arith.remsi", ScalarOp::RemI),
    ("arith.andi", ScalarOp::And),
    ("arith.ori", ScalarOp::Or),
    ("arith.select", ScalarOp::Select),
];

/// (predicate, its number in arith.cmpf, its number in arith.cmpi).
const PREDICATES: [(Predicate, i64, i64); 6] = [
    (Predicate::Eq, 1, 0),
    (Predicate::Ne, 6, 1),
    (Predicate::Lt, 4, 2),
    (Predicate::Le, 5, 3),
    (Predicate::Gt, 2, 4),
    (Predicate::Ge, 3, 5),
];

/// The scalar instruction of an `arith`, `math` or `linalg.index` operation, also of one on whole tensors.
pub fn scalar_op(inst: Op<'_, '_>, name: &str) -> Option<ScalarOp> {
    let tabled = FLOAT_OPS.iter().chain(&INT_OPS).find(|(known, _)| *known == name);
    if let Some((_, op)) = tabled {
        return Some(*op);
    }
    let number = || crate::attributes::integer(inst, "predicate");
    match name {
        "linalg.index" => crate::attributes::integer(inst, "dim").map(|dim| ScalarOp::Index(dim as usize)),
        "arith.cmpf" => {
            let number = number()?;
            PREDICATES
                .iter()
                .find(|row| row.1 == number || (number == 13 && row.1 == 6))
                .map(|row| ScalarOp::CmpF(row.0))
        }
        "arith.cmpi" => {
            let number = number()?;
            PREDICATES.iter().find(|row| row.2 == number).map(|row| ScalarOp::CmpI(row.0))
        }
        "arith.index_cast" | "arith.extsi" | "arith.trunci" | "arith.extui" => Some(ScalarOp::IntCast),
        "arith.extf" | "arith.truncf" => Some(ScalarOp::FloatCast),
        "arith.maxnumf" => Some(ScalarOp::MaxF),
        "arith.minnumf" => Some(ScalarOp::MinF),
        _ => None,
    }
}

struct BodyEmitter<'c, 'b> {
    context: &'c melior::Context,
    location: Location<'c>,
    block: &'b Block<'c>,
    body: &'b ScalarBody,
    values: Vec<Val<'c, 'b>>,
}

impl<'c, 'b> BodyEmitter<'c, 'b> {
    fn value(&self, value: Ref) -> Result<Val<'c, 'b>, Error> {
        Ok(match value {
            Ref::Arg(index) => self.block.argument(index)?.into(),
            Ref::Inst(index) => self.values[index],
        })
    }

    fn append(
        &self,
        name: &str,
        operands: &[Val<'c, 'b>],
        result: Type<'c>,
        attributes: &[crate::attributes::Named<'c>],
    ) -> Result<Val<'c, 'b>, Error> {
        let operation = OperationBuilder::new(name, self.location)
            .add_operands(operands)
            .add_results(&[result])
            .add_attributes(attributes)
            .build()?;
        Ok(self.block.append_operation(operation).result(0)?.into())
    }

    /// Bodies count in I64 where MLIR wants `index`.
    fn as_index(&self, value: Val<'c, 'b>) -> Result<Val<'c, 'b>, Error> {
        self.append("arith.index_cast", &[value], Type::index(self.context), &[])
    }

    fn emit(&mut self, inst: &Inst, captures: &[Val<'c, '_>]) -> Result<(), Error> {
        let result = element_type(self.context, inst.element);
        let operands = inst.operands.iter().map(|&value| self.value(value)).collect::<Result<Vec<_>, _>>()?;
        let value = match inst.op {
            ScalarOp::Const(number) => {
                let attribute = melior::ir::attribute::FloatAttribute::new(self.context, result, number);
                self.append("arith.constant", &[], result, &[named(self.context, "value", attribute)])?
            }
            ScalarOp::ConstInt(number) => {
                let attribute = melior::ir::attribute::IntegerAttribute::new(result, number);
                self.append("arith.constant", &[], result, &[named(self.context, "value", attribute)])?
            }
            ScalarOp::Index(dimension) => {
                let attribute = crate::attributes::integer_attr(self.context, dimension as i64);
                let index = self.append(
                    "linalg.index",
                    &[],
                    Type::index(self.context),
                    &[named(self.context, "dim", attribute)],
                )?;
                self.append("arith.index_cast", &[index], result, &[])?
            }
            ScalarOp::Extract(capture) => {
                // SAFETY of lifetimes: a captured value outlives the body that is being built for it.
                let mut all = vec![ffi::shorten(captures[capture])];
                for operand in operands {
                    all.push(self.as_index(operand)?);
                }
                self.append("tensor.extract", &all, result, &[])?
            }
            ScalarOp::CmpF(predicate) | ScalarOp::CmpI(predicate) => {
                let float = matches!(inst.op, ScalarOp::CmpF(_));
                let row = PREDICATES.iter().find(|row| row.0 == predicate).unwrap_or(&PREDICATES[0]);
                let number = crate::attributes::integer_attr(self.context, if float { row.1 } else { row.2 });
                let name = if float { "arith.cmpf" } else { "arith.cmpi" };
                self.append(name, &operands, result, &[named(self.context, "predicate", number)])?
            }
            ScalarOp::IntCast | ScalarOp::FloatCast => self.emit_cast(inst, &operands, result)?,
            op => {
                let (name, _) = FLOAT_OPS
                    .iter()
                    .chain(&INT_OPS)
                    .find(|(_, known)| *known == op)
                    .ok_or_else(|| Error::Mlir(format!("{op:?} has no MLIR operation")))?;
                self.append(name, &operands, result, &[])?
            }
        };
        self.values.push(value);
        Ok(())
    }

    fn emit_cast(
        &self,
        inst: &Inst,
        operands: &[Val<'c, 'b>],
        result: Type<'c>,
    ) -> Result<Val<'c, 'b>, Error> {
        let from = self.body.element(inst.operands[0]).bytes();
        let to = inst.element.bytes();
        let name = match (inst.op, from < to) {
            (ScalarOp::IntCast, true) => "arith.extsi",
            (ScalarOp::IntCast, false) => "arith.trunci",
            (_, true) => "arith.extf",
            (_, false) => "arith.truncf",
        };
        if from == to { Ok(operands[0]) } else { self.append(name, operands, result, &[]) }
    }
}
