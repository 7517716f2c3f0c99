//! Views of the collectives and of the t3 operations that sit in a module.

use melior::ir::{ValueLike, operation::OperationLike};
use t3c_schedule::{Arrival, Chunk, CollectiveKind, Reduction};

use crate::{
    Blk, Error, Op, Splits, Val,
    attributes::{array, integer, integers, string},
    ffi, walk,
};

/// A `shard` collective.
#[derive(Clone, Copy)]
pub struct Collective<'c, 'a> {
    /// The operation.
    pub op: Op<'c, 'a>,
    /// Which collective.
    pub kind: CollectiveKind,
}

/// (operation, kind, the attribute that names its dimension).
const COLLECTIVES: [(&str, CollectiveKind, &str); 5] = [
    ("shard.all_reduce", CollectiveKind::AllReduce, ""),
    ("shard.reduce_scatter", CollectiveKind::ReduceScatter, "scatter_axis"),
    ("shard.all_gather", CollectiveKind::AllGather, "gather_axis"),
    ("shard.all_slice", CollectiveKind::AllSlice, "slice_axis"),
    ("shard.all_to_all", CollectiveKind::AllToAll, "split_axis"),
];

impl<'c, 'a> Collective<'c, 'a> {
    /// The view of a collective.
    pub fn cast(op: Op<'c, 'a>) -> Option<Self> {
        COLLECTIVES.iter().find(|row| walk::is(op, row.0)).map(|row| Self { op, kind: row.1 })
    }

    /// The device's operand.
    ///
    /// # Errors
    /// Never on verified IR.
    pub fn input(self) -> Result<Val<'c, 'a>, Error> {
        Ok(self.op.operand(0)?)
    }

    /// The device's result.
    ///
    /// # Errors
    /// Never on verified IR.
    pub fn result(self) -> Result<Val<'c, 'a>, Error> {
        Ok(self.op.result(0)?.into())
    }

    /// The symbol of the grid.
    pub fn grid(self) -> String {
        string(self.op, "grid").unwrap_or_default()
    }

    /// The grid axes of the group.
    pub fn axes(self) -> Vec<usize> {
        integers(self.op, "grid_axes").unwrap_or_default().into_iter().map(|axis| axis as usize).collect()
    }

    /// The dimension that is scattered, gathered, sliced or split; `None` for an all-reduce.
    pub fn dimension(self) -> Option<usize> {
        let attribute = COLLECTIVES.iter().find(|row| row.1 == self.kind)?.2;
        integer(self.op, attribute).map(|dimension| dimension as usize)
    }

    /// Where an all-to-all lays the received pieces; `None` for the others.
    pub fn concatenate(self) -> Option<usize> {
        let exchanges = self.kind == CollectiveKind::AllToAll;
        integer(self.op, "concat_axis").filter(|_| exchanges).map(|dimension| dimension as usize)
    }

    /// How it combines, where that is a sum or a maximum.
    ///
    /// # Errors
    /// Any other reduction.
    pub fn known_reduction(self) -> Result<Reduction, Error> {
        match self.op.attribute("reduction").map(|attribute| attribute.to_string()) {
            Ok(text) if !text.contains("max") && !text.contains("sum") => {
                let name = text.trim_start_matches("#shard<partial").trim_end_matches('>').trim().to_owned();
                Err(Error::at(self.op, format!("reduces by {name}; expected sum or max")))
            }
            _ => Ok(self.reduction()),
        }
    }

    /// How it combines: [`Collective::known_reduction`], of a collective that passed it.
    pub fn reduction(self) -> Reduction {
        match self.op.attribute("reduction").map(|attribute| attribute.to_string()) {
            Ok(text) if text.contains("max") => Reduction::Max,
            _ => Reduction::Sum,
        }
    }
}

/// A `t3.track_and_trigger`.
#[derive(Clone, Copy)]
pub struct TrackAndTrigger<'c, 'a>(pub Op<'c, 'a>);

impl<'c, 'a> TrackAndTrigger<'c, 'a> {
    /// The view of the op.
    pub fn cast(op: Op<'c, 'a>) -> Option<Self> {
        walk::is(op, "t3.track_and_trigger").then_some(Self(op))
    }

    /// The collective that follows.
    pub fn collective(self) -> CollectiveKind {
        collective_attribute(self.0)
    }

    /// The symbol of the grid.
    pub fn grid(self) -> String {
        string(self.0, "grid").unwrap_or_default()
    }

    /// The grid axes of the group.
    pub fn axes(self) -> Vec<usize> {
        integers(self.0, "axes").unwrap_or_default().into_iter().map(|axis| axis as usize).collect()
    }

    /// The dimension along which chunks lie.
    pub fn dimension(self) -> usize {
        integer(self.0, "dim").unwrap_or_default() as usize
    }

    /// Where an all-to-all lays the received pieces; `None` for the others.
    pub fn concatenate(self) -> Option<usize> {
        let exchanges = self.collective() == CollectiveKind::AllToAll;
        exchanges.then(|| integer(self.0, "concat").map_or(self.dimension(), |dimension| dimension as usize))
    }

    /// The address space, once configured.
    pub fn chunks(self) -> Option<Vec<Chunk>> {
        array(self.0, "chunks")?.into_iter().map(ffi::chunk_of).collect()
    }

    /// Indices along the dimension that one trigger moves, once configured.
    pub fn block(self) -> Option<u64> {
        integer(self.0, "block").map(|block| block as u64)
    }

    /// The producer's region.
    pub fn body(self) -> Option<Blk<'c, 'a>> {
        walk::body(self.0)
    }

    /// What the region yields: a device's contribution.
    pub fn contribution(self) -> Option<Val<'c, 'a>> {
        walk::operations(self.body()?).last().and_then(|terminator| terminator.operand(0).ok())
    }
}

/// A `t3.consume`.
#[derive(Clone, Copy)]
pub struct Consume<'c, 'a>(pub Op<'c, 'a>);

impl<'c, 'a> Consume<'c, 'a> {
    /// The view of the op.
    pub fn cast(op: Op<'c, 'a>) -> Option<Self> {
        walk::is(op, "t3.consume").then_some(Self(op))
    }

    /// The collective that precedes.
    pub fn collective(self) -> CollectiveKind {
        collective_attribute(self.0)
    }

    /// The symbol of the grid.
    pub fn grid(self) -> String {
        string(self.0, "grid").unwrap_or_default()
    }

    /// The grid axes of the group.
    pub fn axes(self) -> Vec<usize> {
        integers(self.0, "axes").unwrap_or_default().into_iter().map(|axis| axis as usize).collect()
    }

    /// The dimension that is gathered, or split by an all-to-all.
    pub fn dimension(self) -> usize {
        integer(self.0, "dim").unwrap_or_default() as usize
    }

    /// Where an all-to-all lays the received pieces; `None` for the others.
    pub fn concatenate(self) -> Option<usize> {
        let exchanges = self.collective() == CollectiveKind::AllToAll;
        exchanges.then(|| integer(self.0, "concat").map_or(self.dimension(), |dimension| dimension as usize))
    }

    /// The dimension of the whole value along which the parts lie.
    pub fn part_dimension(self) -> usize {
        self.concatenate().unwrap_or(self.dimension())
    }

    /// How the parts arrive, once configured.
    pub fn arrivals(self) -> Option<Vec<Arrival>> {
        array(self.0, "arrivals")?.into_iter().map(ffi::arrival_of).collect()
    }

    /// Indices along the parts' dimension that one transfer moves, once configured.
    pub fn block(self) -> Option<u64> {
        integer(self.0, "block").map(|block| block as u64)
    }

    /// The readers' region.
    pub fn body(self) -> Option<Blk<'c, 'a>> {
        walk::body(self.0)
    }
}

fn collective_attribute(op: Op<'_, '_>) -> CollectiveKind {
    // The numbers of T3_Collective in T3Base.td; the text form is the enum's mnemonic.
    let text = op.attribute("collective").map(|attribute| attribute.to_string()).unwrap_or_default();
    [
        ("all_gather", CollectiveKind::AllGather),
        ("all_reduce", CollectiveKind::AllReduce),
        ("all_to_all", CollectiveKind::AllToAll),
    ]
    .into_iter()
    .find(|(name, _)| text.contains(name))
    .map_or(CollectiveKind::ReduceScatter, |(_, kind)| kind)
}

/// The grid axes that split each dimension, outermost first, from a `shard.shard` annotation;
/// more of them than the value has only in a wrong one.
pub fn annotation(op: Op<'_, '_>) -> Option<Splits> {
    if !walk::is(op, "shard.shard") {
        return None;
    }
    let value = op.operand(0).ok()?;
    let sharding = ffi::value_owner(op.operand(1).ok()?)?;
    let text = sharding.attribute("split_axes").ok()?.to_string();
    let rank = crate::TensorType::from_mlir(value.r#type()).ok()?.shape.len();
    // `#shard<axisarray[[], [0]]>`: the inner brackets, one a dimension; missing ones are unsplit.
    let inner = &text[text.find("[[").map_or(text.len(), |at| at + 1)..];
    let axes = |part: &str| part.split(',').filter_map(|axis| axis.trim().parse().ok()).collect();
    let mut splits: Splits =
        inner.split('[').skip(1).map(|part| axes(part.split(']').next().unwrap_or_default())).collect();
    while splits.len() > rank && splits.last().is_some_and(Vec::is_empty) {
        splits.pop();
    }
    if splits.len() < rank {
        splits.resize(rank, vec![]);
    }
    Some(splits)
}
