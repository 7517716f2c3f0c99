//! Splits `shard.all_reduce` into `shard.reduce_scatter` and `shard.all_gather`.
//!
//! Why: track-and-trigger overlaps a producer with a reduce-scatter, chunk by chunk (T3 paper, section 4.1:
//! the running example). An all-reduce hides that half: nothing could trigger in its middle.
//!
//! ```text
//! before  %r = shard.all_reduce     %x on @grid                   : 6x16 -> 6x16
//! after   %s = shard.reduce_scatter %x on @grid scatter_axis = 1  : 6x16 -> 6x4
//!         %r = shard.all_gather     %s on @grid gather_axis = 1   : 6x4  -> 6x16  {t3.all_reduce_half}
//! ```
//!
//! Needs: explicit collectives on static shapes. Guarantees: the sum of each chunk is the ring's, in the schedule
//! crate's order of addition; every all-reduce that stays gets a remark. The attribute tells `t3-find-pairs` that
//! the gather is the second half of a pair, which the paper leaves sequential.
//!
//! The outermost dimension that the devices divide is scattered, since its shards are contiguous; in decode,
//! with fewer rows than devices, that is the hidden dimension.
//!
//! Declines scalars (`scalar`), reductions other than sums (`not-a-sum`), groups of one (`one-device`), and
//! shapes of which the devices divide no dimension (`indivisible`).

use melior::ir::Attribute;
use t3c_ir::{Builder, Op, TensorType, ffi, function::functions, views::Collective, walk::walk};
use t3c_schedule::{CollectiveKind, Reduction, chunks::scatter_dimension};

use crate::{
    decline::Decline,
    group::Group,
    options,
    pass::{Pass, PassContext, PassError},
};

/// Marks the gather that an all-reduce ends with: its other half is the pair.
pub const GATHER_HALF: &str = "t3.all_reduce_half";

/// The pass.
#[derive(Clone, Debug)]
pub struct SplitAllReduce;

impl Pass for SplitAllReduce {
    const NAME: &'static str = "t3-split-all-reduce";
    const SUMMARY: &'static str = "Split each summing all-reduce into a reduce-scatter and an all-gather";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        for all_reduce in find(module) {
            let group = Group::of(module, all_reduce)?;
            let shape = TensorType::of(all_reduce.input()?)?.shape;
            match scattered(&shape, group.devices, all_reduce.reduction()) {
                Ok(dimension) => split(all_reduce, &group, dimension)?,
                Err(decline) => cx.missed(all_reduce.op, &decline),
            }
        }
        Ok(())
    }
}

fn find<'c, 'a>(module: Op<'c, 'a>) -> Vec<Collective<'c, 'a>> {
    let operations = functions(module).into_iter().flat_map(|function| walk(function.0));
    let collectives = operations.filter_map(Collective::cast);
    collectives.filter(|collective| collective.kind == CollectiveKind::AllReduce).collect()
}

/// The dimension along which to scatter.
fn scattered(shape: &[u64], devices: u32, reduction: Reduction) -> Result<usize, Decline> {
    if reduction != Reduction::Sum {
        return Err(Decline::NotASum { reduction: "max" });
    }
    if shape.is_empty() {
        return Err(Decline::Scalar);
    }
    if devices == 1 {
        return Err(Decline::OneDevice);
    }
    scatter_dimension(shape, devices).ok_or(Decline::Indivisible { shape: shape.to_vec(), devices })
}

fn split(all_reduce: Collective<'_, '_>, group: &Group, dimension: usize) -> Result<(), PassError> {
    let whole = TensorType::of(all_reduce.result()?)?;
    let mut part = whole.clone();
    part.shape[dimension] /= u64::from(group.devices);
    let place = Builder::before(all_reduce.op)?;
    let on = group.on();
    let scatter = ("shard.reduce_scatter", Some(("scatter_axis", dimension)));
    let scattered = place.collective(scatter.0, all_reduce.input()?, on, scatter.1, None, &part)?;
    let gather = ("shard.all_gather", Some(("gather_axis", dimension)));
    let gathered = place.collective(gather.0, scattered, on, gather.1, None, &whole)?;
    if let Some(half) = ffi::value_owner(gathered) {
        ffi::set_attribute(half, GATHER_HALF, Attribute::unit(place.context()));
    }
    ffi::replace_all_uses(all_reduce.result()?, gathered);
    ffi::erase(all_reduce.op);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_divisible_dimension_is_scattered_or_the_reason_given() {
        assert_eq!(scattered(&[6, 16], 4, Reduction::Sum), Ok(1));
        assert_eq!(scattered(&[8, 16], 4, Reduction::Sum), Ok(0));
        assert_eq!(scattered(&[], 4, Reduction::Sum), Err(Decline::Scalar));
        assert_eq!(scattered(&[4], 1, Reduction::Sum), Err(Decline::OneDevice));
        assert!(matches!(scattered(&[4], 4, Reduction::Max), Err(Decline::NotASum { .. })));
        let indivisible = Decline::Indivisible { shape: vec![3, 5], devices: 4 };
        assert_eq!(scattered(&[3, 5], 4, Reduction::Sum), Err(indivisible));
    }
}
