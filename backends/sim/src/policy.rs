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
    system::System,
    units::Picoseconds,
    workload::{AddressSpace, Divided, Producer, Ring, Workload},
};

/// How producer and collective run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Policy {
    /// Producer, then reduce-scatter, then all-gather.
    #[serde(rename = "sequential")]
    Sequential,
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
    pub const ALL: [Policy; 5] =
        [Policy::Sequential, Policy::T3, Policy::T3Mca, Policy::IdealOverlap, Policy::IdealOverlapNmc];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Sequential => "sequential",
            Policy::T3 => "t3",
            Policy::T3Mca => "t3-mca",
            Policy::IdealOverlap => "ideal-overlap",
            Policy::IdealOverlapNmc => "ideal-overlap+nmc",
        }
    }
}

/// A producer with the collectives around its output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SubLayer {
    pub producer: Producer,
    /// The address space, where the schedule fuses.
    pub space: Option<AddressSpace>,
    pub divided: Divided,
    pub gathers: bool,
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
}

impl<'a> Runner<'a> {
    pub fn new(system: &'a System, records: bool, all_devices: bool) -> Self {
        Self { system, records, all_devices, workloads: HashMap::new(), runs: HashMap::new() }
    }

    /// Runs a workload and adds the launch of its kernel.
    pub fn workload(
        &mut self,
        workload: &Workload,
        arbitration: Arbitration,
        recorder: Option<&mut Recorder>,
    ) -> Result<Outcome, Error> {
        let mode = Mode { arbitration, all_devices: self.all_devices };
        let key = (workload.clone(), mode);
        if let Some(outcome) = self.workloads.get(&key)
            && recorder.is_none()
        {
            return Ok(outcome.clone());
        }
        let mut outcome = run(workload, self.system, mode, recorder)?;
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
        let producer = ("gemm", Workload::Producer(layer.producer.clone()));
        let reduce_scatter = ("reduce-scatter", Workload::Ring(Ring::ReduceScatter, layer.divided));
        let near_memory = ("reduce-scatter", Workload::Ring(Ring::ReduceScatterNearMemory, layer.divided));
        let gather = ("all-gather", Workload::Ring(Ring::AllGather, layer.divided));
        let is_alone = layer.divided.devices == 1;
        // Each group runs at once, the groups one after the other.
        let mut groups = match (policy, &layer.space) {
            _ if is_alone => vec![vec![producer]],
            (Policy::IdealOverlap, _) => vec![vec![producer, reduce_scatter]],
            (Policy::IdealOverlapNmc, _) => vec![vec![producer, near_memory]],
            (Policy::T3 | Policy::T3Mca, Some(space)) => {
                let fused = Workload::Fused(layer.producer.clone(), space.clone(), layer.divided);
                vec![vec![("track-and-trigger", fused)]]
            }
            _ => vec![vec![producer], vec![reduce_scatter]],
        };
        if layer.gathers && !is_alone {
            groups.push(vec![gather]);
        }
        let arbitration = match policy {
            Policy::T3Mca => Arbitration::ComputeFirst,
            _ => Arbitration::RoundRobin,
        };
        let mut run = Run { time: Picoseconds(0), parts: vec![], lines: vec![] };
        for group in groups {
            let mut longest = Picoseconds(0);
            for (name, workload) in group {
                let outcome = self.part(&mut run, name, &workload, arbitration)?;
                longest = longest.max(outcome.time);
                run.parts.push(Part { name, outcome });
            }
            run.time += longest;
        }
        Ok(run)
    }

    fn part(
        &mut self,
        run: &mut Run,
        name: &'static str,
        workload: &Workload,
        arbitration: Arbitration,
    ) -> Result<Outcome, Error> {
        if !self.records {
            return self.workload(workload, arbitration, None);
        }
        let launch = self.system.compute.kernel_launch;
        let mut recorder = Recorder::starting_at(run.time + launch);
        let outcome = self.workload(workload, arbitration, Some(&mut recorder))?;
        recorder.close();
        recorder.kernel(name, run.time, run.time + outcome.time);
        run.lines.append(&mut recorder.lines);
        Ok(outcome)
    }
}
