//! Fuses pairs into `t3.track_and_trigger`.
//!
//! Why: inside the op the collective advances while its producer still runs (T3 paper, section 4.1), and the
//! plain collective is gone from the program.
//!
//! ```text
//! before  %p = contraction %x, %w                      : 8x6
//!         %s = shard.reduce_scatter %p scatter_axis = 0 : 8x6 -> 2x6
//! after   %s = t3.track_and_trigger reduce_scatter dim = 0 (%x, %w) { %p = contraction …; t3.yield %p }
//! ```
//!
//! `policy=profitable` declines a pair that the closed-form bound of the schedule crate does not favour
//! (`unprofitable`) or whose chunks are smaller than a tile (`chunk-below-tile`); `never` declines every pair
//! (`fusion-off`). The machine's rates are options, so that this pass knows numbers and no system files.

use melior::ir::{
    Attribute, Block, BlockLike, Location, Region, RegionLike, ValueLike,
    operation::{OperationBuilder, OperationLike},
};
use t3c_ir::{
    Builder, Error, Generic, Op, TensorType, Val,
    attributes::{integer_attr, integers_attr, named, symbol_attr},
    ffi, walk,
};
use t3c_schedule::cost::{self, Bound, Rates};

use crate::{
    configure_address_space::{BLOCKS, TILE, block_extent},
    decline::Decline,
    find_pairs::{Pair, find_pairs},
    options,
    pass::{Pass, PassContext, PassError},
    remark::Kind,
};

/// Which pairs to fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every pair.
    Always,
    /// Those that the bound favours.
    Profitable,
    /// None.
    Never,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Policy::Always => "always",
            Policy::Profitable => "profitable",
            Policy::Never => "never",
        })
    }
}

impl std::str::FromStr for Policy {
    type Err = PassError;

    fn from_str(value: &str) -> Result<Self, PassError> {
        let policies = [Policy::Always, Policy::Profitable, Policy::Never];
        policies.into_iter().find(|policy| policy.to_string() == value).ok_or_else(|| PassError::Option {
            pass: Fuse::NAME,
            option: format!("policy={value}"),
            expected: "always, profitable or never".to_owned(),
        })
    }
}

/// The 16-bit rates of the T3 paper's 80-CU machine: 80 units × 1024 flop a cycle at 1.4 GHz, 1 TB/s of
/// memory, 150 GB/s and 500 ns a link; a trigger's and a launch's cost are those of the system file `t3-80cu`.
pub const RATES: Rates = Rates {
    flops_per_second: 114.7e12,
    memory_bytes_per_second: 1e12,
    link_bytes_per_second: 150e9,
    link_latency_seconds: 500e-9,
    trigger_seconds: 10e-9,
    launch_seconds: 3571e-9,
};

/// The pass.
#[derive(Clone, Debug)]
pub struct Fuse {
    /// Which pairs.
    pub policy: Policy,
    /// The machine.
    pub rates: Rates,
    /// Indices along the scattered dimension that a tile of the product covers.
    pub tile: u64,
}

impl Pass for Fuse {
    const NAME: &'static str = "t3-fuse";
    const SUMMARY: &'static str = "Fuse each pair into t3.track_and_trigger";
    const OPTIONS: &'static [&'static str] = &[
        "policy=profitable: always, profitable or never",
        "tile=128: rows or columns of a product's tile",
        "flops=114.7e12: floating-point operations a second",
        "memory=1e12: bytes a second of a device's memory",
        "link=150e9: bytes a second to the neighbour",
        "latency=500e-9: seconds along a link",
        "trigger=10e-9: seconds a trigger costs",
        "launch=3571e-9: seconds to start a kernel",
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self { policy: Policy::Profitable, rates: RATES, tile: TILE };
        let known = ["policy", "tile", "flops", "memory", "link", "latency", "trigger", "launch"];
        for (key, value) in options::parse(Self::NAME, text, &known)? {
            let seconds_or_rate = match key {
                "policy" => {
                    pass.policy = value.parse()?;
                    continue;
                }
                "tile" => {
                    pass.tile = options::positive(Self::NAME, key, value)?;
                    continue;
                }
                "flops" => &mut pass.rates.flops_per_second,
                "memory" => &mut pass.rates.memory_bytes_per_second,
                "link" => &mut pass.rates.link_bytes_per_second,
                "latency" => &mut pass.rates.link_latency_seconds,
                "trigger" => &mut pass.rates.trigger_seconds,
                _ => &mut pass.rates.launch_seconds,
            };
            *seconds_or_rate = options::positive(Self::NAME, key, value)?;
        }
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, cx: &PassContext) -> Result<(), PassError> {
        for candidate in find_pairs(module)? {
            let Ok(pair) = &candidate.found else { continue };
            let partial = TensorType::of(candidate.collective.input()?)?;
            let work = size(pair, &partial, self.tile)?;
            let bound = cost::bound(&work, &self.rates);
            let extent = partial.shape[pair.dimension];
            match self.why_not(extent, pair.group.devices, &bound) {
                Some(decline) => cx.missed_times(candidate.collective.op, &decline, candidate.times),
                None => {
                    let fused = fuse(candidate.collective.op, pair)?;
                    let (message, numbers) = summary(pair, &bound);
                    cx.remark(fused, Kind::Passed, "fused", message, candidate.times, numbers, None);
                }
            }
        }
        Ok(())
    }
}

impl Fuse {
    /// Why a pair whose scattered dimension has `extent` indices stays unfused.
    fn why_not(&self, extent: u64, devices: u32, bound: &Bound) -> Option<Decline> {
        let chunk = extent / u64::from(devices);
        let tile = self.tile.min(extent);
        match self.policy {
            Policy::Always => None,
            Policy::Never => Some(Decline::FusionOff),
            Policy::Profitable if chunk < tile => Some(Decline::ChunkBelowTile { chunk, tile }),
            Policy::Profitable if !bound.is_profitable() => Some(Decline::Unprofitable {
                sequential_us: 1e6 * bound.sequential,
                fused_us: 1e6 * bound.fused,
                trigger_us: 1e6 * (bound.fused - bound.producer.max(bound.transfer)),
            }),
            Policy::Profitable => None,
        }
    }
}

/// What the bound needs of a pair on one device.
fn size(pair: &Pair<'_, '_>, partial: &TensorType, tile: u64) -> Result<cost::Pair, PassError> {
    let bytes = |r#type: &TensorType| r#type.elements() * r#type.element.bytes();
    let (mut flops, mut producer_bytes) = (0, 0);
    for product in &pair.products {
        let generic = Generic::read(*product)?;
        flops += generic.flops();
        producer_bytes += bytes(&generic.result);
        for input in &generic.inputs {
            producer_bytes += bytes(&TensorType::of(*input)?);
        }
    }
    let devices = pair.group.devices;
    let chunk = (partial.shape[pair.dimension] / u64::from(devices)).max(1);
    // The chunk produced first triggers nothing; every other one fires once a block.
    let triggers = u64::from(devices - 1) * chunk.div_ceil(block_extent(chunk, tile, BLOCKS));
    Ok(cost::Pair { flops, producer_bytes, bytes: bytes(partial), devices, triggers })
}

fn summary(pair: &Pair<'_, '_>, bound: &Bound) -> (String, Vec<(&'static str, f64)>) {
    let (sequential, fused) = (1e6 * bound.sequential, 1e6 * bound.fused);
    let message = format!(
        "with reduce_scatter over {} devices ({} chunks along dimension {}; {sequential:.1} us before, {fused:.1} us after, by the bound)",
        pair.group.devices, pair.group.devices, pair.dimension
    );
    let numbers = vec![
        ("devices", f64::from(pair.group.devices)),
        ("products", pair.products.len() as f64),
        ("sequential_us", sequential),
        ("fused_us", fused),
    ];
    (message, numbers)
}

/// Moves the producer into a `t3.track_and_trigger` that stands in the collective's place.
fn fuse<'c, 'a>(collective: Op<'c, 'a>, pair: &Pair<'c, 'a>) -> Result<Op<'c, 'a>, PassError> {
    let context = ffi::context_of(collective);
    let (inputs, starts) = operands(pair)?;
    let (contribution, result) = (collective.operand(0)?, collective.result(0)?);
    let locations: Vec<Location<'c>> =
        pair.products.iter().chain([&collective]).map(|op| op.location()).collect();
    let location = ffi::fused_location(context, &locations);

    let arguments: Vec<_> = inputs.iter().map(|input| (input.r#type(), location)).collect();
    let block = Block::new(&arguments);
    let end = OperationBuilder::new("t3.yield", location).add_operands(&[ffi::shorten(contribution)]);
    block.append_operation(end.build()?);
    let region = Region::new();
    region.append_block(block);
    let parse = |text: &str| {
        Attribute::parse(context, text).ok_or_else(|| Error::Mlir(format!("cannot parse {text}")))
    };
    let axes: Vec<i64> = pair.group.axes.iter().map(|&axis| axis as i64).collect();
    let attributes = [
        named(context, "collective", parse("#t3<collective reduce_scatter>")?),
        named(context, "grid", symbol_attr(context, &pair.group.grid)),
        named(context, "axes", integers_attr(context, &axes)),
        named(context, "dim", integer_attr(context, pair.dimension as i64)),
    ];
    let place = Builder::before(collective)?.at(location);
    let types = [result.r#type()];
    let fused = place.op("t3.track_and_trigger", &inputs, &types, &attributes, vec![region])?;

    move_inside(fused, pair, &inputs)?;
    ffi::replace_all_uses(result.into(), fused.result(0)?.into());
    ffi::erase(collective);
    starts.into_iter().filter_map(ffi::value_owner).for_each(erase_unused);
    Ok(fused)
}

/// The distinct tensors that the products read, in order of first use, and what the operations start from.
#[allow(clippy::type_complexity)]
fn operands<'c, 'a>(pair: &Pair<'c, 'a>) -> Result<(Vec<Val<'c, 'a>>, Vec<Val<'c, 'a>>), PassError> {
    let (mut inputs, mut starts) = (Vec::new(), Vec::new());
    for product in &pair.products {
        let generic = Generic::read(*product)?;
        starts.push(generic.init);
        for input in generic.inputs {
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
    }
    for sum in &pair.sums {
        starts.push(Generic::read(*sum)?.init);
    }
    Ok((inputs, starts))
}

/// Moves products and additions before the region's terminator, in program order; each gets a start of its
/// own, and the products read the block's arguments.
fn move_inside<'c, 'a>(
    fused: Op<'c, 'a>,
    pair: &Pair<'c, 'a>,
    inputs: &[Val<'c, 'a>],
) -> Result<(), PassError> {
    let block = walk::body(fused).ok_or_else(|| PassError::at(fused, "has no body"))?;
    let terminator =
        walk::operations(block).pop().ok_or_else(|| PassError::at(fused, "has no terminator"))?;
    let source = fused.block().ok_or_else(|| PassError::at(fused, "sits in no block"))?;
    let mut members = walk::operations(source);
    members.retain(|op| pair.products.iter().chain(&pair.sums).any(|member| ffi::same_op(*member, *op)));
    for member in members {
        let generic = Generic::read(member)?;
        let place = Builder::before(terminator)?.at(member.location());
        let start = if generic.is_contraction() {
            place.fill(0.0, &generic.result)?
        } else {
            place.empty(&generic.result)?
        };
        for (number, input) in generic.inputs.iter().enumerate() {
            // The operands of additions are products, which move inside themselves.
            if let Some(index) = inputs.iter().position(|other| other == input) {
                ffi::set_operand(member, number, block.argument(index)?.into());
            }
        }
        ffi::set_operand(member, generic.inputs.len(), start);
        ffi::move_before(member, terminator);
    }
    Ok(())
}

/// Erases a fill, an empty tensor or a constant that nothing uses any more, and what only it used.
pub(crate) fn erase_unused(op: Op<'_, '_>) {
    let erasable = ["linalg.fill", "tensor.empty", "arith.constant"].iter().any(|name| walk::is(op, name));
    let used = op.results().any(|result| !ffi::uses(result.into()).is_empty());
    if erasable && !used {
        let operands: Vec<_> = op.operands().filter_map(ffi::value_owner).collect();
        ffi::erase(op);
        operands.into_iter().for_each(erase_unused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(sequential: f64, fused: f64) -> Bound {
        Bound { producer: 0.0, transfer: 0.0, sequential, fused }
    }

    #[test]
    fn the_policy_decides() {
        let with = |text: &str| Fuse::from_options(text).unwrap();
        assert_eq!(with("policy=always").why_not(4, 4, &bound(1.0, 2.0)), None);
        assert_eq!(with("policy=never").why_not(1024, 4, &bound(2.0, 1.0)), Some(Decline::FusionOff));
        assert_eq!(with("").why_not(1024, 4, &bound(2.0, 1.0)), None);
        assert_eq!(with("").why_not(1024, 4, &bound(1.0, 2.0)).unwrap().id(), "unprofitable");
        let below = Decline::ChunkBelowTile { chunk: 16, tile: 64 };
        assert_eq!(with("").why_not(64, 4, &bound(2.0, 1.0)), Some(below));
        assert_eq!(with("tile=16").why_not(64, 4, &bound(2.0, 1.0)), None);
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(Fuse::from_options("link=75e9").unwrap().rates.link_bytes_per_second, 75e9);
        let error = Fuse::from_options("policy=sometimes").unwrap_err().to_string();
        assert_eq!(error, "t3-fuse: option `policy=sometimes`: expected always, profitable or never");
        assert!(Fuse::from_options("tile=0").is_err());
    }
}
