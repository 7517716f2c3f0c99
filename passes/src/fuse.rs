//! Fuses pairs: a producer and its collective into `t3.track_and_trigger`, a gather and its readers into
//! `t3.consume`.
//!
//! Why: inside the op the collective advances while its other half still runs (T3 paper, section 4.1; for readers
//! section 7.2), and the plain collective is gone from the program.
//!
//! ```text
//! before  %p = contraction %x, %w                      : 8x6
//!         %s = shard.reduce_scatter %p scatter_axis = 0 : 8x6 -> 2x6
//! after   %s = t3.track_and_trigger reduce_scatter dim = 0 (%x, %w) { %p = contraction …; t3.yield %p }
//!
//! before  %g = shard.all_gather %t gather_axis = 0     : 2x4 -> 8x4
//!         %q = contraction %g, %wq
//!         %k = contraction %g, %wk
//! after   %q, %k = t3.consume all_gather dim = 0 (%t, %wq, %wk) { ^(%g, …): two contractions; t3.yield %q, %k }
//! ```
//!
//! Needs: one program a device (after `t3-shard`, `t3-split-all-reduce`). Guarantees: the region computes what the
//! operations before it computed, in their order, so that fused equals unfused bit for bit; each pair that
//! `t3-find-pairs` reports gets exactly one remark, passed or missed.
//!
//! `policy=profitable` declines a pair that the closed-form bound of the schedule crate does not favour
//! (`unprofitable`) or whose chunks are smaller than a tile (`chunk-below-tile`); `never` declines every pair
//! (`fusion-off`). The machine's rates are options, so that this pass knows numbers and no system files. A producer between two collectives that could each be fused with it goes to the reducing one
//! (`fused-elsewhere`).

use std::collections::HashSet;

use melior::ir::operation::OperationLike;
use t3c_ir::{Blk, Op, TensorType, Val, ffi, function::functions, views::Collective};
use t3c_schedule::{
    CollectiveKind,
    cost::{self, Bound, Rates},
};

use crate::{
    calls::call_counts,
    configure_address_space::{BLOCKS, TILE, block_extent},
    decline::Decline,
    find_pairs::{Outcome, Pair, Side, collectives, examine, flops, moved_bytes},
    flow::Flow,
    options,
    pass::{Note, Pass, PassContext, PassError},
    producers::bytes,
    region,
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
    const SUMMARY: &'static str = "Fuse each pair into t3.track_and_trigger or t3.consume";
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
        let counts = call_counts(module)?;
        for function in functions(module) {
            let Some(body) = function.body() else { continue };
            let times = counts.get(&function.name()).copied().unwrap_or(0);
            self.block(module, body, times, cx)?;
        }
        Ok(())
    }
}

impl Fuse {
    /// The pairs of one function, the reducing ones first: what two collectives could take goes to them.
    fn block<'c, 'a>(
        &self,
        module: Op<'c, 'a>,
        block: Blk<'c, 'a>,
        times: u64,
        cx: &PassContext,
    ) -> Result<(), PassError> {
        let mut flow = Flow::of(module, block);
        let mut pairs: Vec<Collective<'c, 'a>> = Vec::new();
        for collective in collectives(&flow) {
            if matches!(examine(&flow, collective)?, Outcome::Pair(_)) {
                pairs.push(collective);
            }
        }
        pairs.sort_by_key(|collective| match collective.kind {
            CollectiveKind::ReduceScatter => 0,
            CollectiveKind::AllToAll => 1,
            _ => 2,
        });
        for collective in pairs {
            let pair = match examine(&flow, collective)? {
                Outcome::Pair(pair) => pair,
                outcome => {
                    let decline = match outcome {
                        Outcome::Declined(decline) => decline,
                        _ => Decline::FusedElsewhere { other: "another pair".to_owned() },
                    };
                    cx.note(collective.op, Note::missed(&decline).times(times));
                    continue;
                }
            };
            let name = pair.name();
            let sizes = Sizes::of(&flow, collective, &pair, self.tile)?;
            let bound = sizes.bound(&pair, &self.rates);
            match self.why_not(&sizes, &bound) {
                Some(decline) => {
                    cx.note(collective.op, Note::missed(&decline).times(times).pair(name));
                }
                None => {
                    let (message, numbers) = summary(&pair, &sizes, &bound);
                    let fused = region::fuse(&flow, collective, &pair)?;
                    let note = Note::passed("fused", message).numbers(numbers);
                    cx.note(fused, note.times(times).pair(name));
                    // A fusion moves operations and may have taken the other half of a later pair.
                    flow = Flow::of(module, block);
                }
            }
        }
        Ok(())
    }

    /// Why a pair stays unfused.
    fn why_not(&self, sizes: &Sizes, bound: &Bound) -> Option<Decline> {
        let tile = self.tile.min(sizes.extent);
        match self.policy {
            Policy::Always => None,
            Policy::Never => Some(Decline::FusionOff),
            Policy::Profitable if sizes.chunk < tile => {
                Some(Decline::ChunkBelowTile { chunk: sizes.chunk, tile })
            }
            Policy::Profitable if !bound.is_profitable() => Some(Decline::Unprofitable {
                sequential_us: 1e6 * bound.sequential,
                fused_us: 1e6 * bound.fused,
                trigger_us: 1e6 * (bound.fused - bound.producer.max(bound.transfer)),
            }),
            Policy::Profitable => None,
        }
    }
}

/// The sizes of a pair on one device.
struct Sizes {
    /// What the bound needs.
    pair: cost::Pair,
    /// Indices along the dimension of chunks.
    extent: u64,
    /// Indices of a chunk.
    chunk: u64,
}

impl Sizes {
    fn of<'c, 'a>(
        flow: &Flow<'c, 'a>,
        collective: Collective<'c, 'a>,
        pair: &Pair<'c, 'a>,
        tile: u64,
    ) -> Result<Self, PassError> {
        let (input, result) = (collective.input()?, collective.result()?);
        let (whole, dimension) = match pair.side {
            Side::Producer(_) => (input, pair.dimension),
            Side::Readers(_) => (result, pair.concatenate.unwrap_or(pair.dimension)),
        };
        let devices = pair.group.devices;
        let extent = TensorType::of(whole)?.shape[dimension];
        let chunk = extent / u64::from(devices);
        let block = block_extent(chunk, tile, BLOCKS);
        // The chunk produced first triggers nothing, nor does a device's own part; every other fires once a block.
        let triggers = u64::from(devices - 1) * chunk.max(1).div_ceil(block);
        let members = pair.members();
        let inside: HashSet<usize> = members.iter().map(|member| ffi::op_key(*member)).collect();
        let is_inside = |value: &Val<'c, 'a>| {
            flow.owner(*value).is_some_and(|owner| inside.contains(&ffi::op_key(owner)))
        };
        let mut read: Vec<Val<'c, 'a>> = Vec::new();
        for value in members.iter().flat_map(|member| flow.reads(*member)) {
            if !is_inside(&value) && !read.contains(&value) {
                read.push(value);
            }
        }
        let made = members.iter().filter_map(|member| member.result(0).ok()).map(Into::into);
        let written = made.filter(|value: &Val<'c, 'a>| {
            flow.users(*value).iter().any(|user| !inside.contains(&ffi::op_key(*user)))
        });
        let producer_bytes = read.into_iter().map(bytes).sum::<u64>() + written.map(bytes).sum::<u64>();
        let flops = members.iter().map(|member| flops(flow.module, *member)).sum();
        let bytes = moved_bytes(collective.op, whole);
        Ok(Self { pair: cost::Pair { flops, producer_bytes, bytes, devices, triggers }, extent, chunk })
    }

    fn bound(&self, pair: &Pair<'_, '_>, rates: &Rates) -> Bound {
        match pair.side {
            Side::Producer(_) => cost::producer_bound(pair.kind, &self.pair, rates),
            Side::Readers(_) => cost::reader_bound(pair.kind, &self.pair, rates),
        }
    }
}

fn summary(pair: &Pair<'_, '_>, sizes: &Sizes, bound: &Bound) -> (String, Vec<(&'static str, f64)>) {
    let (sequential, fused) = (1e6 * bound.sequential, 1e6 * bound.fused);
    let (devices, dimension) = (pair.group.devices, pair.dimension);
    let message = format!(
        "with {} over {devices} devices ({devices} chunks along dimension {dimension}; {sequential:.1} us before, {fused:.1} us after, by the bound)",
        pair.kind
    );
    let work = match pair.side {
        Side::Producer(_) => "producers",
        Side::Readers(_) => "readers",
    };
    let numbers = vec![
        ("devices", f64::from(devices)),
        (work, pair.leaves().len() as f64),
        ("bytes", sizes.pair.bytes as f64),
        ("sequential_us", sequential),
        ("fused_us", fused),
    ];
    (message, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(sequential: f64, fused: f64) -> Bound {
        Bound { producer: 0.0, transfer: 0.0, sequential, fused }
    }

    fn sizes(extent: u64) -> Sizes {
        let pair = cost::Pair { flops: 0, producer_bytes: 0, bytes: 0, devices: 4, triggers: 0 };
        Sizes { pair, extent, chunk: extent / 4 }
    }

    #[test]
    fn the_policy_decides() {
        let with = |text: &str| Fuse::from_options(text).unwrap();
        assert_eq!(with("policy=always").why_not(&sizes(4), &bound(1.0, 2.0)), None);
        assert_eq!(with("policy=never").why_not(&sizes(1024), &bound(2.0, 1.0)), Some(Decline::FusionOff));
        assert_eq!(with("").why_not(&sizes(1024), &bound(2.0, 1.0)), None);
        assert_eq!(with("").why_not(&sizes(1024), &bound(1.0, 2.0)).unwrap().id(), "unprofitable");
        let below = Decline::ChunkBelowTile { chunk: 16, tile: 64 };
        assert_eq!(with("").why_not(&sizes(64), &bound(2.0, 1.0)), Some(below));
        assert_eq!(with("tile=16").why_not(&sizes(64), &bound(2.0, 1.0)), None);
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(Fuse::from_options("link=75e9").unwrap().rates.link_bytes_per_second, 75e9);
        let error = Fuse::from_options("policy=sometimes").unwrap_err().to_string();
        assert_eq!(error, "t3-fuse: option `policy=sometimes`: expected always, profitable or never");
        assert!(Fuse::from_options("tile=0").is_err());
    }
}
