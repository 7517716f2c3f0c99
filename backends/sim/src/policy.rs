//! The policies that are compared, each as runs of the machine.
//!
//! A sub-layer is a producer, the reduce-scatter of its output, and the all-gather that follows.
//! Every policy runs the same schedule; `t3` and `t3-mca` differ from `sequential` only where the
//! schedule holds a fused step.

use std::collections::HashMap;

use serde::Serialize;

use crate::{
    Error,
    machine::{Mode, Outcome, run},
    memory::Arbitration,
    recorder::{Line, Recorder},
    system::{System, Topology},
    units::Picoseconds,
    workload::{AddressSpace, Collective, Divided, Mover, Operation, Pattern, Producer, Workload},
};

/// How producer and collective run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Policy {
    /// Producer, then reduce-scatter, then all-gather.
    #[serde(rename = "sequential")]
    Sequential,
    /// Overlap in software: 8 compute units run the collective, chunk by chunk, beside the others'
    /// producer.
    #[serde(rename = "cu-split-8")]
    CuSplit8,
    /// The same with 16.
    #[serde(rename = "cu-split-16")]
    CuSplit16,
    /// Track-and-trigger; streams enter the memory queue in turn.
    #[serde(rename = "t3")]
    T3,
    /// Track-and-trigger; communication waits for a short queue.
    #[serde(rename = "t3-mca")]
    T3Mca,
    /// The longer of producer and reduce-scatter, each alone, then the all-gather.
    #[serde(rename = "ideal-overlap")]
    IdealOverlap,
    /// The same with the reduce-scatter on near-memory updates.
    #[serde(rename = "ideal-overlap+nmc")]
    IdealOverlapNmc,
}

impl Policy {
    /// All, in the order of reports.
    pub const ALL: [Policy; 7] = [
        Policy::Sequential,
        Policy::CuSplit8,
        Policy::CuSplit16,
        Policy::T3,
        Policy::T3Mca,
        Policy::IdealOverlap,
        Policy::IdealOverlapNmc,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Sequential => "sequential",
            Policy::CuSplit8 => "cu-split-8",
            Policy::CuSplit16 => "cu-split-16",
            Policy::T3 => "t3",
            Policy::T3Mca => "t3-mca",
            Policy::IdealOverlap => "ideal-overlap",
            Policy::IdealOverlapNmc => "ideal-overlap+nmc",
        }
    }

    /// The policy of that name.
    pub fn named(name: &str) -> Option<Policy> {
        Policy::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// Units that the collective takes from the producer.
    fn split(self) -> Option<u64> {
        match self {
            Policy::CuSplit8 => Some(8),
            Policy::CuSplit16 => Some(16),
            _ => None,
        }
    }
}

/// What a sub-layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// A producer whose output is reduced, and then gathered or not.
    Reduce { gathers: bool },
    /// A producer whose output every device sends in parts to every other.
    Exchange,
    /// A gather or exchange and its readers.
    Consume {
        operation: Operation,
        /// Whether the schedule lets readers begin before the gather ends.
        overlaps: bool,
    },
}

/// A producer with the collectives around its output, or readers with the gather before them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SubLayer {
    pub producer: Producer,
    /// The address space, where the schedule fuses.
    pub space: Option<AddressSpace>,
    pub divided: Divided,
    pub shape: Shape,
    pub pattern: Pattern,
}

impl SubLayer {
    /// Whether the schedule overlaps it.
    pub fn is_fused(&self) -> bool {
        self.space.is_some() || matches!(self.shape, Shape::Consume { overlaps: true, .. })
    }
}

/// One kernel of a policy's run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub name: &'static str,
    pub outcome: Outcome,
}

/// A sub-layer under a policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub time: Picoseconds,
    pub parts: Vec<Part>,
    pub lines: Vec<(usize, Line)>,
}

/// Runs workloads, each distinct one once.
pub(crate) struct Runner<'a> {
    pub system: &'a System,
    pub records: bool,
    pub all_devices: bool,
    workloads: HashMap<(Workload, Mode), Outcome>,
    runs: HashMap<(SubLayer, Policy), Run>,
    /// Events of all runs, without those that were remembered.
    pub events: u64,
}

/// A kernel: its name, what it runs, and the units that compute and that move.
type Kernel = (&'static str, Workload, (u64, u64));

impl<'a> Runner<'a> {
    pub fn new(system: &'a System, records: bool, all_devices: bool) -> Self {
        let (workloads, runs) = (HashMap::new(), HashMap::new());
        Self { system, records, all_devices, workloads, runs, events: 0 }
    }

    /// Runs a workload on all units and adds the launch of its kernel.
    pub fn workload(&mut self, workload: &Workload) -> Result<Outcome, Error> {
        let units = self.system.compute.units;
        self.on_units(workload, Arbitration::RoundRobin, (units, units), None)
    }

    pub fn on_units(
        &mut self,
        workload: &Workload,
        arbitration: Arbitration,
        (units, moving_units): (u64, u64),
        recorder: Option<&mut Recorder>,
    ) -> Result<Outcome, Error> {
        let mode = Mode { arbitration, all_devices: self.all_devices, units, moving_units };
        let key = (workload.clone(), mode);
        if let Some(outcome) = self.workloads.get(&key)
            && recorder.is_none()
        {
            return Ok(outcome.clone());
        }
        let mut outcome = run(workload, self.system, mode, recorder)?;
        self.events += outcome.events;
        outcome.time += self.system.compute.kernel_launch;
        self.workloads.insert(key, outcome.clone());
        Ok(outcome)
    }

    pub fn sub_layer(&mut self, layer: &SubLayer, policy: Policy) -> Result<Run, Error> {
        let key = (layer.clone(), policy);
        if let Some(run) = self.runs.get(&key) {
            return Ok(run.clone());
        }
        let run = self.run(layer, policy)?;
        self.runs.insert(key, run.clone());
        Ok(run)
    }

    fn run(&mut self, layer: &SubLayer, policy: Policy) -> Result<Run, Error> {
        let arbitration = match policy {
            Policy::T3Mca => Arbitration::ComputeFirst,
            _ => Arbitration::RoundRobin,
        };
        let mut run = Run { time: Picoseconds(0), parts: vec![], lines: vec![] };
        for group in self.groups(layer, policy) {
            let mut longest = Picoseconds(0);
            for kernel in group {
                let name = kernel.0;
                let outcome = self.part(&mut run, kernel, arbitration)?;
                longest = longest.max(outcome.time);
                run.parts.push(Part { name, outcome });
            }
            run.time += longest;
        }
        Ok(run)
    }

    /// The kernels of a policy: each group runs at once, the groups one after the other.
    fn groups(&self, layer: &SubLayer, policy: Policy) -> Vec<Vec<Kernel>> {
        let all = self.system.compute.units;
        let whole = (all, all);
        let collective = |name, operation| {
            let collective = Collective { pattern: self.pattern(layer.pattern, operation), operation };
            (name, Workload::Collective(collective, layer.divided), whole)
        };
        let producer = ("gemm", Workload::Producer(layer.producer.clone()), whole);
        if layer.divided.devices == 1 {
            return vec![vec![producer]];
        }
        // Software overlap leaves some units to the collective; track-and-trigger none.
        let split = policy.split().map(|moving| {
            let moving = moving.min(all - 1).max(1);
            (all.saturating_sub(moving).max(1), moving)
        });
        let is_overlapping = split.is_some() || matches!(policy, Policy::T3 | Policy::T3Mca);
        let gather = collective("all-gather", Operation::AllGather);
        let fused = layer.space.as_ref().filter(|_| is_overlapping).map(|space| {
            let (space, mover) = match split {
                Some(_) => (space.in_software(), Mover::Units),
                None => (space.clone(), Mover::Engine),
            };
            let workload = Workload::Fused(layer.producer.clone(), space, layer.divided, mover);
            let name = if split.is_some() { "software-overlap" } else { "track-and-trigger" };
            (name, workload, split.unwrap_or(whole))
        });
        match layer.shape {
            Shape::Consume { operation, overlaps } => {
                let mover = if split.is_some() { Mover::Units } else { Mover::Engine };
                let name = if operation == Operation::AllToAll { "all-to-all" } else { "all-gather" };
                let gather = collective(name, operation);
                let moved = Collective { pattern: self.pattern(layer.pattern, operation), operation };
                let consume = Workload::Consume(layer.producer.clone(), moved, layer.divided, mover);
                match policy {
                    Policy::IdealOverlap | Policy::IdealOverlapNmc => vec![vec![gather, producer]],
                    _ if overlaps && is_overlapping => {
                        vec![vec![("consume", consume, split.unwrap_or(whole))]]
                    }
                    _ => vec![vec![gather], vec![producer]],
                }
            }
            Shape::Exchange => {
                let exchange = collective("all-to-all", Operation::AllToAll);
                match (policy, fused) {
                    (Policy::IdealOverlap | Policy::IdealOverlapNmc, _) => vec![vec![producer, exchange]],
                    (_, Some(fused)) => vec![vec![fused]],
                    _ => vec![vec![producer], vec![exchange]],
                }
            }
            Shape::Reduce { gathers } => {
                let reduce_scatter = collective("reduce-scatter", Operation::ReduceScatter);
                let near_memory = collective("reduce-scatter", Operation::ReduceScatterNearMemory);
                let mut groups = match (policy, fused) {
                    (Policy::IdealOverlap, _) => vec![vec![producer, reduce_scatter]],
                    (Policy::IdealOverlapNmc, _) => vec![vec![producer, near_memory]],
                    (_, Some(fused)) => vec![vec![fused]],
                    _ => vec![vec![producer], vec![reduce_scatter]],
                };
                groups.extend(gathers.then(|| vec![gather]));
                groups
            }
        }
    }

    /// How an operation travels: a reducing switch does what it can.
    pub fn pattern(&self, pattern: Pattern, operation: Operation) -> Pattern {
        match (self.system.link.topology, operation) {
            (_, Operation::AllToAll) => Pattern::Direct,
            (Topology::ReducingSwitch, _) => Pattern::InNetwork,
            _ => pattern,
        }
    }

    fn part(
        &mut self,
        run: &mut Run,
        (name, workload, units): Kernel,
        arbitration: Arbitration,
    ) -> Result<Outcome, Error> {
        if !self.records {
            return self.on_units(&workload, arbitration, units, None);
        }
        let launch = self.system.compute.kernel_launch;
        let mut recorder = Recorder::starting_at(run.time + launch);
        let outcome = self.on_units(&workload, arbitration, units, Some(&mut recorder))?;
        recorder.close();
        recorder.kernel(name, run.time, run.time + outcome.time);
        run.lines.append(&mut recorder.lines);
        Ok(outcome)
    }
}
