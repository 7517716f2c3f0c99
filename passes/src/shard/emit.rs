//! Writes the operations of a device's program: collectives, offsets, masks.

use std::collections::HashMap;

use melior::ir::{Location, Type, operation::OperationLike};
use t3c_ir::{
    Builder, Element, Op, Predicate, Ref, ScalarBody, ScalarOp, TensorType, Val,
    attributes::{index_attr, named, symbol_attr},
    ffi,
    function::Function,
    types::element_type,
    walk,
};
use t3c_schedule::Grid;

use super::{
    Error,
    graph::{Free, FunctionGraph},
    plan::Reshard,
    reduction_name,
    sharding::{Sharding, Step, apply, steps},
};

/// Writes one function; knows every value in every form that exists so far.
pub struct Emitter<'r, 'c, 'a> {
    end: Builder<'c, 'a>,
    grid_name: &'r str,
    grid: &'r Grid,
    function: &'r FunctionGraph,
    operations: Vec<Op<'c, 'a>>,
    made: HashMap<(usize, Sharding), Val<'c, 'a>>,
    offsets: HashMap<(usize, u64), Val<'c, 'a>>,
}

impl<'r, 'c, 'a> Emitter<'r, 'c, 'a> {
    /// At the end of `target`, before its terminator.
    pub fn new(
        target: Function<'c, 'a>,
        (grid_name, grid): (&'r str, &'r Grid),
        function: &'r FunctionGraph,
    ) -> Result<Self, Error> {
        let missing = || t3c_ir::Error::at(target.0, "has no body");
        let operations = walk::operations(target.body().ok_or_else(missing)?);
        let end = Builder::before(*operations.last().ok_or_else(missing)?)?;
        let (made, offsets) = (HashMap::new(), HashMap::new());
        Ok(Self { end, grid_name, grid, function, operations, made, offsets })
    }

    /// An operation of the old body.
    pub fn operation(&self, node: usize) -> Op<'c, 'a> {
        self.operations[node]
    }

    /// A builder at the place of writing.
    pub fn builder(&self, location: Location<'c>) -> Builder<'c, 'a> {
        self.end.at(location)
    }

    /// Remembers a form of a value.
    pub fn define(&mut self, value: usize, form: &Sharding, made: Val<'c, 'a>) {
        self.made.insert((value, form.clone()), made);
    }

    /// The type of a value in a form.
    pub fn local(&self, value: usize, form: &Sharding) -> TensorType {
        let whole = &self.function.values[value].r#type;
        TensorType::new(form.local(&whole.shape, self.grid), whole.element)
    }

    /// A value in a form: as it was made, or made anew where it has no content of its own.
    pub fn value(&self, value: usize, form: &Sharding, b: &Builder<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        if let Some(made) = self.made.get(&(value, form.clone())) {
            return Ok(*made);
        }
        let r#type = self.local(value, form);
        match self.function.values[value].free {
            Some(Free::Empty) => Ok(b.empty(&r#type)?),
            Some(Free::Fill(number)) => Ok(b.fill(number, &r#type)?),
            Some(Free::Splat(number)) => Ok(b.splat(number, &r#type)?),
            None => Err(t3c_ir::Error::Mlir(format!("value {value} was planned but never made")).into()),
        }
    }

    /// Makes a form of a value from another, under the location of what made the value.
    pub fn reshard(&mut self, reshard: &Reshard, user: Location<'c>) -> Result<(), Error> {
        let mut now = reshard.from.clone();
        let mut value = self.value(reshard.value, &now, &self.builder(user))?;
        let location = ffi::value_owner(value).map_or(user, |owner| owner.location());
        let b = self.builder(location);
        for step in steps(&reshard.from, &reshard.to) {
            now = apply(&now, step);
            value = self.collective(step, value, &self.local(reshard.value, &now), &b)?;
        }
        self.define(reshard.value, &reshard.to, value);
        Ok(())
    }

    fn collective(
        &self,
        step: Step,
        value: Val<'c, 'a>,
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let on = |name, axis: usize, dimension, reduction| {
            b.collective(name, value, (self.grid_name, &[axis]), dimension, reduction, result)
        };
        Ok(match step {
            Step::AllReduce { axis, reduction } => {
                on("shard.all_reduce", axis, None, reduction_name(reduction))?
            }
            Step::ReduceScatter { axis, dimension, reduction } => on(
                "shard.reduce_scatter",
                axis,
                Some(("scatter_axis", dimension)),
                reduction_name(reduction),
            )?,
            Step::AllGather { axis, dimension } => {
                on("shard.all_gather", axis, Some(("gather_axis", dimension)), None)?
            }
            Step::AllSlice { axis, dimension } => {
                on("shard.all_slice", axis, Some(("slice_axis", dimension)), None)?
            }
            Step::AllToAll { axis, split, concat } => {
                self.all_to_all(axis, (split, concat), value, result, b)?
            }
        })
    }

    fn all_to_all(
        &self,
        axis: usize,
        (split, concat): (usize, usize),
        value: Val<'c, 'a>,
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let context = b.context();
        let attributes = [
            named(context, "grid", symbol_attr(context, self.grid_name)),
            named(context, "grid_axes", ffi::i16_array(context, &[axis as i16])),
            named(context, "split_axis", index_attr(context, split as i64)),
            named(context, "concat_axis", index_attr(context, concat as i64)),
        ];
        let exchanged =
            b.op("shard.all_to_all", &[value], &[result.to_mlir(context)], &attributes, vec![])?;
        Ok(exchanged.result(0).map_err(t3c_ir::Error::from)?.into())
    }

    /// The device's first index of a dimension of which it has `extent` indices, split over `axis`: a
    /// `tensor<i64>` of rank 0.
    pub fn offset(&mut self, axis: usize, extent: u64, b: &Builder<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        if let Some(offset) = self.offsets.get(&(axis, extent)) {
            return Ok(*offset);
        }
        let context = b.context();
        let i64_type = element_type(context, Element::I64);
        let one = |operation: Op<'c, 'a>| -> Result<Val<'c, 'a>, Error> {
            Ok(operation.result(0).map_err(t3c_ir::Error::from)?.into())
        };
        let attributes = [
            named(context, "grid", symbol_attr(context, self.grid_name)),
            named(context, "axes", ffi::i16_array(context, &[axis as i16])),
        ];
        let index =
            one(b.op("shard.process_multi_index", &[], &[Type::index(context)], &attributes, vec![])?)?;
        let index = one(b.op("arith.index_cast", &[index], &[i64_type], &[], vec![])?)?;
        let extent_value = b.scalar(extent as f64, Element::I64)?;
        let first = one(b.op("arith.muli", &[index, extent_value], &[i64_type], &[], vec![])?)?;
        let rank_0 = TensorType::new([], Element::I64).to_mlir(context);
        let offset = one(b.op("tensor.from_elements", &[first], &[rank_0], &[], vec![])?)?;
        self.offsets.insert((axis, extent), offset);
        Ok(offset)
    }

    /// `value` on the first device along `axes`, zero on the others: so that a sum adds it once.
    pub fn once(
        &mut self,
        value: Val<'c, 'a>,
        axes: &[usize],
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let mut value = value;
        for &axis in axes {
            let (r#type, coordinate) = (TensorType::of(value)?, self.offset(axis, 1, b)?);
            let all: String = ('a'..='z').take(r#type.shape.len()).collect();
            value =
                b.structured(&format!("{all},->{all}"), &[value, coordinate], r#type.element, 0.0, |body| {
                    let (none, zero) = (body.int(0), body.constant(0.0, r#type.element));
                    let first = body.cmp_i(Predicate::Eq, Ref::Arg(1), none);
                    body.select(first, Ref::Arg(0), zero)
                })?;
        }
        Ok(value)
    }

    /// Rows of a table of which every device has some: other devices' rows are zero.
    pub fn masked_lookup(
        &mut self,
        symbol: &str,
        axis: usize,
        (table, ids): (Val<'c, 'a>, Val<'c, 'a>),
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let (table_type, ids_type) = (TensorType::of(table)?, TensorType::of(ids)?);
        let rows = table_type.shape[0];
        let offset = self.offset(axis, rows, b)?;
        let own = |body: &mut ScalarBody, id: usize, offset: usize| {
            let id = body.to_i64(Ref::Arg(id));
            let id = body.binary(ScalarOp::SubI, id, Ref::Arg(offset));
            let (zero, rows) = (body.int(0), body.int(rows as i64));
            let above = body.cmp_i(Predicate::Ge, id, zero);
            let below = body.cmp_i(Predicate::Lt, id, rows);
            (id, zero, body.binary(ScalarOp::And, above, below))
        };
        let n: String = ('a'..='z').take(ids_type.shape.len()).collect();
        let local = b.structured(&format!("{n},->{n}"), &[ids, offset], ids_type.element, 0.0, |body| {
            let (id, zero, own) = own(body, 0, 1);
            let id = body.select(own, id, zero);
            if ids_type.element == Element::I64 {
                id
            } else {
                body.push(ScalarOp::IntCast, &[id], ids_type.element)
            }
        })?;
        let result =
            TensorType::new([ids_type.shape.as_slice(), &table_type.shape[1..]].concat(), table_type.element);
        let found = b.call(symbol, &[table, local], std::slice::from_ref(&result))?[0];
        let all: String = ('a'..='z').take(result.shape.len()).collect();
        Ok(b.structured(&format!("{all},{n},->{all}"), &[found, ids, offset], result.element, 0.0, |body| {
            let (_, _, own) = own(body, 1, 2);
            let zero = body.constant(0.0, result.element);
            body.select(own, Ref::Arg(0), zero)
        })?)
    }
}

/// The body with the device's offset added to the index of each split loop, and those loops: the offsets are new
/// arguments, in that order, before the output's element.
pub fn localised(body: &ScalarBody, factors: &[Option<usize>]) -> (ScalarBody, Vec<usize>) {
    let mut shifted: Vec<usize> = Vec::new();
    for inst in &body.insts {
        if let ScalarOp::Index(at) = inst.op
            && factors[at].is_some()
            && !shifted.contains(&at)
        {
            shifted.push(at);
        }
    }
    let inputs = body.args.len() - 1;
    let mut args = body.args.clone();
    args.splice(inputs..inputs, vec![Element::I64; shifted.len()]);
    let mut local = ScalarBody::new(args);
    let mut known: Vec<Ref> = Vec::with_capacity(body.insts.len());
    let translate = |value: Ref, known: &[Ref]| match value {
        Ref::Arg(index) if index == inputs => Ref::Arg(inputs + shifted.len()),
        Ref::Arg(index) => Ref::Arg(index),
        Ref::Inst(index) => known[index],
    };
    for inst in &body.insts {
        let operands: Vec<Ref> = inst.operands.iter().map(|&value| translate(value, &known)).collect();
        let mut value = local.push(inst.op, &operands, inst.element);
        if let ScalarOp::Index(at) = inst.op
            && let Some(number) = shifted.iter().position(|&other| other == at)
        {
            value = local.push(ScalarOp::AddI, &[value, Ref::Arg(inputs + number)], inst.element);
        }
        known.push(value);
    }
    local.yields = body.yields.iter().map(|&value| translate(value, &known)).collect();
    (local, shifted)
}
