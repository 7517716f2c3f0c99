//! A compiled program: the module after each stage, the schedule and the remarks, all plain data.

use std::borrow::Cow;

use serde::Serialize;
use t3c_frontends::{ModelInfo, Phase};
use t3c_ir::{Context, Module};
use t3c_passes::{Remark, pipelines};
use t3c_schedule::{CollectiveKind, Compute, Schedule, Step, StepKind, Work};
use t3c_sim::{Report, System};

use crate::Error;

/// The stages whose module can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// As imported (and differentiated): linalg with shard annotations.
    Model,
    /// One program a device, with plain collectives.
    Sharded,
    /// With track-and-trigger.
    T3,
    /// With elementwise work outlined: what the schedule names.
    Kernels,
}

/// The module's text after each stage.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    pub(crate) model: String,
    pub(crate) sharded: String,
    pub(crate) t3: String,
    pub(crate) kernels: String,
}

/// A compiled program.
#[derive(Clone, Debug)]
pub struct Program {
    info: ModelInfo,
    phase: Phase,
    texts: Texts,
    schedule: Schedule,
    remarks: Vec<Remark>,
}

/// Pairs over all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Pairs {
    /// Candidates.
    pub found: u64,
    /// Fused.
    pub fused: u64,
    /// Left as they were, each with a reason.
    pub declined: u64,
}

/// What `t3c compile` prints.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// Repeated layers.
    pub layers: u64,
    /// Pairs over all layers.
    pub pairs: Pairs,
}

impl Program {
    pub(crate) fn new(
        info: ModelInfo,
        phase: Phase,
        texts: Texts,
        schedule: Schedule,
        remarks: Vec<Remark>,
    ) -> Self {
        Self { info, phase, texts, schedule, remarks }
    }

    /// The model's parameters and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The phase that was compiled.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The module's text after a stage, with locations.
    pub fn mlir(&self, stage: Stage) -> &str {
        match stage {
            Stage::Model => &self.texts.model,
            Stage::Sharded => &self.texts.sharded,
            Stage::T3 => &self.texts.t3,
            Stage::Kernels => &self.texts.kernels,
        }
    }

    /// What both backends run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Why each pair was fused or not.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    pub(crate) fn add_remarks(&mut self, remarks: Vec<Remark>) {
        self.remarks.extend(remarks);
    }

    /// Pairs found, fused and declined.
    pub fn summary(&self) -> Summary {
        let counts = t3c_passes::pipelines::pair_counts(&self.remarks);
        let pairs = Pairs { found: counts.found, fused: counts.fused, declined: counts.declined };
        Summary { model: self.info.name.clone(), layers: self.info.layers, pairs }
    }

    /// Times the program on `system` under every policy.
    ///
    /// # Errors
    /// When the schedule does not fit the system.
    pub fn simulate(&self, system: &System) -> Result<Report, Error> {
        self.simulate_with(system, false)
    }

    /// As [`Program::simulate`]; `trace` also keeps timelines.
    ///
    /// # Errors
    /// When the schedule does not fit the system.
    pub fn simulate_with(&self, system: &System, trace: bool) -> Result<Report, Error> {
        let options =
            t3c_sim::Options { phase: phase_name(self.phase).to_owned(), trace, ..Default::default() };
        Ok(t3c_sim::simulate(&self.schedule, system, &options)?)
    }

    /// Compiles to native code for this machine.
    ///
    /// # Errors
    /// When a step has no native code; the text names its place in the model.
    pub fn compile_cpu(&self, options: t3c_cpu::Options) -> Result<t3c_cpu::Executable, Error> {
        let context = Context::new();
        let (module, schedule) = self.native(&context)?;
        Ok(t3c_cpu::Executable::new(&context, &module, &schedule, options)?)
    }

    /// The native code as LLVM IR, assembly or an object file.
    ///
    /// # Errors
    /// When a step has no native code; the text names its place in the model.
    pub fn native_code(&self, form: t3c_cpu::kernels::Emit) -> Result<Vec<u8>, Error> {
        let context = Context::new();
        let (module, schedule) = self.native(&context)?;
        Ok(t3c_cpu::executable::native_code(&context, &module, &schedule, None, form)?)
    }

    /// Kernels and schedule for the CPU, which runs sums of products and their reduce-scatter chunk by chunk and any
    /// other producer before its collective, with the same results bit for bit.
    fn native<'c>(&self, context: &'c Context) -> Result<(Module<'c>, Cow<'_, Schedule>), Error> {
        let is_native = |step: &Step| match &step.kind {
            StepKind::Fused(fused) => {
                let is_product = |producer: &Compute| matches!(producer.work, Work::Contraction(_));
                fused.collective.kind == CollectiveKind::ReduceScatter
                    && fused.producers.iter().all(is_product)
            }
            _ => true,
        };
        if self.schedule.programs.iter().flat_map(|program| &program.steps).all(is_native) {
            let module = context.parse(&self.texts.kernels, &self.info.name)?;
            return Ok((module, Cow::Borrowed(&self.schedule)));
        }
        let mut module = context.parse(&self.texts.t3, &self.info.name)?;
        let passes = [pipelines::plain_producers(), pipelines::schedule()].concat();
        t3c_passes::run_passes(&mut module, &passes, &mut Vec::new())?;
        let schedule = t3c_passes::schedule(module.op())?;
        Ok((module, Cow::Owned(schedule)))
    }
}

/// A phase as the command line spells it.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "prefill",
        Phase::Training => "training",
        Phase::Decode => "decode",
    }
}
