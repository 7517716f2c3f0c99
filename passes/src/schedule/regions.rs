//! Steps of t3 operations: what is in their regions, and the address space around it.

use melior::ir::{BlockLike, operation::OperationLike};
use t3c_ir::{
    Blk, Op, Val, ffi,
    function::callee,
    views::{Consume, TrackAndTrigger},
    walk,
};
use t3c_schedule::{
    self as plan, Algorithm, Arrival, Chunk, CollectiveKind, Compute, Fused, Reduction, Trigger, Work,
    arrivals::configure_ring_all_gather,
};

use super::{Draft, Exporter, product_compute, reads, starts_products, updated_in_place, work};
use crate::{
    find_pairs::moved_bytes, group::Group, pass::PassError, producers::chain_of_products,
    products::product_of,
};

impl<'c, 'a> Exporter<'c, 'a> {
    pub(super) fn fused(&self, view: TrackAndTrigger<'c, 'a>, draft: &mut Draft) -> Result<Fused, PassError> {
        let op = view.0;
        let unconfigured = || PassError::at(op, "has no address space: run t3-configure-address-space first");
        let (chunks, block) =
            (view.chunks().ok_or_else(unconfigured)?, view.block().ok_or_else(unconfigured)?);
        let malformed = || PassError::at(op, "expected a region that yields one contribution");
        let body = view.body().ok_or_else(malformed)?;
        let contribution = view.contribution().ok_or_else(malformed)?;
        let group = Group::new(self.module, op, view.grid(), view.axes())?;
        bind_arguments(op, body, 0, draft)?;
        let producers = self.region(body, draft)?;
        let partial = draft.buffer(contribution, op)?;
        let result = draft.define(op.result(0)?.into(), op)?;
        let bytes = match view.collective() {
            CollectiveKind::AllToAll => moved_bytes(op, contribution),
            _ => draft.buffers[partial].bytes(),
        };
        let collective = plan::Collective {
            kind: view.collective(),
            axes: group.axes,
            dimension: view.dimension(),
            concatenate: view.concatenate(),
            reduction: Reduction::Sum,
            bytes,
            algorithm: chunks_algorithm(view.collective(), &chunks),
            input: partial,
            output: result,
        };
        let shape = draft.buffers[partial].shape.clone();
        Ok(Fused { producers, collective, shape, dimension: view.dimension(), block, chunks, result })
    }

    pub(super) fn consume(
        &self,
        view: Consume<'c, 'a>,
        draft: &mut Draft,
    ) -> Result<plan::Consume, PassError> {
        let op = view.0;
        let body = view.body().ok_or_else(|| PassError::at(op, "expected a region"))?;
        let terminator =
            walk::operations(body).pop().ok_or_else(|| PassError::at(op, "expected a t3.yield"))?;
        let group = Group::new(self.module, op, view.grid(), view.axes())?;
        let input = draft.buffer(op.operand(0)?, op)?;
        let results: Vec<(Val<'c, 'a>, Val<'c, 'a>)> =
            op.results().map(Into::into).zip(terminator.operands()).collect();
        for (result, yielded) in &results {
            if let Some(name) = draft.names.get(&ffi::value_key(*result)).cloned() {
                draft.names.entry(ffi::value_key(*yielded)).or_insert(name);
            }
        }
        let whole: Val<'c, 'a> = body.argument(0)?.into();
        let output = draft.define(whole, op)?;
        bind_arguments(op, body, 1, draft)?;
        let consumers = self.region(body, draft)?;
        for (result, yielded) in &results {
            let id = draft.buffer(*yielded, terminator)?;
            draft.of.insert(ffi::value_key(*result), id);
        }
        let arrivals = view.arrivals().unwrap_or_default();
        let bytes = match view.collective() {
            CollectiveKind::AllToAll => moved_bytes(op, op.operand(0)?),
            _ => draft.buffers[output].bytes(),
        };
        let collective = plan::Collective {
            kind: view.collective(),
            axes: group.axes,
            dimension: view.dimension(),
            concatenate: view.concatenate(),
            reduction: Reduction::Sum,
            bytes,
            algorithm: arrivals_algorithm(view.collective(), &arrivals, group.devices),
            input,
            output,
        };
        let block = view.block().unwrap_or(0);
        Ok(plan::Consume { collective, dimension: view.part_dimension(), arrivals, block, consumers })
    }

    /// The work of a region, in order. The products of one sum write one buffer, in the order of the sum.
    fn region(&self, body: Blk<'c, 'a>, draft: &mut Draft) -> Result<Vec<Compute>, PassError> {
        let mut computes = Vec::new();
        for op in walk::operations(body) {
            let sum = sum_around(op);
            if let Some(products) = chain_of_products(op).filter(|_| sum.is_none()) {
                let buffer = draft.define(op.result(0)?.into(), op)?;
                for product in products {
                    let Some((generic, contraction)) = product_of(product) else { continue };
                    computes.push(Compute {
                        work: Work::Contraction(contraction),
                        kernel: None,
                        reads: reads(product, &generic, draft)?,
                        writes: vec![buffer],
                    });
                }
            } else if sum.is_some() || walk::is(op, "t3.yield") || starts_products(op) {
                // The sum stands for its parts.
            } else if let Some((product, contraction)) = product_of(op) {
                computes.push(product_compute(op, &product, contraction, draft)?);
            } else {
                computes.push(self.kernel(op, draft)?);
            }
        }
        Ok(computes)
    }

    fn kernel(&self, op: Op<'c, 'a>, draft: &mut Draft) -> Result<Compute, PassError> {
        let no_step =
            || PassError::at(op, format!("{} is no work of a region: run t3-outline first", walk::name(op)));
        let function = callee(self.module, op).ok_or_else(no_step)?;
        let work = work(function)?.filter(|_| updated_in_place(function).is_empty()).ok_or_else(no_step)?;
        let reads = op.operands().map(|value| draft.buffer(value, op)).collect::<Result<Vec<_>, _>>()?;
        let writes =
            op.results().map(|result| draft.define(result.into(), op)).collect::<Result<Vec<_>, _>>()?;
        Ok(Compute { work, kernel: Some(function.name()), reads, writes })
    }
}

/// The sum that `op`, a product or a shorter sum, is a part of.
fn sum_around<'c, 'a>(op: Op<'c, 'a>) -> Option<Op<'c, 'a>> {
    let is_part = product_of(op).is_some() || chain_of_products(op).is_some();
    let uses = ffi::uses(op.result(0).ok().filter(|_| is_part)?.into());
    match uses[..] {
        [(user, _)] => chain_of_products(user).map(|_| user),
        _ => None,
    }
}

/// The buffers of a region's arguments, from the `from`th on, are those of the operands.
fn bind_arguments<'c, 'a>(
    op: Op<'c, 'a>,
    body: Blk<'c, 'a>,
    from: usize,
    draft: &mut Draft,
) -> Result<(), PassError> {
    for number in from..op.operand_count() {
        let inner: Val<'c, 'a> = body.argument(number)?.into();
        let outer = draft.buffer(op.operand(number)?, op)?;
        draft.of.insert(ffi::value_key(inner), outer);
    }
    Ok(())
}

fn chunks_algorithm(kind: CollectiveKind, chunks: &[Chunk]) -> Algorithm {
    let reduces = chunks.iter().any(|chunk| chunk.trigger == Trigger::Reduce);
    if kind == CollectiveKind::AllToAll || reduces { Algorithm::Direct } else { Algorithm::Ring }
}

fn arrivals_algorithm(kind: CollectiveKind, arrivals: &[Arrival], devices: u32) -> Algorithm {
    let on_ring = arrivals.is_empty() || arrivals == configure_ring_all_gather(devices);
    if kind == CollectiveKind::AllGather && on_ring { Algorithm::Ring } else { Algorithm::Direct }
}
