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

use crate::find_pairs::ROWS;

use super::{
    Error,
    graph::{Free, FunctionGraph, Graph},
    plan::Reshard,
    reduction_name,
    sharding::{Sharding, Step, apply, steps},
};

/// Writes one function; knows every value in every form that exists so far.
pub struct Emitter<'r, 'c, 'a> {
    end: Builder<'c, 'a>,
    grid_name: &'r str,
    grid: &'r Grid,
    graph: &'r Graph,
    function: &'r FunctionGraph,
    operations: Vec<Op<'c, 'a>>,
    made: HashMap<(usize, Sharding), Val<'c, 'a>>,
    offsets: HashMap<(Vec<usize>, u64), Val<'c, 'a>>,
}

impl<'r, 'c, 'a> Emitter<'r, 'c, 'a> {
    /// At the end of `target`, before its terminator.
    pub fn new(
        target: Function<'c, 'a>,
        (grid_name, graph): (&'r str, &'r Graph),
        function: &'r FunctionGraph,
    ) -> Result<Self, Error> {
        let missing = || t3c_ir::Error::at(target.0, "has no body");
        let operations = walk::operations(target.body().ok_or_else(missing)?);
        let end = Builder::before(*operations.last().ok_or_else(missing)?)?;
        let (made, offsets) = (HashMap::new(), HashMap::new());
        Ok(Self { end, grid_name, grid: &graph.grid, graph, function, operations, made, offsets })
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
            let rows = self.routed_rows(reshard.value, &now);
            now = apply(&now, &step);
            value = self.collective(&step, value, &self.local(reshard.value, &now), &b)?;
            if let (Step::AllToAll { .. }, Some(rows), Some(exchange)) =
                (&step, rows, ffi::value_owner(value))
            {
                ffi::set_attribute(exchange, ROWS, index_attr(b.context(), rows as i64));
            }
        }
        self.define(reshard.value, &reshard.to, value);
        Ok(())
    }

    /// Rows of a value's block that are no padding, where it holds the rows of a router.
    fn routed_rows(&self, value: usize, form: &Sharding) -> Option<u64> {
        let shape = &self.function.values[value].r#type.shape;
        let routing = self
            .graph
            .routings
            .iter()
            .find(|routing| shape.len() == routing.rows.len() + 1 && shape.starts_with(&routing.rows))?;
        Some(routing.busiest(form, &self.graph.load, self.grid))
    }

    fn collective(
        &self,
        step: &Step,
        value: Val<'c, 'a>,
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let on = |name, dimension, reduction| {
            b.collective(name, value, (self.grid_name, step.axes()), dimension, reduction, result)
        };
        Ok(match *step {
            Step::AllReduce { reduction, .. } => on("shard.all_reduce", None, reduction_name(reduction))?,
            Step::ReduceScatter { dimension, reduction, .. } => {
                on("shard.reduce_scatter", Some(("scatter_axis", dimension)), reduction_name(reduction))?
            }
            Step::AllGather { dimension, .. } => {
                on("shard.all_gather", Some(("gather_axis", dimension)), None)?
            }
            Step::AllSlice { dimension, .. } => on("shard.all_slice", Some(("slice_axis", dimension)), None)?,
            Step::AllToAll { split, concat, .. } => {
                self.all_to_all(step.axes(), (split, concat), value, result, b)?
            }
        })
    }

    fn all_to_all(
        &self,
        axes: &[usize],
        (split, concat): (usize, usize),
        value: Val<'c, 'a>,
        result: &TensorType,
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let context = b.context();
        let axes: Vec<i16> = axes.iter().map(|&axis| axis as i16).collect();
        let attributes = [
            named(context, "grid", symbol_attr(context, self.grid_name)),
            named(context, "grid_axes", ffi::i16_array(context, &axes)),
            named(context, "split_axis", index_attr(context, split as i64)),
            named(context, "concat_axis", index_attr(context, concat as i64)),
        ];
        let exchanged =
            b.op("shard.all_to_all", &[value], &[result.to_mlir(context)], &attributes, vec![])?;
        Ok(exchanged.result(0).map_err(t3c_ir::Error::from)?.into())
    }

    /// The device's first index of a dimension of which it has `extent` indices, split over `axes`: a
    /// `tensor<i64>` of rank 0.
    pub fn offset(&mut self, axes: &[usize], extent: u64, b: &Builder<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        if let Some(offset) = self.offsets.get(&(axes.to_vec(), extent)) {
            return Ok(*offset);
        }
        let mut first = None;
        for (number, &axis) in axes.iter().enumerate() {
            let inner = u64::from(self.grid.group_size(&axes[number + 1..]));
            let coordinate = self.coordinate(axis, b)?;
            let scale = b.scalar((extent * inner) as f64, Element::I64)?;
            let part = self.integer("arith.muli", &[coordinate, scale], b)?;
            first = Some(match first {
                None => part,
                Some(sum) => self.integer("arith.addi", &[sum, part], b)?,
            });
        }
        let first = first.map_or_else(|| b.scalar(0.0, Element::I64), Ok)?;
        let rank_0 = TensorType::new([], Element::I64).to_mlir(b.context());
        let offset = b.op("tensor.from_elements", &[first], &[rank_0], &[], vec![])?;
        let offset = offset.result(0).map_err(t3c_ir::Error::from)?.into();
        self.offsets.insert((axes.to_vec(), extent), offset);
        Ok(offset)
    }

    fn integer(
        &self,
        name: &str,
        operands: &[Val<'c, 'a>],
        b: &Builder<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let i64_type = element_type(b.context(), Element::I64);
        let operation = b.op(name, operands, &[i64_type], &[], vec![])?;
        Ok(operation.result(0).map_err(t3c_ir::Error::from)?.into())
    }

    /// The device's coordinate along one axis, as an `i64`.
    fn coordinate(&self, axis: usize, b: &Builder<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let context = b.context();
        let attributes = [
            named(context, "grid", symbol_attr(context, self.grid_name)),
            named(context, "axes", ffi::i16_array(context, &[axis as i16])),
        ];
        let index = b.op("shard.process_multi_index", &[], &[Type::index(context)], &attributes, vec![])?;
        self.integer("arith.index_cast", &[index.result(0).map_err(t3c_ir::Error::from)?.into()], b)
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
            let (r#type, coordinate) = (TensorType::of(value)?, self.offset(&[axis], 1, b)?);
            let all: String = ('a'..='z').take(r#type.shape.len()).collect();
            value =
                b.structured(&format!("{all},->{all}"), &[value, coordinate], r#type.element, 0.0, |body| {
                    let none = body.int(0);
                    let zero = match r#type.element {
                        element @ (Element::I1 | Element::I32 | Element::I64) => {
                            body.push(ScalarOp::ConstInt(0), &[], element)
                        }
                        element => body.constant(0.0, element),
                    };
                    let first = body.cmp_i(Predicate::Eq, Ref::Arg(1), none);
                    body.select(first, Ref::Arg(0), zero)
                })?;
        }
        Ok(value)
    }
}

/// The body with the device's offset added to the index of each split loop, and those loops: the offsets are new
/// arguments, in that order, before the output's element.
pub fn localised(body: &ScalarBody, factors: &[Vec<usize>]) -> (ScalarBody, Vec<usize>) {
    let mut shifted: Vec<usize> = Vec::new();
    for inst in &body.insts {
        if let ScalarOp::Index(at) = inst.op
            && !factors[at].is_empty()
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
