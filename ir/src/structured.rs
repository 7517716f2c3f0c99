//! Structured operations as MLIR has them: named ones (`linalg.matmul`, `linalg.reduce`, …), which carry a body and
//! maps like `linalg.generic`, and those of several results, which are as many operations of one.

use melior::ir::{
    Attribute, RegionLike, TypeLike, ValueLike, attribute::ArrayAttribute, operation::OperationLike,
};

use crate::{
    Blk, Error, Generic, Iterator, Op, Ref, ScalarBody, TensorType, Val, ffi,
    generic::{projected_permutation, read_body},
    walk,
};

/// Whether an operation is a structured one by name: not `linalg.generic`, nor `linalg.fill`, which has no loops of
/// its own where its number is constant.
pub fn is(operation: Op<'_, '_>) -> bool {
    let name = walk::name(operation);
    name.starts_with("linalg.")
        && !["linalg.generic", "linalg.fill", "linalg.yield", "linalg.index"].contains(&name.as_str())
        && operation.result_count() > 0
        && body(operation).is_some()
        && ffi::linalg_maps(operation).is_some()
}

fn body<'c, 'a>(operation: Op<'c, 'a>) -> Option<Blk<'c, 'a>> {
    operation.regions().next().and_then(|region| region.first_block())
}

impl<'c, 'a> Generic<'c, 'a> {
    /// Reads a structured operation: one view a result.
    ///
    /// # Errors
    /// Names what the view cannot express: a map that is no projected permutation, an instruction without a scalar
    /// form, a result that is computed from another one's initial value.
    pub fn read_all(operation: Op<'c, 'a>) -> Result<Vec<Self>, Error> {
        if walk::is(operation, "linalg.fill") {
            return Ok(vec![Self::read(operation)?]);
        }
        let results = operation.result_count();
        let operands: Vec<Val<'c, 'a>> = operation.operands().collect();
        let inputs = operands.len().checked_sub(results).filter(|_| results > 0);
        let inputs =
            inputs.ok_or_else(|| Error::at(operation, "expected a structured operation on tensors"))?;
        let maps = maps(operation)?;
        let block =
            body(operation).ok_or_else(|| Error::at(operation, "a structured operation without a body"))?;
        let (mut body, captures) = read_body(operation, block)?;
        // The body of `linalg.map` may leave out what it does not read.
        for output in &operands[body.args.len().min(operands.len())..] {
            body.args.push(TensorType::of(*output)?.element);
        }
        let iterators = iterators(operation, &maps, inputs)?;
        let mut extents = vec![0; iterators.len()];
        for (value, map) in operands.iter().zip(&maps) {
            for (&extent, &at) in TensorType::of(*value)?.shape.iter().zip(map) {
                extents[at] = extent;
            }
        }
        let one = |number: usize| {
            let (body, read) = part(operation, &body, &iterators, number)?;
            let reads = |inst: &crate::Inst| matches!(inst.op, crate::ScalarOp::Extract(_));
            Ok(Self {
                inputs: read[..read.len() - 1].iter().map(|&operand| operands[operand]).collect(),
                init: operands[read[read.len() - 1]],
                maps: read.iter().map(|&operand| maps[operand].clone()).collect(),
                iterators: iterators.clone(),
                extents: extents.clone(),
                captures: if body.insts.iter().any(reads) { captures.clone() } else { vec![] },
                body,
                result: TensorType::of(operation.result(number)?.into())?,
            })
        };
        (0..results).map(one).collect()
    }
}

fn maps(operation: Op<'_, '_>) -> Result<Vec<Vec<usize>>, Error> {
    let attribute = ffi::linalg_maps(operation)
        .and_then(|maps| ArrayAttribute::try_from(maps).ok())
        .ok_or_else(|| Error::at(operation, "has no indexing maps"))?;
    let map = |map: Attribute<'_>| {
        projected_permutation(map)
            .ok_or_else(|| Error::at(operation, format!("indexing map {map} is not a projected permutation")))
    };
    (0..attribute.len()).map(|index| map(attribute.element(index)?)).collect()
}

fn iterators(operation: Op<'_, '_>, maps: &[Vec<usize>], inputs: usize) -> Result<Vec<Iterator>, Error> {
    if let Some(kinds) = crate::attributes::array(operation, "iterator_types") {
        // Attributes are uniqued, and printing one is slow.
        let mut found: Vec<Iterator> = Vec::with_capacity(kinds.len());
        for (index, kind) in kinds.iter().enumerate() {
            let same = kinds[..index].iter().position(|other| other == kind);
            let is_reduction = || kind.to_string().contains("reduction");
            let new = || if is_reduction() { Iterator::Reduction } else { Iterator::Parallel };
            found.push(same.map_or_else(new, |same| found[same]));
        }
        return Ok(found);
    }
    // A named operation: what its outputs do not have is summed.
    let loops = maps.iter().flatten().max().map_or(0, |last| last + 1);
    let parallel = |at| maps[inputs..].iter().any(|map| map.contains(&at));
    Ok((0..loops).map(|at| if parallel(at) { Iterator::Parallel } else { Iterator::Reduction }).collect())
}

/// The body of one result alone, and the operands that it takes: all inputs, then its own initial value. What
/// elementwise work reads of another result's initial value is an input like any other.
fn part(
    operation: Op<'_, '_>,
    body: &ScalarBody,
    iterators: &[Iterator],
    number: usize,
) -> Result<(ScalarBody, Vec<usize>), Error> {
    let inputs = body.args.len() - body.yields.len();
    if body.yields.len() == 1 {
        return Ok((body.clone(), (0..=inputs).collect()));
    }
    let mut alone = body.clone().yield_(body.yields[number]);
    alone.prune();
    let is_read = |argument: usize| {
        let argument = Ref::Arg(argument);
        alone.yields.contains(&argument) || alone.insts.iter().any(|inst| inst.operands.contains(&argument))
    };
    let own = inputs + number;
    let others: Vec<usize> =
        (inputs..body.args.len()).filter(|&argument| argument != own && is_read(argument)).collect();
    if !others.is_empty() && iterators.contains(&Iterator::Reduction) {
        return Err(Error::at(operation, "the results of one reduction depend on each other; split it"));
    }
    let read: Vec<usize> = (0..inputs).chain(others).chain([own]).collect();
    let place = |argument| read.iter().position(|&other| other == argument).unwrap_or(0);
    let arguments: Vec<Ref> = (0..body.args.len()).map(|argument| Ref::Arg(place(argument))).collect();
    let mut new = ScalarBody::new(read.iter().map(|&argument| body.args[argument]).collect::<Vec<_>>());
    let value = new.inline(&alone, &arguments)[0];
    Ok((new.yield_(value), read))
}

/// Whether an operation computes element by element on tensors of one shape (`arith.addf` on tensors).
pub fn is_elementwise(operation: Op<'_, '_>) -> bool {
    let name = walk::name(operation);
    let tensors = |value: Val<'_, '_>| value.r#type().is_ranked_tensor() && TensorType::of(value).is_ok();
    (name.starts_with("arith.") || name.starts_with("math."))
        && name != "arith.constant"
        && operation.result_count() == 1
        && operation.operand_count() > 0
        && operation.result(0).is_ok_and(|result| tensors(result.into()))
        && operation.operands().all(tensors)
}
