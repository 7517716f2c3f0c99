//! A whole schedule on a system: its sub-layers under every policy, and the time of the program.

use std::collections::{BTreeMap, HashMap};

use t3c_schedule::{Program, Schedule};

use crate::{
    Error, Traffic,
    extract::{Found, Item, cost, items},
    memory::Arbitration,
    policy::{Policy, Run, Runner},
    report::{EndToEnd, PartReport, PolicyReport, Report, SCHEMA, SubLayerReport, geomean},
    system::System,
    trace::Trace,
    units::{Picoseconds, duration},
    workload::Workload,
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
        compute: 0,
        communication: 0,
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
    /// Picoseconds of local work outside of them.
    compute: u64,
    communication: u64,
    traces: Vec<Trace>,
}

impl Whole<'_> {
    fn program(&mut self, program: &Program, calls: u64, keeps_traces: bool) -> Result<(), Error> {
        for item in items(self.schedule, program) {
            match item {
                Item::SubLayer(found) => self.sub_layer(&found, calls, keeps_traces)?,
                Item::Compute(compute) => {
                    let (flops, (read, written)) = cost(program, compute);
                    let element = compute.reads.first().map(|&buffer| program.buffers[buffer].element);
                    let rate = match (&compute.work, element) {
                        (t3c_schedule::Work::Contraction(_) | t3c_schedule::Work::Unit { .. }, Some(e)) => {
                            self.system.matrix_flops_per_second(e)
                        }
                        _ => self.system.vector_flops_per_second(),
                    };
                    self.add_compute(calls, flops, rate, read.saturating_add(written));
                }
                Item::Rings(location, rings) => {
                    for ring in rings {
                        self.fits(location, &ring)?;
                        let outcome = self
                            .runner
                            .workload(&ring, Arbitration::RoundRobin, None)
                            .map_err(|error| error.at(location))?;
                        self.add_communication(calls, outcome.time);
                    }
                }
                Item::Send { bytes, hops } => {
                    let link = &self.system.link;
                    let latency = Picoseconds(link.latency.0.saturating_mul(hops));
                    self.add_communication(
                        calls,
                        duration(bytes.saturating_mul(hops), link.bandwidth) + latency,
                    );
                }
                Item::Copy(bytes) => self.add_compute(calls, 0, 1, bytes),
            }
        }
        Ok(())
    }

    /// The longer of arithmetic and traffic, with the launch.
    fn add_compute(&mut self, calls: u64, flops: u64, rate: u64, bytes: u64) {
        let time = duration(flops, rate).max(duration(bytes, self.system.memory.bandwidth));
        let time = time + self.system.compute.kernel_launch;
        self.compute = self.compute.saturating_add(calls.saturating_mul(time.0));
    }

    fn add_communication(&mut self, calls: u64, time: Picoseconds) {
        self.communication = self.communication.saturating_add(calls.saturating_mul(time.0));
    }

    fn fits(&self, location: &str, workload: &Workload) -> Result<(), Error> {
        let devices = match workload {
            Workload::Ring(_, divided) | Workload::Fused(_, _, divided) => divided.devices,
            Workload::Producer(_) => 1,
        };
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
        let Found { location, shape, layer } = found;
        self.fits(location, &Workload::Ring(crate::workload::Ring::AllGather, layer.divided))?;
        let output = &layer.producer.output;
        let tile = self.system.compute.tile_rows * self.system.compute.tile_columns;
        if output.elements() / tile > MOST_TILES {
            let what = format!("its output has more than {MOST_TILES} tiles, too many to simulate");
            return Err(Error::Unsupported { location: location.clone(), what });
        }
        let mut policies = BTreeMap::new();
        let mut speedup = BTreeMap::new();
        let mut sequential = Picoseconds(0);
        for &policy in &self.policies {
            let run = self.runner.sub_layer(layer, policy).map_err(|error| error.at(location))?;
            let sum = self.sublayer_ps.entry(policy).or_default();
            *sum = sum.saturating_add(calls.saturating_mul(run.time.0));
            if policy == Policy::Sequential {
                sequential = run.time;
            } else {
                speedup.insert(policy.name(), sequential.0 as f64 / run.time.0.max(1) as f64);
            }
            if keeps_traces {
                let name = format!("{location}: {}", policy.name());
                self.traces.push(Trace { name, lines: run.lines.clone() });
            }
            policies.insert(policy.name(), policy_report(&run));
        }
        self.sublayers.push(SubLayerReport {
            name: location.clone(),
            phase: self.phase.to_owned(),
            shape: shape.clone(),
            devices: layer.divided.devices,
            fused: layer.space.is_some(),
            calls,
            policies,
            speedup,
        });
        Ok(())
    }

    fn report(self) -> Report {
        let us = |picoseconds: u64| Picoseconds(picoseconds).as_us();
        let others = self.compute.saturating_add(self.communication);
        let total =
            |policy: &Policy| self.sublayer_ps.get(policy).copied().unwrap_or(0).saturating_add(others);
        let sequential = total(&Policy::Sequential);
        let mut end_to_end = EndToEnd {
            sublayers_us: us(sequential - others),
            compute_us: us(self.compute),
            communication_us: us(self.communication),
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
            traces: self.traces,
        }
    }
}

fn policy_report(run: &Run) -> PolicyReport {
    let traffic = run.parts.iter().fold(Traffic::default(), |sum, part| sum + part.outcome.traffic);
    PolicyReport {
        time_us: run.time.as_us(),
        dram_bytes: traffic.into(),
        parts: run
            .parts
            .iter()
            .map(|part| PartReport { name: part.name, time_us: part.outcome.time.as_us() })
            .collect(),
        blocks_fired: run.parts.iter().map(|part| part.outcome.fired).sum(),
        tracker_peak: run.parts.iter().map(|part| part.outcome.tracker_peak).max().unwrap_or(0),
    }
}
