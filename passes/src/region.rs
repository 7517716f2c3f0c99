//! Moves the operations of a pair into the region of a t3 operation.

use melior::ir::{
    Attribute, Block, BlockLike, Location, Region, RegionLike, Type, Value, ValueLike,
    operation::{OperationBuilder, OperationLike},
};
use t3c_ir::{
    Builder, Error, Op, TensorType, Val,
    attributes::{integer_attr, integers_attr, named, symbol_attr},
    ffi,
    views::Collective,
    walk,
};
use t3c_schedule::CollectiveKind;

use crate::{
    find_pairs::{Pair, ROWS, Side},
    flow::{Flow, is_source},
    pass::PassError,
};

/// Puts a t3 operation in the place of `collective`, with the other half of the pair inside.
///
/// # Errors
/// When MLIR refuses a part of it.
pub fn fuse<'c, 'a>(
    flow: &Flow<'c, 'a>,
    collective: Collective<'c, 'a>,
    pair: &Pair<'c, 'a>,
) -> Result<Op<'c, 'a>, PassError> {
    match &pair.side {
        Side::Producer(_) => track_and_trigger(flow, collective, pair),
        Side::Readers(_) => consume(flow, collective, pair),
    }
}

fn track_and_trigger<'c, 'a>(
    flow: &Flow<'c, 'a>,
    collective: Collective<'c, 'a>,
    pair: &Pair<'c, 'a>,
) -> Result<Op<'c, 'a>, PassError> {
    let op = collective.op;
    let contribution = collective.input()?;
    let location = location(pair.leaves(), op);
    let shell = Shell {
        name: "t3.track_and_trigger",
        place: Builder::before(op)?.at(location),
        inputs: outside(flow, pair.members()),
        first: None,
        yields: vec![contribution],
        types: vec![collective.result()?.r#type()],
    };
    let fused = shell.build(op, pair)?;
    let sources = sources(flow, pair.members());
    move_inside(flow, fused, pair.members(), &shell.inputs)?;
    ffi::replace_all_uses(collective.result()?, fused.result(0)?.into());
    ffi::erase(op);
    sources.into_iter().for_each(erase_unused);
    Ok(fused)
}

fn consume<'c, 'a>(
    flow: &Flow<'c, 'a>,
    collective: Collective<'c, 'a>,
    pair: &Pair<'c, 'a>,
) -> Result<Op<'c, 'a>, PassError> {
    let op = collective.op;
    let (input, whole) = (collective.input()?, collective.result()?);
    let members = pair.members();
    let inside = |user: &Op<'c, 'a>| members.iter().any(|member| ffi::same_op(*member, *user));
    let Some(last) = members.last() else { return Err(PassError::at(op, "expected a reader")) };
    // Whatever needs a result moves behind the region; nothing that the region needs depends on one.
    let starts: Vec<Op<'c, 'a>> = members.iter().copied().chain([op]).collect();
    let late = flow.dependents(&starts);
    let order: Vec<Op<'c, 'a>> = flow.operations().collect();
    let at = |op: Op<'c, 'a>| order.iter().position(|other| ffi::same_op(*other, op)).unwrap_or(0);
    let (from, to) = (at(op), at(*last));
    let next =
        *order.get(to + 1).ok_or_else(|| PassError::at(*last, "expected an operation after the reader"))?;

    let mut yields: Vec<Val<'c, 'a>> = members
        .iter()
        .filter_map(|member| member.result(0).ok())
        .map(Into::into)
        .filter(|value: &Val<'c, 'a>| flow.users(*value).iter().any(|user| !inside(user)))
        .collect();
    if flow.users(whole).iter().any(|user| !inside(user)) {
        yields.push(whole);
    }
    let mut inputs = vec![input];
    inputs.extend(outside(flow, members).into_iter().filter(|value| *value != whole && *value != input));
    // The part itself may be read beside the whole.
    let reads_part = members.iter().any(|member| flow.reads(*member).contains(&input));
    let shell = Shell {
        name: "t3.consume",
        place: Builder::before(next)?.at(location(pair.leaves(), op)),
        inputs: if reads_part { [inputs, vec![input]].concat() } else { inputs },
        first: Some(whole.r#type()),
        types: yields.iter().map(|value| value.r#type()).collect(),
        yields,
    };
    let fused = shell.build(op, pair)?;
    for late in order[from + 1..to].iter().filter(|op| late.contains(&ffi::op_key(**op)) && !inside(op)) {
        ffi::move_before(*late, next);
    }
    let sources = sources(flow, members);
    let mut arguments = shell.inputs.clone();
    arguments[0] = whole;
    move_inside(flow, fused, members, &arguments)?;
    let terminator = terminator(fused)?;
    for (number, value) in shell.yields.iter().enumerate() {
        let result: Val<'c, 'a> = fused.result(number)?.into();
        for (user, operand) in ffi::uses(*value) {
            if !is_within(user, fused) {
                ffi::set_operand(user, operand, result);
            }
        }
        if *value == whole {
            let argument =
                walk::body(fused).ok_or_else(|| PassError::at(fused, "has no body"))?.argument(0)?;
            ffi::set_operand(terminator, number, argument.into());
        }
    }
    ffi::erase(op);
    sources.into_iter().for_each(erase_unused);
    Ok(fused)
}

/// A t3 operation before anything has moved inside.
struct Shell<'c, 'a> {
    name: &'static str,
    place: Builder<'c, 'a>,
    inputs: Vec<Val<'c, 'a>>,
    /// The type of the first block argument, where it is not the first input's.
    first: Option<Type<'c>>,
    yields: Vec<Val<'c, 'a>>,
    types: Vec<Type<'c>>,
}

impl<'c, 'a> Shell<'c, 'a> {
    fn build(&self, collective: Op<'c, 'a>, pair: &Pair<'c, 'a>) -> Result<Op<'c, 'a>, PassError> {
        let (context, location) = (self.place.context(), self.place.location());
        let mut arguments: Vec<_> = self.inputs.iter().map(|input| (input.r#type(), location)).collect();
        if let (Some(first), Some(argument)) = (self.first, arguments.first_mut()) {
            argument.0 = first;
        }
        let block = Block::new(&arguments);
        let yields: Vec<Value<'c, '_>> = self.yields.iter().map(|value| ffi::shorten(*value)).collect();
        block.append_operation(OperationBuilder::new("t3.yield", location).add_operands(&yields).build()?);
        let region = Region::new();
        region.append_block(block);
        let text = format!("#t3<collective {}>", pair.kind);
        let kind =
            Attribute::parse(context, &text).ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))?;
        let axes: Vec<i64> = pair.group.axes.iter().map(|&axis| axis as i64).collect();
        let mut attributes = vec![
            named(context, "collective", kind),
            named(context, "grid", symbol_attr(context, &pair.group.grid)),
            named(context, "axes", integers_attr(context, &axes)),
            named(context, "dim", integer_attr(context, pair.dimension as i64)),
        ];
        if let Some(concatenate) = pair.concatenate.filter(|_| pair.kind == CollectiveKind::AllToAll) {
            attributes.push(named(context, "concat", integer_attr(context, concatenate as i64)));
        }
        if let Ok(rows) = collective.attribute(ROWS) {
            attributes.push(named(context, ROWS, rows));
        }
        Ok(self.place.op(self.name, &self.inputs, &self.types, &attributes, vec![region])?)
    }
}

/// The names of the work, then the collective's.
fn location<'c>(leaves: &[Op<'c, '_>], collective: Op<'c, '_>) -> Location<'c> {
    let locations: Vec<Location<'c>> = leaves.iter().chain([&collective]).map(|op| op.location()).collect();
    ffi::fused_location(ffi::context_of(collective), &locations)
}

/// The distinct tensors from elsewhere that the members read, in order of first use.
fn outside<'c, 'a>(flow: &Flow<'c, 'a>, members: &[Op<'c, 'a>]) -> Vec<Val<'c, 'a>> {
    let mut found: Vec<Val<'c, 'a>> = Vec::new();
    for value in members.iter().flat_map(|member| flow.reads(*member)) {
        let owner = flow.owner(value);
        let is_inside =
            owner.is_some_and(|owner| is_source(owner) || members.iter().any(|m| ffi::same_op(*m, owner)));
        if !is_inside && !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Moves `members` before the region's terminator, in program order. They read the block's arguments in place of
/// `inputs`, and constants, fills and empty tensors of their own.
fn move_inside<'c, 'a>(
    flow: &Flow<'c, 'a>,
    fused: Op<'c, 'a>,
    members: &[Op<'c, 'a>],
    inputs: &[Val<'c, 'a>],
) -> Result<(), PassError> {
    let block = walk::body(fused).ok_or_else(|| PassError::at(fused, "has no body"))?;
    let terminator = terminator(fused)?;
    for &member in members {
        for inner in walk::walk(member) {
            let operands: Vec<Val<'c, 'a>> = inner.operands().collect();
            for (number, operand) in operands.into_iter().enumerate() {
                if let Some(index) = inputs.iter().position(|input| *input == operand) {
                    ffi::set_operand(inner, number, block.argument(index)?.into());
                } else if let Some(source) = flow.owner(operand).filter(|owner| is_source(*owner)) {
                    ffi::set_operand(inner, number, repeat(source, terminator, member)?);
                }
            }
        }
        ffi::move_before(member, terminator);
    }
    Ok(())
}

/// A copy of `source`, and of the sources that it reads, before `place`.
fn repeat<'c, 'a>(source: Op<'c, 'a>, place: Op<'c, 'a>, user: Op<'c, 'a>) -> Result<Val<'c, 'a>, PassError> {
    let place = Builder::before(place)?.at(user.location());
    let value: Val<'c, 'a> = source.result(0)?.into();
    if let Some(number) = t3c_ir::generic::splat_value(value).filter(|_| walk::is(source, "linalg.fill")) {
        return Ok(place.fill(number, &TensorType::of(value)?)?);
    }
    if walk::is(source, "tensor.empty") {
        return Ok(place.empty(&TensorType::of(value)?)?);
    }
    let copy = place.insert(ffi::clone(source));
    Ok(copy.result(0)?.into())
}

fn terminator<'c, 'a>(fused: Op<'c, 'a>) -> Result<Op<'c, 'a>, PassError> {
    let last = walk::body(fused).and_then(|block| walk::operations(block).pop());
    last.ok_or_else(|| PassError::at(fused, "has no terminator"))
}

fn is_within<'c, 'a>(op: Op<'c, 'a>, holder: Op<'c, 'a>) -> bool {
    let mut at = Some(op);
    while let Some(op) = at {
        if ffi::same_op(op, holder) {
            return true;
        }
        at = ffi::parent(op);
    }
    false
}

/// The sources that the members read.
fn sources<'c, 'a>(flow: &Flow<'c, 'a>, members: &[Op<'c, 'a>]) -> Vec<Op<'c, 'a>> {
    let mut found: Vec<Op<'c, 'a>> = Vec::new();
    for value in members.iter().flat_map(|member| flow.reads(*member)) {
        let source = flow.owner(value).filter(|owner| is_source(*owner));
        found.extend(source.filter(|source| !found.iter().any(|known| ffi::same_op(*known, *source))));
    }
    found
}

/// Erases a source that nothing uses any more, and what only it used.
pub(crate) fn erase_unused(op: Op<'_, '_>) {
    let used = op.results().any(|result| !ffi::uses(result.into()).is_empty());
    if is_source(op) && !used {
        let operands: Vec<_> = op.operands().filter_map(ffi::value_owner).collect();
        ffi::erase(op);
        // Two operands may be one operation's result; the first visit erases it only when no use is left.
        let mut distinct: Vec<Op<'_, '_>> = Vec::new();
        for operand in operands {
            if !distinct.iter().any(|known| ffi::same_op(*known, operand)) {
                distinct.push(operand);
            }
        }
        distinct.into_iter().for_each(erase_unused);
    }
}
