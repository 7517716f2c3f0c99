//! Gradients of per-device programs: collectives are transposed into their adjoints.
//!
//! Every device runs the program, and the loss is counted once. A value either differs between the devices of a grid
//! axis or is the same on all of them: arguments differ along the axes that `t3.split` names, an all-reduce or an
//! all-gather makes a value the same, the other collectives and the device's own index make it differ, and what is
//! computed from several values differs where one of them does. Where a value that is the same on all devices enters
//! a computation that differs, each device has a part of its gradient, and the parts are added: that is Megatron's
//! conjugate pair, of which the forward's identity needs no operation. Parts are added where they meet, once, before
//! they are used.
//!
//! | forward | backward |
//! |---|---|
//! | all_reduce | identity |
//! | identity into what differs | all_reduce |
//! | reduce_scatter | all_gather |
//! | all_gather | reduce_scatter of parts, all_slice of what is complete |
//! | all_slice | all_gather |
//! | all_to_all | all_to_all, with its two dimensions exchanged |
//! | all_reduce of maxima | equal shares for the devices that have the maximum |
//!
//! A loss that differs between devices stands for the sum of them all.

use std::collections::{BTreeSet, HashMap};

use melior::ir::{ValueLike, operation::OperationLike};
use t3c_ir::{
    Error, Op, Predicate, Ref, TensorType, Val,
    attributes::{index_attr, integer, integers},
    ffi,
    function::{self, Function},
    views::Collective,
    walk,
};
use t3c_schedule::{CollectiveKind, Reduction};

use super::{
    activity::{Activity, operations},
    transpose::Transpose,
};

type Axes = BTreeSet<usize>;

/// On which grid axes values differ between devices. Empty for programs without collectives.
#[derive(Debug, Default)]
pub struct Variation {
    values: HashMap<usize, Axes>,
    nowhere: Axes,
}

impl Variation {
    /// Analyses all functions that the entry reaches.
    ///
    /// # Errors
    /// When a port is no tensor.
    pub fn new<'c, 'a>(
        module: Op<'c, 'a>,
        activity: &Activity<'c, 'a>,
        entry: Function<'c, 'a>,
    ) -> Result<Self, Error> {
        let mut variation = Self::default();
        let has_collectives = |function: &Function<'c, 'a>| {
            operations(*function).into_iter().any(|operation| Collective::cast(operation).is_some())
        };
        if !activity.order.iter().any(has_collectives) {
            return Ok(variation);
        }
        let axes = function::grid(module).map_or(0, |(_, grid)| grid.axes.len());
        for (value, port) in entry.arguments().into_iter().zip(entry.argument_ports()?) {
            variation.add(value, &port.splits().into_iter().flatten().collect());
        }
        // Callers come last in the order, and what they find out about results comes from callees: until nothing
        // changes, at most once an axis and function.
        loop {
            let before: usize = variation.values.values().map(BTreeSet::len).sum();
            for &function in activity.order.iter().rev() {
                for operation in operations(function) {
                    variation.operation(activity, operation, axes);
                }
            }
            if before == variation.values.values().map(BTreeSet::len).sum::<usize>() {
                return Ok(variation);
            }
        }
    }

    /// The axes on which a value differs.
    pub fn of(&self, value: Val<'_, '_>) -> &Axes {
        self.values.get(&ffi::value_key(value)).unwrap_or(&self.nowhere)
    }

    /// The axes on which an operation's results or what it computes them from differ.
    pub fn reach(&self, operation: Op<'_, '_>) -> Axes {
        if self.values.is_empty() {
            return Axes::new();
        }
        let mut all: Axes = operation.results().flat_map(|result| self.of(result.into())).copied().collect();
        all.extend(self.operands(operation));
        all
    }

    fn operands(&self, operation: Op<'_, '_>) -> Axes {
        walk::walk(operation)
            .into_iter()
            .flat_map(|operation| operation.operands().collect::<Vec<_>>())
            .flat_map(|operand| self.of(operand).clone())
            .collect()
    }

    fn add(&mut self, value: Val<'_, '_>, axes: &Axes) {
        if !axes.is_empty() {
            self.values.entry(ffi::value_key(value)).or_default().extend(axes);
        }
    }

    fn operation<'c, 'a>(&mut self, activity: &Activity<'c, 'a>, operation: Op<'c, 'a>, axes: usize) {
        if let Some(callee) = activity.callee(operation) {
            for (argument, operand) in callee.arguments().into_iter().zip(operation.operands()) {
                self.add(argument, &self.of(operand).clone());
            }
            for (result, value) in operation.results().zip(callee.results()) {
                self.add(result.into(), &self.of(value).clone());
            }
            return;
        }
        let mut found = self.operands(operation);
        if let Some(collective) = Collective::cast(operation) {
            match collective.kind {
                CollectiveKind::AllReduce | CollectiveKind::AllGather => {
                    found.retain(|axis| !collective.axes().contains(axis));
                }
                _ => found.extend(collective.axes()),
            }
        }
        if walk::is(operation, "shard.process_multi_index")
            || walk::is(operation, "shard.process_linear_index")
        {
            let named = integers(operation, "axes").filter(|axes| !axes.is_empty());
            found.extend(named.map_or((0..axes).collect::<Vec<_>>(), |axes| {
                axes.into_iter().map(|axis| axis as usize).collect()
            }));
        }
        for result in operation.results() {
            self.add(result.into(), &found);
        }
    }
}

impl<'c, 'a> Transpose<'_, 'c, 'a> {
    /// The sum of every device's `value` over `axes`.
    pub(super) fn all_reduce(&self, value: Val<'c, 'a>, axes: &Axes) -> Result<Val<'c, 'a>, Error> {
        let Some((grid, _)) = function::grid(self.module).filter(|_| !axes.is_empty()) else {
            return Ok(value);
        };
        let axes: Vec<usize> = axes.iter().copied().collect();
        let r#type = TensorType::of(value)?;
        self.b.collective("shard.all_reduce", value, (&grid, &axes), None, None, &r#type)
    }

    /// The gradient of a collective's operand.
    pub(super) fn collective(&mut self, collective: Collective<'c, 'a>) -> Result<(), Error> {
        let (input, result) = (collective.input()?, collective.result()?);
        if !self.is_active(input) {
            return Ok(());
        }
        let axes: Axes = collective.axes().into_iter().collect();
        let partial: Axes = axes.difference(self.variation.of(input)).copied().collect();
        let gradient = match collective.kind {
            CollectiveKind::AllGather => self.scattered(collective, &axes)?,
            _ => self.take(result)?,
        };
        let Some(gradient) = gradient else { return Ok(()) };
        if collective.reduction() != Reduction::Sum {
            let share = self.share_of_maximum(collective, &axes, gradient)?;
            self.give_partial(input, share, partial);
            return Ok(());
        }
        match collective.kind {
            CollectiveKind::AllReduce | CollectiveKind::AllGather => {
                self.give_partial(input, gradient, partial)
            }
            CollectiveKind::ReduceScatter => {
                let whole = self.moved(collective, ("shard.all_gather", "gather_axis"), gradient)?;
                self.give_partial(input, whole, partial);
            }
            CollectiveKind::AllSlice => {
                if partial != axes {
                    return Err(Error::at(
                        collective.op,
                        "slices a value that differs between the devices that share it; its gradient has no rule",
                    ));
                }
                let whole = self.moved(collective, ("shard.all_gather", "gather_axis"), gradient)?;
                self.give_partial(input, whole, Axes::new());
            }
            CollectiveKind::AllToAll => {
                let back = self.exchanged(collective, gradient)?;
                self.give_partial(input, back, partial);
            }
        }
        Ok(())
    }

    /// The gradient of a maximum over devices: equal shares for those that have it.
    fn share_of_maximum(
        &mut self,
        collective: Collective<'c, 'a>,
        axes: &Axes,
        gradient: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        if collective.kind != CollectiveKind::AllReduce {
            return Err(Error::at(
                collective.op,
                "a scattered maximum over devices has no gradient rule; take the maximum by all_reduce",
            ));
        }
        let (value, most) = (self.forward(collective.input()?)?, self.forward(collective.result()?)?);
        let r#type = TensorType::of(value)?;
        let dims: String = ('a'..='z').take(r#type.shape.len()).collect();
        let hit = self.b.map(&format!("{dims},{dims}->{dims}"), &[value, most], |body| {
            let hit = body.cmp_f(Predicate::Eq, Ref::Arg(0), Ref::Arg(1));
            let [one, zero] = [1.0, 0.0].map(|number| body.constant(number, r#type.element));
            body.select(hit, one, zero)
        })?;
        let count = self.all_reduce(hit, axes)?;
        self.b.map(&format!("{dims},{dims},{dims}->{dims}"), &[gradient, hit, count], |body| {
            let share = body.div(Ref::Arg(0), Ref::Arg(2));
            body.mul(share, Ref::Arg(1))
        })
    }

    /// The gradient of a gather's operand: the sum of the devices' parts, each device its own piece.
    fn scattered(
        &mut self,
        collective: Collective<'c, 'a>,
        axes: &Axes,
    ) -> Result<Option<Val<'c, 'a>>, Error> {
        let mut total: Option<Val<'c, 'a>> = None;
        for (partial, sum) in self.take_parts(collective.result()?)? {
            let (to, rest): (_, Axes) = if axes.is_subset(&partial) {
                (("shard.reduce_scatter", "scatter_axis"), partial.difference(axes).copied().collect())
            } else {
                (("shard.all_slice", "slice_axis"), partial)
            };
            let sum = self.all_reduce(sum, &rest)?;
            let piece = self.moved(collective, to, sum)?;
            total = Some(total.map_or(Ok(piece), |total| self.b.add(total, piece))?);
        }
        Ok(total)
    }

    /// `value` through another collective of the same group along the same dimension, to the operand's type.
    fn moved(
        &self,
        collective: Collective<'c, 'a>,
        (name, attribute): (&str, &str),
        value: Val<'c, 'a>,
    ) -> Result<Val<'c, 'a>, Error> {
        let (grid, axes) = (collective.grid(), collective.axes());
        let dimension = collective.dimension().unwrap_or(0);
        let r#type = TensorType::of(collective.input()?)?;
        self.b.collective(name, value, (&grid, &axes), Some((attribute, dimension)), None, &r#type)
    }

    fn exchanged(&self, collective: Collective<'c, 'a>, value: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let context = self.b.context();
        let split = integer(collective.op, "split_axis").unwrap_or(0);
        let concatenate = integer(collective.op, "concat_axis").unwrap_or(0);
        let operand = collective.input()?;
        let copy = self.b.insert(ffi::clone(collective.op));
        ffi::set_operand(copy, 0, value);
        ffi::set_attribute(copy, "split_axis", index_attr(context, concatenate));
        ffi::set_attribute(copy, "concat_axis", index_attr(context, split));
        let result: Val<'c, 'a> = copy.result(0)?.into();
        ffi::set_type(result, operand.r#type());
        Ok(result)
    }
}
