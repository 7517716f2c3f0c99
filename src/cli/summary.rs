//! What `t3c compile` prints of a program.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use t3c_passes::Remark;
use t3c_schedule::{Compute, Consume, Fused, Schedule, StepKind, Work};

use super::{
    options::Choice,
    pairs::{Group, folded, groups},
    simulate::in_order,
};
use crate::{CpuOptions, Error, Program, System, program};

/// The version of the JSON form.
pub const SCHEMA: &str = "t3c.compile/1";

/// A program in short.
#[derive(Debug)]
pub struct Summary<'p> {
    totals: program::Summary,
    parameters: u64,
    choices: Vec<Choice>,
    remarks: &'p [Remark],
    pairs: Vec<Group>,
    address_spaces: Vec<AddressSpace>,
    prediction: Result<Prediction, String>,
    native: Option<Native>,
}

/// The configuration of one distinct fused operation.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct AddressSpace {
    /// Where it stands first in the model.
    pub location: String,
    /// Places of the program that share it.
    pub places: u64,
    /// Whether the products feed the collective or read what it gathers.
    pub direction: Direction,
    /// The products, as MxNxK a device.
    pub producers: Vec<String>,
    /// The collective and its devices.
    pub collective: String,
    /// Devices of the group.
    pub devices: u32,
    /// The whole partial value; empty for readers.
    pub shape: Vec<u64>,
    /// The dimension that is divided into chunks.
    pub dimension: usize,
    /// Indices along it that one trigger moves.
    pub block: u64,
    /// One line a chunk, in production order; `d` is the device.
    pub chunks: Vec<String>,
}

/// On which side of its collective a pair computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Before it.
    Producers,
    /// After it.
    Readers,
}

/// Speedups over `sequential` by policy.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Prediction {
    /// Geometric mean over the sub-layers.
    pub geomean: BTreeMap<&'static str, f64>,
    /// The whole program.
    pub end_to_end: BTreeMap<&'static str, f64>,
}

/// What compiling for the CPU took.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Native {
    /// Seconds.
    pub compile_seconds: f64,
    /// Bytes of temporaries a device.
    pub arena_bytes: usize,
}

impl<'p> Summary<'p> {
    /// Simulates the program and, where `is_native`, compiles it.
    pub fn new(
        program: &'p Program,
        choices: Vec<Choice>,
        system: &System,
        is_native: bool,
    ) -> Result<Self, Error> {
        let prediction = program.simulate(system).map_err(|error| error.to_string());
        let native = if is_native { Some(Native::of(program)?) } else { None };
        Ok(Self {
            totals: program.summary(),
            parameters: program.info().parameter_count(),
            choices,
            remarks: program.remarks(),
            pairs: groups(program.remarks()),
            address_spaces: address_spaces(program.schedule()),
            prediction: prediction
                .map(|report| Prediction { geomean: report.geomean, end_to_end: report.end_to_end.speedup }),
            native,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let choices: Vec<String> = self.choices.iter().map(Choice::to_string).collect();
        let pairs = &self.totals.pairs;
        let mut text = format!("{}: {}\n", self.totals.model, choices.join(", "));
        text += &format!("layers: {}, parameters: {}\n", self.totals.layers, self.parameters);
        text +=
            &format!("pairs: {} found, {} fused, {} declined\n", pairs.found, pairs.fused, pairs.declined);
        text.extend(self.pairs.iter().map(Group::text));
        for space in &self.address_spaces {
            text += &space.text();
        }
        text += &match &self.prediction {
            Err(problem) => format!("predicted speedup: none ({problem})\n"),
            Ok(prediction) if prediction.geomean.is_empty() => {
                "predicted speedup: none (no product meets a collective)\n".to_owned()
            }
            Ok(prediction) => format!(
                "predicted speedup over sequential: sub-layers {}; end to end {}\n",
                speedups(&prediction.geomean),
                speedups(&prediction.end_to_end)
            ),
        };
        if let Some(native) = self.native {
            let arena = super::output::bytes(native.arena_bytes as u64);
            text += &format!(
                "native code: compiled in {:.2} s, {arena} of temporaries a device\n",
                native.compile_seconds
            );
        }
        text
    }

    /// For programs.
    pub fn report(&self) -> Report<'_> {
        let choice = |choice: &Choice| {
            let number = choice.value.parse::<u64>();
            (choice.name, number.map_or_else(|_| choice.value.clone().into(), Value::from))
        };
        Report {
            schema: SCHEMA,
            model: &self.totals.model,
            layers: self.totals.layers,
            parameters: self.parameters,
            pairs: self.totals.pairs,
            pair_groups: &self.pairs,
            address_spaces: &self.address_spaces,
            predicted_speedup: self.prediction.as_ref().ok(),
            remarks: self.remarks,
            native: self.native,
            choices: self.choices.iter().map(choice).collect(),
        }
    }
}

/// The JSON form, `t3c.compile/1`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report<'s> {
    /// Always `t3c.compile/1`.
    pub schema: &'static str,
    /// The model's name.
    pub model: &'s str,
    /// Repeated layers.
    pub layers: u64,
    /// Elements of all parameters.
    pub parameters: u64,
    /// Pairs over all layers.
    pub pairs: program::Pairs,
    /// What each pair is and what became of it.
    pub pair_groups: &'s [Group],
    /// The configuration of each distinct fused operation.
    pub address_spaces: &'s [AddressSpace],
    /// What the simulator predicts; null where it cannot.
    pub predicted_speedup: Option<&'s Prediction>,
    /// Why each pair was fused or not, with its place in the model.
    pub remarks: &'s [Remark],
    /// With `--target cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<Native>,
    /// Phase, sizes, degrees, target and system.
    #[serde(flatten)]
    pub choices: BTreeMap<&'static str, Value>,
}

impl Native {
    fn of(program: &Program) -> Result<Self, Error> {
        let start = std::time::Instant::now();
        let executable = program.compile_cpu(CpuOptions::default())?;
        Ok(Self { compile_seconds: start.elapsed().as_secs_f64(), arena_bytes: executable.arena_bytes() })
    }
}

fn speedups(by_policy: &BTreeMap<&'static str, f64>) -> String {
    let others = in_order(by_policy).into_iter().filter(|(policy, _)| *policy != "sequential");
    others.map(|(policy, speedup)| format!("{policy} {speedup:.3}x")).collect::<Vec<_>>().join(", ")
}

fn shape_of(compute: &Compute) -> String {
    match &compute.work {
        Work::Contraction(contraction) => {
            let shape = contraction.gemm_shape();
            format!("{}x{}x{}", shape.m, shape.n, shape.k)
        }
        Work::Unit { name, .. } => name.clone(),
        Work::Loops { .. } => "loops".to_owned(),
        Work::Copy => "copy".to_owned(),
    }
}

/// `reduce_scatter over tp`.
fn collective_text(schedule: &Schedule, collective: &t3c_schedule::Collective) -> String {
    let axes = collective.axes.iter().filter_map(|&axis| schedule.grid.axes.get(axis));
    let axes: Vec<&str> = axes.map(|axis| axis.name.as_str()).collect();
    format!("{} over {}", collective.kind, axes.join(","))
}

impl AddressSpace {
    fn fused(schedule: &Schedule, fused: &Fused, location: &str) -> Self {
        Self {
            location: location.to_owned(),
            places: 1,
            direction: Direction::Producers,
            producers: fused.producers.iter().map(shape_of).collect(),
            collective: collective_text(schedule, &fused.collective),
            devices: schedule.grid.group_size(&fused.collective.axes),
            shape: fused.shape.clone(),
            dimension: fused.dimension,
            block: fused.block,
            chunks: fused.chunks.iter().map(ToString::to_string).collect(),
        }
    }

    fn consumed(schedule: &Schedule, consume: &Consume, location: &str) -> Self {
        let is_product = |reader: &&Compute| matches!(reader.work, Work::Contraction(_) | Work::Unit { .. });
        Self {
            location: location.to_owned(),
            places: 1,
            direction: Direction::Readers,
            producers: consume.consumers.iter().filter(is_product).map(shape_of).collect(),
            collective: collective_text(schedule, &consume.collective),
            devices: schedule.grid.group_size(&consume.collective.axes),
            shape: Vec::new(),
            dimension: consume.dimension,
            block: consume.block,
            chunks: consume.arrivals.iter().map(ToString::to_string).collect(),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        let unplaced = |space: &Self| Self { location: String::new(), places: 0, ..space.clone() };
        unplaced(self) == unplaced(other)
    }

    fn text(&self) -> String {
        let shape: Vec<String> = self.shape.iter().map(u64::to_string).collect();
        let works = self.producers.join(" + ");
        let what = match self.direction {
            Direction::Producers => format!("fused: {works} {} of {}", self.collective, shape.join("x")),
            Direction::Readers => format!("consumed: {} by {works}", self.collective),
        };
        let more = if self.places > 1 { format!(" and {} more", self.places - 1) } else { String::new() };
        let mut text = format!(
            "{what} along {}, {} devices, blocks of {} ({}{more})\n",
            self.dimension, self.devices, self.block, self.location,
        );
        text.extend(folded(&self.chunks).iter().map(|chunk| format!("  {chunk}\n")));
        text
    }
}

fn address_spaces(schedule: &Schedule) -> Vec<AddressSpace> {
    let mut distinct: Vec<AddressSpace> = Vec::new();
    let steps = schedule.programs.iter().flat_map(|program| &program.steps);
    for step in steps {
        let space = match &step.kind {
            StepKind::Fused(fused) => AddressSpace::fused(schedule, fused, &step.location),
            StepKind::Consume(consume) => AddressSpace::consumed(schedule, consume, &step.location),
            _ => continue,
        };
        match distinct.iter_mut().find(|known| known.is_like(&space)) {
            Some(known) => known.places += 1,
            None => distinct.push(space),
        }
    }
    distinct
}
