//! Finds the pairs that can be fused: a producer and the collective that takes its result, or a gather and its
//! readers.
//!
//! Why: the stores of a producer can be the first transfer of its collective (T3 paper, section 4), and a reader
//! can start on the parts of a gather that have arrived (section 7.2), but only where nothing else needs the
//! value in between. The IR is left as it is: the pass makes remarks, and `t3-fuse` calls [`examine`].
//!
//! ```text
//! %a = contraction %x, %w          // products, units, sums; then scaling, casts, views, additions
//! %b = contraction %y, %v          // dX of Q, K and V
//! %p = %a + %b
//! %s = shard.reduce_scatter %p     // analysis: pair: 2 products feed the reduce_scatter
//!
//! %g = shard.all_gather %t         // analysis: pair: 3 products read the all_gather
//! %n = norm %g                     // row-wise work on the way
//! %q, %k, %v = contractions %n, …
//! ```
//!
//! Needs: one program a device, with explicit collectives (after `t3-shard` and `t3-split-all-reduce`).
//! Guarantees: each reduce-scatter, all-gather and all-to-all gets exactly one remark, at its location: the pair
//! (analysis; `t3-fuse` then says whether it was fused), why there is none (missed), or why it is no candidate
//! (analysis: the gather half of an all-reduce, a gather without a reader that could work on parts).
//!
//! Declines with `not-a-sum`, `one-device`, `no-producer`, `named-operation`, `partial-used-elsewhere`,
//! `nonlinear-between`, `nonzero-start`, `not-divisible` or `gathered-dimension-reduced`.

use melior::ir::operation::OperationLike;
use t3c_ir::{
    Generic, Op, TensorType, Val,
    context::render_location,
    function::{Function, callee, functions},
    units::unit_of,
    views::Collective,
};
use t3c_schedule::{CollectiveKind, Reduction};

use crate::{
    calls::call_counts,
    decline::Decline,
    dimensions::{Kind, kind},
    flow::Flow,
    group::Group,
    options,
    pass::{Note, Pass, PassContext, PassError},
    producers::{Producer, Wanted, producer},
    readers::{Readers, readers},
    split_all_reduce::GATHER_HALF,
};

/// The pass.
#[derive(Clone, Debug)]
pub struct FindPairs;

impl Pass for FindPairs {
    const NAME: &'static str = "t3-find-pairs";
    const SUMMARY: &'static str = "Say which producers feed a collective alone and which readers follow one";

    fn from_options(text: &str) -> Result<Self, PassError> {
        options::none(Self::NAME, text).map(|()| Self)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        for candidate in find_pairs(module)? {
            let op = candidate.collective.op;
            let note = match &candidate.outcome {
                Outcome::Declined(decline) => Note::missed(decline),
                Outcome::Sequential(message) => Note::analysis("gather", message.clone()),
                Outcome::Pair(pair) => {
                    let work = pair.leaves().len() as f64;
                    Note::analysis("pair", pair.summary(module))
                        .numbers(vec![(pair.what(module), work)])
                        .pair(pair.name())
                }
            };
            cx.note(op, note.times(candidate.times));
        }
        Ok(())
    }
}

/// A collective that could be half of a pair, and what became of it.
pub struct Candidate<'c, 'a> {
    /// The collective.
    pub collective: Collective<'c, 'a>,
    /// How often the program runs it.
    pub times: u64,
    /// The outcome.
    pub outcome: Outcome<'c, 'a>,
}

/// What a collective is to its neighbours.
pub enum Outcome<'c, 'a> {
    /// Half of this pair.
    Pair(Box<Pair<'c, 'a>>),
    /// Of none, for this reason.
    Declined(Decline),
    /// No candidate: why.
    Sequential(String),
}

/// The other half of a pair.
#[derive(Debug)]
pub enum Side<'c, 'a> {
    /// It feeds the collective.
    Producer(Producer<'c, 'a>),
    /// They read what it gathers.
    Readers(Readers<'c, 'a>),
}

/// A collective and what overlaps with it.
#[derive(Debug)]
pub struct Pair<'c, 'a> {
    /// Which collective.
    pub kind: CollectiveKind,
    /// What overlaps.
    pub side: Side<'c, 'a>,
    /// The devices.
    pub group: Group,
    /// The dimension that is scattered, gathered or split.
    pub dimension: usize,
    /// Where an all-to-all lays the pieces.
    pub concatenate: Option<usize>,
}

impl<'c, 'a> Pair<'c, 'a> {
    /// Everything that moves into the region.
    pub fn members(&self) -> &[Op<'c, 'a>] {
        match &self.side {
            Side::Producer(producer) => &producer.members,
            Side::Readers(readers) => &readers.members,
        }
    }

    /// The operations that do the work.
    pub fn leaves(&self) -> &[Op<'c, 'a>] {
        match &self.side {
            Side::Producer(producer) => &producer.leaves,
            Side::Readers(readers) => &readers.leaves,
        }
    }

    /// What the pair is, by the names of the parameters that its products use: `o_proj reduce_scatter`.
    pub fn name(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for leaf in self.leaves() {
            let name = short_name(&render_location(leaf.location()));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        match &self.side {
            Side::Producer(_) => format!("{} {}", names.join(" + "), self.kind),
            Side::Readers(_) => format!("{} {}", self.kind, names.join(", ")),
        }
    }

    /// `products`, `lookups`, …: what does the work.
    pub fn what(&self, module: Op<'c, 'a>) -> &'static str {
        let kinds: Vec<Kind> = self.leaves().iter().map(|leaf| kind(module, *leaf)).collect();
        let all = |wanted: fn(&Kind) -> bool| kinds.iter().all(wanted);
        match () {
            () if all(|kind| matches!(kind, Kind::Product | Kind::StartedProduct)) => "products",
            () if all(|kind| matches!(kind, Kind::Unit(_))) => "units",
            () if all(|kind| matches!(kind, Kind::Elementwise | Kind::Reduction)) => "loops",
            () => "operations",
        }
    }

    fn summary(&self, module: Op<'c, 'a>) -> String {
        let (count, what) = (self.leaves().len(), self.what(module));
        let verb = match &self.side {
            Side::Producer(_) => "feed",
            Side::Readers(_) => "read",
        };
        match count {
            1 => format!("1 {} {verb}s the {}", what.trim_end_matches('s'), self.kind),
            _ => format!("{count} {what} {verb} the {}", self.kind),
        }
    }
}

/// `down_proj` of `model.layers.3.mlp.down_proj.weight (config.json:12:5)`, and `down_proj.backward` of its gradient.
fn short_name(location: &str) -> String {
    let name = location.split_once(" (").map_or(location, |(name, _)| name);
    if name.contains(':') {
        return name.to_owned();
    }
    let (forward, suffix) = match name.strip_suffix(".backward") {
        Some(forward) => (forward, ".backward"),
        None => (name, ""),
    };
    let mut parts = forward.rsplit('.').filter(|part| !matches!(*part, "weight" | "bias"));
    format!("{}{suffix}", parts.next().unwrap_or(forward))
}

/// Every reduce-scatter, all-gather and all-to-all of the module, in order.
///
/// # Errors
/// When a collective names no grid of the module, or a function calls itself.
pub fn find_pairs<'c, 'a>(module: Op<'c, 'a>) -> Result<Vec<Candidate<'c, 'a>>, PassError> {
    let counts = call_counts(module)?;
    let mut candidates = Vec::new();
    for function in functions(module) {
        let Some(body) = function.body() else { continue };
        let flow = Flow::of(module, body);
        let times = counts.get(&function.name()).copied().unwrap_or(0);
        for collective in collectives(&flow) {
            let outcome = examine(&flow, collective)?;
            candidates.push(Candidate { collective, times, outcome });
        }
    }
    Ok(candidates)
}

/// The collectives of a block that could be half of a pair.
pub fn collectives<'c, 'a>(flow: &Flow<'c, 'a>) -> Vec<Collective<'c, 'a>> {
    use CollectiveKind::{AllGather, AllToAll, ReduceScatter};
    let all = flow.operations().filter_map(Collective::cast);
    all.filter(|collective| matches!(collective.kind, ReduceScatter | AllGather | AllToAll)).collect()
}

/// What `collective` is to its neighbours.
///
/// # Errors
/// When it names no grid of the module, or is malformed.
pub fn examine<'c, 'a>(
    flow: &Flow<'c, 'a>,
    collective: Collective<'c, 'a>,
) -> Result<Outcome<'c, 'a>, PassError> {
    let op = collective.op;
    let group = Group::of(flow.module, collective)?;
    let dimension =
        collective.dimension().ok_or_else(|| PassError::at(op, "expected the collective's dimension"))?;
    if group.devices == 1 {
        return Ok(Outcome::Declined(Decline::OneDevice));
    }
    let parts = u64::from(group.devices);
    let concatenate = collective.concatenate();
    let (input, result) = (collective.input()?, collective.result()?);
    let feeds = |reduces| {
        let wanted = Wanted { parts, reduces };
        producer(flow, input, op, dimension, wanted).map(Side::Producer)
    };
    let reads = || readers(flow, op, result, concatenate.unwrap_or(dimension), parts).map(Side::Readers);
    let found = match collective.kind {
        CollectiveKind::ReduceScatter if collective.reduction() != Reduction::Sum => {
            Err(Decline::NotASum { reduction: "max" })
        }
        CollectiveKind::ReduceScatter => feeds(true),
        CollectiveKind::AllGather if op.attribute(GATHER_HALF).is_ok() => {
            let message =
                "stays sequential: the gather half of an all-reduce, whose readers wait for the whole value";
            return Ok(Outcome::Sequential(message.to_owned()));
        }
        CollectiveKind::AllGather => match reads() {
            Err(Decline::NoReader { users }) => {
                let message = format!("stays sequential: {users} cannot work on parts of the gathered value");
                return Ok(Outcome::Sequential(message));
            }
            found => found,
        },
        _ => either(flow.module, feeds(false), reads()),
    };
    Ok(match found {
        Ok(side) => {
            Outcome::Pair(Box::new(Pair { kind: collective.kind, side, group, dimension, concatenate }))
        }
        Err(decline) => Outcome::Declined(decline),
    })
}

/// An all-to-all overlaps with what feeds it or with what reads it, whichever does more work.
fn either<'c, 'a>(
    module: Op<'c, 'a>,
    feeds: Result<Side<'c, 'a>, Decline>,
    reads: Result<Side<'c, 'a>, Decline>,
) -> Result<Side<'c, 'a>, Decline> {
    let work = |side: &Side<'c, 'a>| {
        let leaves = match side {
            Side::Producer(producer) => &producer.leaves,
            Side::Readers(readers) => &readers.leaves,
        };
        leaves.iter().map(|leaf| flops(module, *leaf)).sum::<u64>()
    };
    match (feeds, reads) {
        (Ok(feeds), Ok(reads)) => Ok(if work(&reads) > work(&feeds) { reads } else { feeds }),
        (Ok(side), Err(_)) | (Err(_), Ok(side)) => Ok(side),
        (Err(Decline::NoProducer { .. }), Err(decline @ Decline::GatheredDimensionReduced { .. })) => {
            Err(decline)
        }
        (Err(decline), Err(_)) => Err(decline),
    }
}

/// Floating-point operations of an operation.
pub fn flops(module: Op<'_, '_>, op: Op<'_, '_>) -> u64 {
    if Generic::is(op) {
        return Generic::read(op).map_or(0, |generic| generic.flops());
    }
    callee(module, op).and_then(|function: Function<'_, '_>| unit_of(function)).map_or(0, |unit| unit.flops())
}

/// Bytes of a value that a collective really moves or keeps: an all-to-all's rows may be padded, and `t3.rows`
/// counts those that are not.
pub fn moved_bytes(op: Op<'_, '_>, value: Val<'_, '_>) -> u64 {
    let Ok(r#type) = TensorType::of(value) else { return 0 };
    let whole = r#type.elements().saturating_mul(r#type.element.bytes());
    let row = r#type.shape.last().copied().unwrap_or(1).saturating_mul(r#type.element.bytes());
    let rows = t3c_ir::attributes::integer(op, ROWS).and_then(|rows| u64::try_from(rows).ok());
    rows.map_or(whole, |rows| rows.saturating_mul(row).min(whole))
}

/// The attribute of an all-to-all that counts the rows of a device's operand that are no padding. A row is an
/// index of all dimensions but the last.
pub const ROWS: &str = "t3.rows";

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn a_pair_is_named_after_its_parameters() {
        assert_eq!(short_name("model.layers.3.mlp.down_proj.weight (config.json:12:5)"), "down_proj");
        assert_eq!(short_name("model.layers.3.mlp.down_proj.backward"), "down_proj.backward");
        assert_eq!(short_name("layer.mlir:12:5"), "layer.mlir:12:5");
    }
}
