//! Sums and maxima along a contiguous dimension, in a fixed number of lanes.
//!
//! Why: floats added one after the other wait for each other. A reduction over a dimension of `D` becomes one over
//! `D / 16` for each of 16 lanes, which vectorises, and one over the lanes. The order depends on the dimension alone,
//! so a row's bits stay independent of the kernel that the reduction is part of, of the rows beside it and of the
//! machine.

use t3c_ir::{Builder, Element, Generic, Op, ScalarBody, ScalarOp, TensorType, Val, ffi, generic::Iterator};

use crate::Error;

/// Lanes of a reduction.
const LANES: u64 = 16;
/// Shorter reductions stay as they are.
const SHORTEST: u64 = 4 * LANES;

/// Splits the reduction of `operation` into lanes, where it is one along the innermost dimension of its operands.
///
/// # Errors
/// When MLIR refuses the new operations.
pub fn split<'c>(operation: Op<'c, '_>) -> Result<(), Error> {
    let generic = Generic::read(operation)?;
    let Some((reduced, combiner)) = reduction(&generic) else { return Ok(()) };
    let b = Builder::before(operation)?;
    let lane = generic.iterators.len();
    let mut partial = generic.clone();
    for (input, map) in partial.inputs.iter_mut().zip(&mut partial.maps) {
        if map.last() == Some(&reduced) {
            *input = expanded(&b, *input)?;
            map.push(lane);
        }
    }
    partial.iterators.push(Iterator::Parallel);
    partial.extents[reduced] /= LANES;
    partial.extents.push(LANES);
    let output = generic.output_map().to_vec();
    if let Some(map) = partial.maps.last_mut() {
        map.push(lane);
    }
    partial.result.shape.push(LANES);
    let neutral = if combiner == ScalarOp::AddF { 0.0 } else { f64::NEG_INFINITY };
    partial.init = b.fill(neutral, &partial.result)?;
    let partial_value = b.generic(&partial)?;
    let total = b.generic(&over_lanes(&generic, partial_value, &output, combiner))?;
    ffi::replace_all_uses(operation.result(0).map_err(t3c_ir::Error::from)?.into(), total);
    ffi::erase(operation);
    Ok(())
}

/// The loop that is reduced and how, where the reduction can be split.
fn reduction(generic: &Generic<'_, '_>) -> Option<(usize, ScalarOp)> {
    let mut reduced =
        (0..generic.iterators.len()).filter(|&index| generic.iterators[index] == Iterator::Reduction);
    let (reduced, None) = (reduced.next()?, reduced.next()) else { return None };
    let (combiner, _) = generic.body.combiner()?;
    let extent = generic.extents[reduced];
    let innermost = |map: &Vec<usize>| map.last() == Some(&reduced) || !map.contains(&reduced);
    let inputs = &generic.maps[..generic.inputs.len()];
    let fits = matches!(combiner, ScalarOp::AddF | ScalarOp::MaxF)
        && generic.result.element == Element::F32
        && extent >= SHORTEST
        && extent.is_multiple_of(LANES)
        && generic.captures.is_empty()
        && inputs.iter().all(innermost)
        && inputs.iter().any(|map| map.contains(&reduced))
        && generic.body.insts.iter().all(|inst| inst.op != ScalarOp::Index(reduced));
    fits.then_some((reduced, combiner))
}

/// `value [.., D]` as `[.., D / 16, 16]`, the same memory.
fn expanded<'c, 'a>(b: &Builder<'c, 'a>, value: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
    let from = TensorType::of(value)?;
    let (last, outer) =
        from.shape.split_last().ok_or_else(|| t3c_ir::Error::Mlir("a reduced scalar".into()))?;
    let shape = [outer, &[last / LANES, LANES]].concat();
    let groups: Vec<String> = (0..outer.len()).map(|index| format!("[{index}]")).collect();
    let groups = groups.into_iter().chain([format!("[{}, {}]", outer.len(), outer.len() + 1)]);
    let reassociation = format!("[{}]", groups.collect::<Vec<_>>().join(", "));
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    let parse = |text: &str| {
        melior::ir::Attribute::parse(b.context(), text)
            .ok_or_else(|| t3c_ir::Error::Mlir(format!("cannot parse {text}")))
    };
    let attributes = [
        t3c_ir::attributes::named(b.context(), "reassociation", parse(&reassociation)?),
        t3c_ir::attributes::named(
            b.context(),
            "static_output_shape",
            parse(&format!("array<i64: {}>", sizes.join(", ")))?,
        ),
    ];
    let r#type = TensorType::new(shape, from.element).to_mlir(b.context());
    let op = b.op("tensor.expand_shape", &[value], &[r#type], &attributes, vec![])?;
    Ok(op.result(0).map_err(t3c_ir::Error::from)?.into())
}

/// The reduction of what the lanes hold, from the original's initial value.
fn over_lanes<'c, 'a>(
    original: &Generic<'c, 'a>,
    partial: Val<'c, 'a>,
    output: &[usize],
    combiner: ScalarOp,
) -> Generic<'c, 'a> {
    let rank = output.len();
    let element = original.result.element;
    let mut body = ScalarBody::new([element; 2]);
    let combined = body.binary(combiner, t3c_ir::Ref::Arg(1), t3c_ir::Ref::Arg(0));
    let mut iterators = vec![Iterator::Parallel; rank];
    iterators.push(Iterator::Reduction);
    let mut extents: Vec<u64> = output.iter().map(|&index| original.extents[index]).collect();
    extents.push(LANES);
    Generic {
        inputs: vec![partial],
        init: original.init,
        maps: vec![(0..=rank).collect(), (0..rank).collect()],
        iterators,
        extents,
        body: body.yield_(combined),
        captures: Vec::new(),
        result: original.result.clone(),
    }
}
