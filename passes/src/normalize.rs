//! `t3-normalize`: imported programs in the form that the other passes read.
//!
//! - A named structured operation (`linalg.matmul`, `linalg.batch_matmul`, `linalg.transpose`, `linalg.reduce`, …)
//!   becomes the `linalg.generic` that it stands for; `linalg.fill` stays.
//! - A `linalg.generic` of several results becomes one a result that is used.
//! - Arithmetic on whole tensors (`arith.addf : tensor<…>`) becomes a loop.
//! - Grids that nothing names are dropped, so that the first one is the program's.
//!
//! Needs nothing; leaves what it has no rule for as it is. Programs that importers make are in this form already.

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Builder, Generic, Op, Ref, ScalarBody, TensorType, Val, attributes::string, ffi, generic::scalar_op,
    structured, walk,
};

use crate::{
    options,
    pass::{Pass, PassContext, PassError},
};

/// The pass.
#[derive(Clone, Debug)]
pub struct Normalize;

impl Pass for Normalize {
    const NAME: &'static str = "t3-normalize";
    const SUMMARY: &'static str = "Bring named, elementwise and several-result operations into one form";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        // Collected first: what stands inside an operation goes with it.
        let all = walk::walk(module);
        let several = |op: Op<'_, '_>| walk::is(op, "linalg.generic") && op.result_count() > 1;
        let general: Vec<_> = all.iter().copied().filter(|op| structured::is(*op) || several(*op)).collect();
        let elementwise: Vec<_> = all.into_iter().filter(|op| structured::is_elementwise(*op)).collect();
        general.into_iter().try_for_each(generalize)?;
        elementwise.into_iter().try_for_each(loops)?;
        drop_grids(module);
        Ok(())
    }
}

fn generalize(operation: Op<'_, '_>) -> Result<(), PassError> {
    let b = Builder::before(operation)?.at(operation.location());
    for (number, generic) in Generic::read_all(operation)?.iter().enumerate() {
        let old: Val<'_, '_> = operation.result(number).map_err(t3c_ir::Error::from)?.into();
        if !ffi::uses(old).is_empty() {
            ffi::replace_all_uses(old, b.generic(generic)?);
        }
    }
    ffi::erase(operation);
    Ok(())
}

/// Arithmetic on tensors as a loop; on tensors of rank 0 as well.
fn loops(operation: Op<'_, '_>) -> Result<(), PassError> {
    let name = walk::name(operation);
    let Some(op) = scalar_op(operation, &name) else { return Ok(()) };
    let old: Val<'_, '_> = operation.result(0).map_err(t3c_ir::Error::from)?.into();
    let (inputs, result): (Vec<Val<'_, '_>>, _) = (operation.operands().collect(), TensorType::of(old)?);
    let rank = result.shape.len();
    let types = inputs.iter().map(|&input| TensorType::of(input)).collect::<Result<Vec<_>, _>>()?;
    if types.iter().any(|r#type| r#type.shape != result.shape) {
        return Ok(());
    }
    let mut body = ScalarBody::new(
        types.iter().map(|r#type| r#type.element).chain([result.element]).collect::<Vec<_>>(),
    );
    let operands: Vec<Ref> = (0..inputs.len()).map(Ref::Arg).collect();
    let value = body.push(op, &operands, result.element);
    let b = Builder::before(operation)?.at(operation.location());
    let made = b.generic(&Generic {
        init: b.empty(&result)?,
        maps: vec![(0..rank).collect(); inputs.len() + 1],
        inputs,
        iterators: vec![t3c_ir::Iterator::Parallel; rank],
        extents: result.shape.clone(),
        body: body.yield_(value),
        captures: vec![],
        result,
    })?;
    ffi::replace_all_uses(old, made);
    ffi::erase(operation);
    Ok(())
}

fn drop_grids(module: Op<'_, '_>) {
    let everything = walk::walk(module);
    let named: Vec<String> = everything
        .iter()
        .filter(|op| !walk::is(**op, "shard.grid"))
        .filter_map(|op| string(*op, "grid"))
        .collect();
    let grids: Vec<_> = everything.into_iter().filter(|op| walk::is(*op, "shard.grid")).collect();
    let unused = |grid: &Op<'_, '_>| string(*grid, "sym_name").is_none_or(|name| !named.contains(&name));
    if grids.len() > 1 && !named.is_empty() {
        grids.into_iter().filter(unused).for_each(ffi::erase);
    }
}
