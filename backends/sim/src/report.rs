//! What a simulation reports.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Traffic, trace::Trace};

/// The version of the JSON form.
pub const SCHEMA: &str = "t3c.simulate/1";

/// The result of a simulation. Maps are keyed by the names of policies.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// The system.
    pub system: String,
    /// Devices of the grid.
    pub devices: u32,
    /// One a distinct fused step, or pair of producer and collective.
    pub sublayers: Vec<SubLayerReport>,
    /// Geometric mean of the sub-layers' speedups over `sequential`.
    pub geomean: BTreeMap<&'static str, f64>,
    /// The whole program.
    pub end_to_end: EndToEnd,
    /// Events that the machine handled, for measuring the simulator itself.
    #[serde(skip)]
    pub events: u64,
    /// Timelines, if they were asked for.
    #[serde(skip)]
    pub traces: Vec<Trace>,
}

/// One sub-layer: producer, reduce-scatter, all-gather.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct SubLayerReport {
    /// The place in the user's model.
    pub name: String,
    /// The phase that was simulated.
    pub phase: String,
    /// The producer's size a device, as `MxNxK`, summed products joined by `+`.
    pub shape: String,
    /// Devices of its group.
    pub devices: u32,
    /// Whether the schedule fuses it.
    pub fused: bool,
    /// How often the program runs it.
    pub calls: u64,
    /// Results by policy.
    pub policies: BTreeMap<&'static str, PolicyReport>,
    /// Speedup over `sequential` by policy.
    pub speedup: BTreeMap<&'static str, f64>,
}

/// One sub-layer under one policy.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct PolicyReport {
    /// Time of one run, in microseconds.
    pub time_us: f64,
    /// Bytes requested at one device's memory, by cause.
    pub dram_bytes: DramBytes,
    /// The kernels.
    pub parts: Vec<PartReport>,
    /// Bytes that one device put on its links.
    pub link_bytes: u64,
    /// Their share of what the links could have carried in the time: one way round a ring, one line to a switch,
    /// a link to each other device.
    pub link_utilisation: f64,
    /// Tracked blocks that fired on a device.
    pub blocks_fired: u64,
    /// The most output tiles that a device tracked at a time.
    pub tracker_peak: u64,
}

/// Memory traffic with its sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct DramBytes {
    /// By cause.
    #[serde(flatten)]
    pub by_cause: Traffic,
    /// All reads and writes.
    pub total: u64,
}

impl From<Traffic> for DramBytes {
    fn from(by_cause: Traffic) -> Self {
        Self { by_cause, total: by_cause.total() }
    }
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct PartReport {
    /// `gemm`, `reduce-scatter`, `all-gather`, `all-to-all`, `track-and-trigger`, `software-overlap` or `consume`.
    pub name: &'static str,
    /// Its time with its launch, in microseconds.
    pub time_us: f64,
}

/// The whole program, calls included, one step after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, schemars::JsonSchema)]
pub struct EndToEnd {
    /// Time by policy, in microseconds.
    pub time_us: BTreeMap<&'static str, f64>,
    /// Speedup over `sequential` by policy.
    pub speedup: BTreeMap<&'static str, f64>,
    /// Under `sequential`: time in sub-layers, in microseconds.
    pub sublayers_us: f64,
    /// Local work outside of sub-layers: products on the machine, the rest by a roofline.
    pub compute_us: f64,
    /// Collectives and transfers outside of sub-layers.
    pub communication_us: f64,
    /// Under `sequential`: what the time is spent on. `gemm`, `reduce-scatter`, `all-gather` and
    /// `all-to-all` are the sub-layers'.
    pub breakdown_us: BTreeMap<&'static str, f64>,
}

/// The geometric mean of positive numbers; `None` of none.
pub(crate) fn geomean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}
