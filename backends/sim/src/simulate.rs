//! A whole schedule on a system: its sub-layers under every policy, and the time of the program.

use std::collections::{BTreeMap, HashMap};

use t3c_schedule::{Compute, Program, Schedule, Work};

use crate::{
    Error, Traffic,
    extract::{Found, Item, cost, items, on_matrix, product},
    policy::{Policy, Run, Runner},
    report::{EndToEnd, PartReport, PolicyReport, Report, SCHEMA, SubLayerReport, geomean},
    system::{System, Topology},
    trace::Trace,
    units::{Picoseconds, duration},
    workload::{Collective, Output, Producer, Workload},
};

/// What to simulate, beside schedule and system.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The phase of the model that the schedule is, for the report.
    pub phase: String,
    /// The policies; `sequential` is always among them.
    pub policies: Vec<Policy>,
    /// Whether to keep timelines.
    pub trace: bool,
    /// Simulate every device even where one stands for all. Slower, same result.
    pub all_devices: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { phase: "prefill".to_owned(), policies: Policy::ALL.to_vec(), trace: false, all_devices: false }
    }
}

/// The largest number of tiles of one producer: beyond it, the model would take minutes.
const MOST_TILES: u64 = 4_000_000;

/// Simulates `schedule` on `system`.
///
/// A schedule whose trackers would wait for ever, or receive too much, is an error of the machine that
/// names them; one that the machine could run but that is no reduction, an error of the schedule.
pub fn simulate(schedule: &Schedule, system: &System, options: &Options) -> Result<Report, Error> {
    t3c_schedule::verify_structure(schedule)?;
    let report = run(schedule, system, options)?;
    t3c_schedule::verify_address_spaces(schedule)?;
    Ok(report)
}

fn run(schedule: &Schedule, system: &System, options: &Options) -> Result<Report, Error> {
    let mut policies = options.policies.clone();
    policies.push(Policy::Sequential);
    policies.sort_unstable();
    policies.dedup();
    let mut whole = Whole {
        schedule,
        system,
        policies,
        phase: &options.phase,
        runner: Runner::new(system, options.trace, options.all_devices),
        sublayers: Vec::new(),
        sublayer_ps: BTreeMap::new(),
        spent: BTreeMap::new(),
        traces: Vec::new(),
    };
    let calls = calls(schedule);
    for (program, calls) in schedule.programs.iter().zip(calls).filter(|(_, calls)| *calls > 0) {
        whole.program(program, calls, options.trace)?;
    }
    Ok(whole.report())
}

/// How often each program runs.
fn calls(schedule: &Schedule) -> Vec<u64> {
    fn visit(schedule: &Schedule, program: usize, times: u64, calls: &mut [u64], depth: usize) {
        calls[program] = calls[program].saturating_add(times);
        // Deeper than there are programs is a recursion; a verified schedule has none.
        if depth == 0 {
            return;
        }
        let mut callees: HashMap<usize, u64> = HashMap::new();
        for step in &schedule.programs[program].steps {
            if let t3c_schedule::StepKind::Call { program: callee, .. } = step.kind {
                *callees.entry(callee).or_default() += 1;
            }
        }
        for (callee, count) in callees {
            visit(schedule, callee, times.saturating_mul(count), calls, depth - 1);
        }
    }
    let mut calls = vec![0; schedule.programs.len()];
    if schedule.entry < calls.len() {
        visit(schedule, schedule.entry, 1, &mut calls, schedule.programs.len());
    }
    calls
}

struct Whole<'a> {
    schedule: &'a Schedule,
    system: &'a System,
    policies: Vec<Policy>,
    phase: &'a str,
    runner: Runner<'a>,
    sublayers: Vec<SubLayerReport>,
    /// Time of all sub-layers, by policy.
    sublayer_ps: BTreeMap<Policy, u64>,
    /// Picoseconds under `sequential`, by what they are spent on.
    spent: BTreeMap<Spent, u64>,
    traces: Vec<Trace>,
}

impl Whole<'_> {
    fn program(&mut self, program: &Program, calls: u64, keeps_traces: bool) -> Result<(), Error> {
        for item in items(self.schedule, program) {
            match item {
                Item::SubLayer(found) => self.sub_layer(&found, calls, keeps_traces)?,
                Item::Compute(compute) => self.compute(program, compute, calls)?,
                Item::Collectives(location, pattern, operations, divided) => {
                    self.fits(location, divided.devices)?;
                    for operation in operations {
                        let collective =
                            Collective { pattern: self.runner.pattern(pattern, operation), operation };
                        let workload = Workload::Collective(collective, divided);
                        let outcome = self.runner.workload(&workload).map_err(|error| error.at(location))?;
                        self.spend(Spent::OtherCommunication, calls, outcome.time);
                    }
                }
                Item::Send { bytes, hops } => {
                    let link = &self.system.link;
                    let latency = Picoseconds(link.latency.0.saturating_mul(hops));
                    let time = duration(bytes.saturating_mul(hops), link.bandwidth) + latency;
                    self.spend(Spent::OtherCommunication, calls, time);
                }
                Item::Copy(bytes) => {
                    let time = self.memory_time(bytes) + self.system.compute.kernel_launch;
                    self.spend(Spent::Elementwise, calls, time);
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self, on: Spent, calls: u64, time: Picoseconds) {
        let sum = self.spent.entry(on).or_default();
        *sum = sum.saturating_add(calls.saturating_mul(time.0));
    }

    /// Local work: products on the machine, the rest by a roofline of what measured kernels reach.
    fn compute(&mut self, program: &Program, compute: &Compute, calls: u64) -> Result<(), Error> {
        if let Some(producer) = product(program, compute).filter(|producer| self.is_small_enough(producer)) {
            let outcome = self.runner.workload(&Workload::Producer(producer))?;
            self.spend(Spent::OtherProducts, calls, outcome.time);
            return Ok(());
        }
        let (flops, (read, written)) = cost(program, compute);
        let (on, rate) = match (&compute.work, on_matrix(program, compute)) {
            (Work::Unit { name, .. }, Some(element)) => {
                let peak = self.system.matrix_flops_per_second(element);
                let percent = self.system.efficiency.attention_percent;
                match name.contains("attention") {
                    true => (Spent::Attention, peak.saturating_mul(percent) / 100),
                    false => (Spent::OtherProducts, peak),
                }
            }
            _ => (Spent::Elementwise, self.system.vector_flops_per_second()),
        };
        let memory = self.memory_time(read.saturating_add(written));
        let time = duration(flops, rate).max(memory) + self.system.compute.kernel_launch;
        self.spend(on, calls, time);
        Ok(())
    }

    fn memory_time(&self, bytes: u64) -> Picoseconds {
        let percent = self.system.efficiency.memory_percent;
        duration(bytes.saturating_mul(100), self.system.memory.bandwidth.saturating_mul(percent))
    }

    fn is_small_enough(&self, producer: &Producer) -> bool {
        let compute = &self.system.compute;
        let Output { columns, layers, .. } = producer.output;
        let tiles = producer
            .output
            .rows()
            .div_ceil(compute.tile_rows)
            .saturating_mul(columns.div_ceil(compute.tile_columns));
        tiles.saturating_mul(layers) <= MOST_TILES
    }

    fn fits(&self, location: &str, devices: u32) -> Result<(), Error> {
        if devices > self.system.devices {
            return Err(Error::TooManyDevices {
                location: location.to_owned(),
                needed: devices,
                system: self.system.name.clone(),
                available: self.system.devices,
            });
        }
        Ok(())
    }

    fn sub_layer(&mut self, found: &Found, calls: u64, keeps_traces: bool) -> Result<(), Error> {
        let Found { location, shape, layer, .. } = found;
        self.fits(location, layer.divided.devices)?;
        if !self.is_small_enough(&layer.producer) {
            let what = format!("its output has more than {MOST_TILES} tiles, too many to simulate");
            return Err(Error::Unsupported { location: location.clone(), what });
        }
        let mut policies = BTreeMap::new();
        let mut speedup = BTreeMap::new();
        let mut sequential = Picoseconds(0);
        for policy in self.policies.clone() {
            let run = self.runner.sub_layer(layer, policy).map_err(|error| error.at(location))?;
            let sum = self.sublayer_ps.entry(policy).or_default();
            *sum = sum.saturating_add(calls.saturating_mul(run.time.0));
            if policy == Policy::Sequential {
                sequential = run.time;
                for part in &run.parts {
                    self.spend(Spent::part(part.name), calls, part.outcome.time);
                }
            } else {
                speedup.insert(policy.name(), sequential.0 as f64 / run.time.0.max(1) as f64);
            }
            if keeps_traces {
                let name = format!("{location}: {}", policy.name());
                self.traces.push(Trace { name, lines: run.lines.clone() });
            }
            policies.insert(policy.name(), policy_report(&run, self.system, layer.divided.devices));
        }
        self.sublayers.push(SubLayerReport {
            name: location.clone(),
            phase: self.phase.to_owned(),
            shape: shape.clone(),
            devices: layer.divided.devices,
            fused: layer.is_fused(),
            calls,
            policies,
            speedup,
        });
        Ok(())
    }

    fn report(self) -> Report {
        let us = |picoseconds: u64| Picoseconds(picoseconds).as_us();
        let spent = |which: fn(&Spent) -> bool| {
            self.spent
                .iter()
                .filter(|(on, _)| which(on))
                .fold(0u64, |sum, (_, time)| sum.saturating_add(*time))
        };
        let compute = spent(|on| matches!(on, Spent::OtherProducts | Spent::Attention | Spent::Elementwise));
        let communication = spent(|on| *on == Spent::OtherCommunication);
        let others = compute.saturating_add(communication);
        let total =
            |policy: &Policy| self.sublayer_ps.get(policy).copied().unwrap_or(0).saturating_add(others);
        let sequential = total(&Policy::Sequential);
        let mut end_to_end = EndToEnd {
            sublayers_us: us(sequential - others),
            compute_us: us(compute),
            communication_us: us(communication),
            breakdown_us: self.spent.iter().map(|(on, time)| (on.name(), us(*time))).collect(),
            ..EndToEnd::default()
        };
        let mut means = BTreeMap::new();
        for policy in &self.policies {
            let name = policy.name();
            end_to_end.time_us.insert(name, us(total(policy)));
            if *policy == Policy::Sequential {
                continue;
            }
            if total(policy) > 0 {
                end_to_end.speedup.insert(name, sequential as f64 / total(policy) as f64);
            }
            let speedups = self.sublayers.iter().filter_map(|layer| layer.speedup.get(name).copied());
            if let Some(mean) = geomean(speedups) {
                means.insert(name, mean);
            }
        }
        Report {
            schema: SCHEMA,
            system: self.system.name.clone(),
            devices: self.schedule.grid.devices(),
            sublayers: self.sublayers,
            geomean: means,
            end_to_end,
            events: self.runner.events,
            traces: self.traces,
        }
    }
}

/// What time is spent on, as the paper's break-down has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spent {
    Products,
    ReduceScatter,
    AllGather,
    AllToAll,
    OtherProducts,
    Attention,
    Elementwise,
    OtherCommunication,
}

impl Spent {
    fn part(name: &str) -> Self {
        match name {
            "reduce-scatter" => Spent::ReduceScatter,
            "all-gather" => Spent::AllGather,
            "all-to-all" => Spent::AllToAll,
            _ => Spent::Products,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Spent::Products => "gemm",
            Spent::ReduceScatter => "reduce-scatter",
            Spent::AllGather => "all-gather",
            Spent::AllToAll => "all-to-all",
            Spent::OtherProducts => "other-gemm",
            Spent::Attention => "attention",
            Spent::Elementwise => "elementwise",
            Spent::OtherCommunication => "other-communication",
        }
    }
}

fn policy_report(run: &Run, system: &System, devices: u32) -> PolicyReport {
    let traffic = run.parts.iter().fold(Traffic::default(), |sum, part| sum + part.outcome.traffic);
    let sent: u64 = run.parts.iter().map(|part| part.outcome.sent).sum();
    // A ring collective goes one way round.
    let links = match system.link.topology {
        Topology::FullyConnected => f64::from(devices.saturating_sub(1).max(1)),
        Topology::Ring | Topology::Switch | Topology::ReducingSwitch => 1.0,
    };
    let possible = run.time.as_seconds() * system.link.bandwidth as f64 * links;
    PolicyReport {
        time_us: run.time.as_us(),
        dram_bytes: traffic.into(),
        parts: run
            .parts
            .iter()
            .map(|part| PartReport { name: part.name, time_us: part.outcome.time.as_us() })
            .collect(),
        link_bytes: sent,
        link_utilisation: if possible > 0.0 { sent as f64 / possible } else { 0.0 },
        blocks_fired: run.parts.iter().map(|part| part.outcome.fired).sum(),
        tracker_peak: run.parts.iter().map(|part| part.outcome.tracker_peak).max().unwrap_or(0),
    }
}
