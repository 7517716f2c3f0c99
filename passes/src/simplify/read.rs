//! Which operations of a function the algebra looks into, and what they are in it.

use std::collections::HashMap;

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Element, Generic, Op, Ref, ScalarBody, ScalarOp, TensorType, Val,
    attributes::{integer, integers},
    ffi,
    function::Function,
    generic::splat_value,
    views::Collective,
    walk,
};
use t3c_schedule::{CollectiveKind, Grid};

use super::offsets::chunk_offset;
use crate::{
    algebra::{Cut, Layout, MAX, SUM, rules::OPERANDS},
    group::Group,
    pass::PassError,
};

/// What an operation is in the algebra, without its operands.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An all-gather along a dimension.
    Gather(Vec<usize>, usize),
    /// The device's part of a dimension.
    Slice(Vec<usize>, usize),
    /// A reduce-scatter: reduction, dimension.
    Scatter(Vec<usize>, u32, usize),
    /// An all-reduce.
    Reduce(Vec<usize>, u32),
    /// An all-to-all: split, concatenated dimension.
    Exchange(Vec<usize>, usize, usize),
    /// A box, the same on every device.
    Cut(Cut),
    /// Elementwise work, with each operand's layout.
    Map(ScalarBody, Vec<Layout>),
}

/// An operation that the algebra looks into.
pub struct Known<'c, 'a> {
    /// The operation.
    pub op: Op<'c, 'a>,
    /// What it is.
    pub kind: Kind,
    /// What it reads: for elementwise work, all but constants, which are in the body.
    pub operands: Vec<Val<'c, 'a>>,
    /// Its result.
    pub result: Val<'c, 'a>,
}

impl Known<'_, '_> {
    /// Whether devices take part in it together.
    pub fn is_collective(&self) -> bool {
        !matches!(self.kind, Kind::Cut(_) | Kind::Map(..))
    }
}

/// The operations of a function that the algebra looks into, in program order.
///
/// # Errors
/// A collective that names no grid or axis of the module.
pub fn read<'c, 'a>(
    module: Op<'c, 'a>,
    grid: &Grid,
    function: Function<'c, 'a>,
) -> Result<Vec<Known<'c, 'a>>, PassError> {
    let operations = function.body().map(walk::operations).unwrap_or_default();
    let mut found = Vec::new();
    for op in operations {
        let Some((kind, operands)) = kind_of(module, grid, op)? else { continue };
        let result: Val<'c, 'a> = op.result(0)?.into();
        if fits(grid, &kind, &operands, result) {
            found.push(Known { op, kind, operands, result });
        }
    }
    Ok(found)
}

type Reading<'c, 'a> = Option<(Kind, Vec<Val<'c, 'a>>)>;

fn kind_of<'c, 'a>(module: Op<'c, 'a>, grid: &Grid, op: Op<'c, 'a>) -> Result<Reading<'c, 'a>, PassError> {
    if let Some(collective) = Collective::cast(op) {
        return collective_kind(module, collective);
    }
    if walk::is(op, "linalg.generic") {
        return Ok(Generic::read(op).ok().and_then(|generic| map_kind(&generic)));
    }
    if walk::is(op, "tensor.extract_slice") {
        return Ok(slice_kind(grid, op));
    }
    Ok(None)
}

fn collective_kind<'c, 'a>(
    module: Op<'c, 'a>,
    collective: Collective<'c, 'a>,
) -> Result<Reading<'c, 'a>, PassError> {
    let axes = Group::of(module, collective)?.axes;
    let repeats = (1..axes.len()).any(|at| axes[..at].contains(&axes[at]));
    // What other passes noted on a collective would be lost.
    let noted = collective
        .op
        .attributes()
        .any(|(name, _)| name.as_string_ref().as_str().is_ok_and(|name| name.starts_with("t3.")));
    let (Some(reduction), false, false) = (reduction_of(collective), repeats, noted) else { return Ok(None) };
    let dimension = collective.dimension().unwrap_or(0);
    let kind = match collective.kind {
        CollectiveKind::AllGather => Kind::Gather(axes, dimension),
        CollectiveKind::AllSlice => Kind::Slice(axes, dimension),
        CollectiveKind::ReduceScatter => Kind::Scatter(axes, reduction, dimension),
        CollectiveKind::AllReduce => Kind::Reduce(axes, reduction),
        CollectiveKind::AllToAll => {
            let concatenated = integer(collective.op, "concat_axis").and_then(|axis| axis.try_into().ok());
            Kind::Exchange(axes, dimension, concatenated.unwrap_or(dimension))
        }
    };
    Ok(Some((kind, vec![collective.input()?])))
}

/// The reduction, where the algebra has it.
fn reduction_of(collective: Collective<'_, '_>) -> Option<u32> {
    match collective.op.attribute("reduction").map(|attribute| attribute.to_string()) {
        Err(_) => Some(SUM),
        Ok(text) if text.contains("sum") => Some(SUM),
        Ok(text) if text.contains("max") => Some(MAX),
        Ok(_) => None,
    }
}

/// Elementwise work wherever the element lies. Constant operands move into the body.
fn map_kind<'c, 'a>(generic: &Generic<'c, 'a>) -> Reading<'c, 'a> {
    let reads_place = |op: &ScalarOp| matches!(op, ScalarOp::Index(_) | ScalarOp::Extract(_));
    let loops = generic.iterators.len();
    let output = generic.output_map();
    let plain = generic.is_elementwise()
        && output.len() == loops
        && generic.body.yields.len() == 1
        && !generic.body.insts.iter().any(|inst| reads_place(&inst.op));
    if !plain {
        return None;
    }
    let place = |index: &usize| output.iter().position(|own| own == index);
    let mut body = ScalarBody::new([]);
    let mut arguments = Vec::new();
    let (mut operands, mut layouts, mut constants) = (vec![], vec![], vec![]);
    for (index, (value, map)) in generic.inputs.iter().zip(&generic.maps).enumerate() {
        let element = generic.body.args[index];
        if let Some(constant) = splat_value(*value) {
            constants.push((index, constant, element));
            arguments.push(Ref::Arg(usize::MAX));
            continue;
        }
        let map: Vec<usize> = map.iter().map(place).collect::<Option<_>>()?;
        layouts.push(Layout::new(&map, &generic.result.shape));
        operands.push(*value);
        arguments.push(Ref::Arg(body.args.len()));
        body.args.push(element);
    }
    arguments.push(Ref::Arg(body.args.len()));
    body.args.push(generic.result.element);
    for (index, constant, element) in constants {
        let whole = matches!(element, Element::I64 | Element::I32 | Element::I1);
        let op = if whole { ScalarOp::ConstInt(constant as i64) } else { ScalarOp::Const(constant) };
        arguments[index] = body.push(op, &[], element);
    }
    body.yields = body.inline(&generic.body, &arguments);
    body.prune();
    (1..=OPERANDS).contains(&operands.len()).then_some((Kind::Map(body, layouts), operands))
}

/// A static box, or a device's own chunk of a dimension.
fn slice_kind<'c, 'a>(grid: &Grid, op: Op<'c, 'a>) -> Reading<'c, 'a> {
    let source = op.operand(0).ok()?;
    let whole = TensorType::of(source).ok()?;
    let part = TensorType::of(op.result(0).ok()?.into()).ok()?;
    let static_parts = |name: &str| integers(op, name).filter(|all| all.len() == whole.shape.len());
    let unsigned = |all: &[i64]| all.iter().map(|&x| u64::try_from(x).ok()).collect::<Option<Vec<u64>>>();
    let (offsets, sizes) = (static_parts("static_offsets")?, static_parts("static_sizes")?);
    let (sizes, strides) = (unsigned(&sizes)?, unsigned(&static_parts("static_strides")?)?);
    if sizes != part.shape {
        return None;
    }
    if let Some(offsets) = unsigned(&offsets) {
        return Some((Kind::Cut(Cut { offsets, sizes, strides }), vec![source]));
    }
    // One offset is an operand: the only one after the source, since sizes and strides are static.
    let dynamic: Vec<usize> = (0..offsets.len()).filter(|d| offsets[*d] < 0).collect();
    let (&[dimension], 2) = (dynamic.as_slice(), op.operand_count()) else { return None };
    let others = (0..sizes.len()).filter(|d| *d != dimension);
    let only = others.into_iter().all(|d| offsets[d] == 0 && sizes[d] == whole.shape[d]);
    if !only || strides.iter().any(|stride| *stride != 1) {
        return None;
    }
    let axes = chunk_offset(grid, op.operand(1).ok()?, whole.shape[dimension], sizes[dimension])?;
    Some((Kind::Slice(axes, dimension), vec![source]))
}

/// Whether operands and result have the types that the algebra computes for them.
fn fits(grid: &Grid, kind: &Kind, operands: &[Val<'_, '_>], result: Val<'_, '_>) -> bool {
    let types: Result<Vec<TensorType>, _> = operands.iter().map(|value| TensorType::of(*value)).collect();
    let (Ok(types), Ok(result)) = (types, TensorType::of(result)) else { return false };
    expected(grid, kind, &types).as_ref() == Some(&result)
}

fn expected(grid: &Grid, kind: &Kind, operands: &[TensorType]) -> Option<TensorType> {
    let mut r#type = operands.first()?.clone();
    let devices = |axes: &[usize]| Some(u64::from(grid.group_size(axes))).filter(|devices| *devices > 0);
    let grow = |r#type: &mut TensorType, axes: &[usize], dimension: usize| {
        let extent = r#type.shape.get_mut(dimension)?;
        *extent = extent.checked_mul(devices(axes)?)?;
        Some(())
    };
    let shrink = |r#type: &mut TensorType, axes: &[usize], dimension: usize| {
        let (extent, devices) = (r#type.shape.get_mut(dimension)?, devices(axes)?);
        let divides = extent.is_multiple_of(devices);
        *extent /= devices;
        divides.then_some(())
    };
    match kind {
        Kind::Gather(axes, d) => grow(&mut r#type, axes, *d)?,
        Kind::Slice(axes, d) | Kind::Scatter(axes, _, d) => shrink(&mut r#type, axes, *d)?,
        Kind::Reduce(axes, _) => devices(axes).map(drop)?,
        Kind::Exchange(axes, s, c) => {
            shrink(&mut r#type, axes, *s)?;
            grow(&mut r#type, axes, *c)?;
        }
        Kind::Cut(cut) => r#type.shape.clone_from(&cut.sizes),
        Kind::Map(body, layouts) => {
            let mut shapes = layouts.iter().zip(operands).map(|(layout, operand)| layout.of(operand).shape);
            r#type = TensorType::new(shapes.next()?, body.element(*body.yields.first()?));
            shapes.all(|shape| shape == r#type.shape).then_some(())?;
        }
    }
    Some(r#type)
}

/// Groups of operations that read one another's results, of those groups that have a collective. What reads a value
/// that a collective reads belongs to it as well. Single numbers tie nothing: moving them costs nothing, and a loss
/// or a norm would tie everything.
pub fn components(known: &[Known<'_, '_>]) -> Vec<Vec<usize>> {
    let mut parents: Vec<usize> = (0..known.len()).collect();
    let mut owners: HashMap<usize, usize> = HashMap::new();
    for (index, one) in known.iter().enumerate() {
        owners.insert(ffi::value_key(one.result), index);
    }
    let is_number = |value: &Val<'_, '_>| TensorType::of(*value).is_ok_and(|r#type| r#type.shape.is_empty());
    for (index, one) in known.iter().enumerate().filter(|(_, one)| one.is_collective()) {
        for operand in one.operands.iter().filter(|operand| !is_number(operand)) {
            owners.entry(ffi::value_key(*operand)).or_insert(index);
        }
    }
    for (index, one) in known.iter().enumerate() {
        for operand in one.operands.iter().filter(|operand| !is_number(operand)) {
            if let Some(owner) = owners.get(&ffi::value_key(*operand)) {
                join(&mut parents, *owner, index);
            }
        }
    }
    let mut groups: HashMap<usize, Vec<usize>> = HashMap::new();
    for index in 0..known.len() {
        groups.entry(root(&parents, index)).or_default().push(index);
    }
    let mut groups: Vec<Vec<usize>> = groups
        .into_values()
        .filter(|group| group.iter().any(|index| known[*index].is_collective()))
        .collect();
    groups.sort_unstable();
    groups
}

fn root(parents: &[usize], mut index: usize) -> usize {
    while parents[index] != index {
        index = parents[index];
    }
    index
}

fn join(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (root(parents, a), root(parents, b));
    parents[a.max(b)] = a.min(b);
}
