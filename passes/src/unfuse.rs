//! Takes fused pairs apart again: a t3 operation becomes the collective and the work that its region held.
//!
//! Why: a t3 operation always means gather-then-compute, or compute-then-collective. A backend that cannot overlap
//! a form of it runs that instead.
//!
//! ```text
//! before  %q, %k = t3.consume all_gather on @grid axes = [0] dim = 0 (%t, %wq, %wk) { … }
//! after   %g = shard.all_gather %t on @grid grid_axes = [0] gather_axis = 0
//!         %q = contraction %g, %wq
//!         %k = contraction %g, %wk
//! ```
//!
//! Needs: verified t3 operations, configured or not. Guarantees: the same results bit for bit, since the collective
//! adds in the order of the ring in both forms; each operation taken apart gets a remark (`unsupported-by-target`).
//!
//! `keep=sums` leaves `t3.track_and_trigger` as it is where the contribution is a product or a sum of products and
//! the collective a reduce-scatter, and every `t3.consume`; `keep=none` (the default) leaves nothing.

use melior::ir::{BlockLike, operation::OperationLike};
use t3c_ir::{
    Blk, Builder, Op, TensorType, Val,
    attributes::index_attr,
    ffi,
    views::{Consume, TrackAndTrigger},
    walk,
};
use t3c_schedule::CollectiveKind;

use crate::{
    decline::Decline,
    find_pairs::ROWS,
    group::Group,
    options,
    pass::{Note, Pass, PassContext, PassError},
    producers::chain_of_products,
    products::product_of,
};

/// The pass.
#[derive(Clone, Debug)]
pub struct Unfuse {
    /// Whether sums of products, and readers, stay fused.
    pub keeps_sums: bool,
}

impl Pass for Unfuse {
    const NAME: &'static str = "t3-unfuse";
    const SUMMARY: &'static str = "Take fused pairs apart into their collective and their work";
    const OPTIONS: &'static [&'static str] =
        &["keep=none: none, or sums for sums of products and their reduce-scatter, and readers"];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self { keeps_sums: false };
        for (key, value) in options::parse(Self::NAME, text, &["keep"])? {
            pass.keeps_sums = match value {
                "sums" => true,
                "none" => false,
                _ => {
                    let (option, expected) = (format!("{key}={value}"), "none or sums".to_owned());
                    return Err(PassError::Option { pass: Self::NAME, option, expected });
                }
            };
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        // Listed first: a t3 operation's terminator goes with it.
        let fused: Vec<Op<'_, '_>> =
            walk::walk(module).into_iter().filter(|op| walk::name(*op).starts_with("t3.")).collect();
        let regions = fused.into_iter().filter(|op| walk::body(*op).is_some());
        for op in regions.collect::<Vec<_>>() {
            if let Some(fused) =
                TrackAndTrigger::cast(op).filter(|fused| !(self.keeps_sums && is_sum(*fused)))
            {
                report(op, fused.collective(), cx);
                split_producer(module, fused)?;
            } else if let Some(consume) = Consume::cast(op).filter(|_| !self.keeps_sums) {
                report(op, consume.collective(), cx);
                split_readers(module, consume)?;
            }
        }
        Ok(())
    }
}

/// Whether an operation is a sum of matrix products and its reduce-scatter, with nothing between them.
pub fn is_sum(fused: TrackAndTrigger<'_, '_>) -> bool {
    let contribution = fused.contribution().and_then(ffi::value_owner);
    fused.collective() == CollectiveKind::ReduceScatter
        && contribution.is_some_and(|op| product_of(op).is_some() || chain_of_products(op).is_some())
}

fn report(op: Op<'_, '_>, kind: CollectiveKind, cx: &PassContext) {
    cx.note(op, Note::missed(&Decline::UnsupportedByTarget { pair: format!("{kind} and its other half") }));
}

fn split_producer<'c, 'a>(module: Op<'c, 'a>, fused: TrackAndTrigger<'c, 'a>) -> Result<(), PassError> {
    let op = fused.0;
    let malformed = || PassError::at(op, "expected a region that yields one contribution");
    let body = fused.body().ok_or_else(malformed)?;
    let contribution = fused.contribution().ok_or_else(malformed)?;
    let group = Group::new(module, op, fused.grid(), fused.axes())?;
    let result: Val<'c, 'a> = op.result(0)?.into();
    bind(op, body, 0)?;
    move_out(op, body);
    let dimensions = (fused.dimension(), fused.concatenate());
    // The contribution may have been an input itself.
    let contribution = fused.contribution().unwrap_or(contribution);
    let reduced = collective(op, fused.collective(), contribution, &group, dimensions, result)?;
    ffi::replace_all_uses(result, reduced);
    ffi::erase(op);
    Ok(())
}

fn split_readers<'c, 'a>(module: Op<'c, 'a>, consume: Consume<'c, 'a>) -> Result<(), PassError> {
    let op = consume.0;
    let body = consume.body().ok_or_else(|| PassError::at(op, "expected a region"))?;
    let group = Group::new(module, op, consume.grid(), consume.axes())?;
    let whole: Val<'c, 'a> = body.argument(0)?.into();
    let dimensions = (consume.dimension(), consume.concatenate());
    let gathered = collective(op, consume.collective(), op.operand(0)?, &group, dimensions, whole)?;
    ffi::replace_all_uses(whole, gathered);
    bind(op, body, 1)?;
    move_out(op, body);
    let terminator = walk::operations(body).pop().ok_or_else(|| PassError::at(op, "expected a t3.yield"))?;
    let yields: Vec<Val<'c, 'a>> = terminator.operands().collect();
    for (result, value) in op.results().zip(yields) {
        ffi::replace_all_uses(result.into(), value);
    }
    ffi::erase(op);
    Ok(())
}

/// Makes the region read the operands themselves, from the `from`th on.
fn bind<'c, 'a>(op: Op<'c, 'a>, body: Blk<'c, 'a>, from: usize) -> Result<(), PassError> {
    for number in from..op.operand_count() {
        ffi::replace_all_uses(body.argument(number)?.into(), op.operand(number)?);
    }
    Ok(())
}

/// Moves all but the terminator before `op`.
fn move_out<'c, 'a>(op: Op<'c, 'a>, body: Blk<'c, 'a>) {
    let mut members = walk::operations(body);
    members.pop();
    members.into_iter().for_each(|member| ffi::move_before(member, op));
}

/// The plain collective, before `op`; its result has the type of `like`.
fn collective<'c, 'a>(
    op: Op<'c, 'a>,
    kind: CollectiveKind,
    input: Val<'c, 'a>,
    group: &Group,
    (dimension, concatenate): (usize, Option<usize>),
    like: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, PassError> {
    let (name, attribute) = match kind {
        CollectiveKind::ReduceScatter => ("shard.reduce_scatter", Some("scatter_axis")),
        CollectiveKind::AllGather => ("shard.all_gather", Some("gather_axis")),
        CollectiveKind::AllToAll => ("shard.all_to_all", Some("split_axis")),
        CollectiveKind::AllSlice => ("shard.all_slice", Some("slice_axis")),
        CollectiveKind::AllReduce => ("shard.all_reduce", None),
    };
    let place = Builder::before(op)?;
    let dimension = attribute.map(|attribute| (attribute, dimension));
    let value = place.collective(name, input, group.on(), dimension, None, &TensorType::of(like)?)?;
    if let Some(made) = ffi::value_owner(value) {
        if let Some(concatenate) = concatenate {
            ffi::set_attribute(made, "concat_axis", index_attr(place.context(), concatenate as i64));
        }
        if let Ok(rows) = op.attribute(ROWS) {
            ffi::set_attribute(made, ROWS, rows);
        }
    }
    Ok(value)
}
