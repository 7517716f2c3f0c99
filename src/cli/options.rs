//! Options that several commands share: each is defined once, here.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use t3c_frontends::{Format, Options, Phase, detect};
use t3c_ir::Element;
use t3c_passes::{Remark, autodiff::Remat, fuse::Policy, remark::to_yaml, shard::Stage as Zero};

use super::output;
use crate::{Compiler, Error, Program, Stage, System, files, program::phase_name, train};

/// The model and its sizes.
#[derive(Args, Clone, Debug)]
pub struct ModelOptions {
    /// A Hugging Face `config.json` or model folder, a `model.json`, a recipe (its training step), or an `.mlir` file
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// What the program computes [default: prefill; training for a recipe]
    #[arg(long, value_enum, value_name = "PHASE")]
    pub phase: Option<PhaseOption>,
    /// Sequences [default: the file's, else 1]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub batch: Option<u64>,
    /// Tokens a sequence; in decode, positions that the cache holds [default: the file's, else 1024]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub seq: Option<u64>,
    /// Element type of parameters and activations [default: the file's]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<ElementOption>,
    /// A JSON list with the share, or the number, of rows that each expert takes [default: balanced]
    #[arg(long, value_name = "FILE.json")]
    pub expert_load: Option<PathBuf>,
    #[command(flatten)]
    pub degrees: Degrees,
    #[command(flatten)]
    pub passes: PassOptions,
}

/// Degrees of parallelism.
#[derive(Args, Clone, Debug, Default)]
pub struct Degrees {
    /// Degree of tensor parallelism [default: the file's, else the largest of 8, 4, 2 that fits; `run` and `train`: the file's, else 1]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub tp: Option<u64>,
    /// Degree of data parallelism: groups of devices among which sequences are split [default: the file's, else 1]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub dp: Option<u64>,
    /// Degree of expert parallelism: groups of devices among which experts and sequences are split [default: the file's, else 1]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub ep: Option<u64>,
    /// Split activations between tensor-parallel blocks along the tokens
    #[arg(long)]
    pub sequence_parallel: bool,
    /// What data parallelism splits beside tokens: 0 nothing, 1 the optimizer's state, 3 parameters as well
    #[arg(long, value_name = "STAGE", default_value = "0", value_parser = ["0", "1", "3"], hide_possible_values = true, hide_default_value = true)]
    pub zero: String,
    /// What backward computes again: none, attention (all but products and attention), full, or a budget in bytes of what
    /// is kept [default: none]
    #[arg(long, value_name = "WHAT", default_value = "none", hide_default_value = true)]
    pub remat: String,
    /// Threads of each device; results do not depend on it [default: the machine's cores divided among the devices]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,
}

/// How the passes run.
#[derive(Args, Clone, Debug, Default)]
pub struct PassOptions {
    /// Which pairs to fuse [default: profitable; `run` and `train`: always]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub fuse: Option<FuseOption>,
    /// Allow rewrites that change the order of additions
    #[arg(long)]
    pub reassociate: bool,
    /// Say, on standard error, why each pair was fused or not, with its place in the model
    #[arg(long)]
    pub remarks: bool,
    /// Write the same to a file: YAML as LLVM's optimization remarks, or JSON
    #[arg(long, value_name = "FILE.yaml|.json")]
    pub remarks_file: Option<PathBuf>,
    /// Print the module after each stage on standard error
    #[arg(long)]
    pub mlir_print_ir_after_all: bool,
    /// Say, on standard error, what is being done and how long it took
    #[arg(short, long)]
    pub verbose: bool,
}

/// The machine.
#[derive(Args, Clone, Debug)]
pub struct SystemOption {
    /// A system file, or a built-in system: t3-80cu, t3-80cu-75gb, t3-160cu, a100-x8, h100-x8, h200-x8, mi210-x4, mi210-x8, mi300x-x8
    #[arg(long, value_name = "SYSTEM", default_value = "t3-80cu")]
    pub system: String,
}

/// A phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PhaseOption {
    /// Forward, loss, backward and optimizer
    Training,
    /// Logits of whole sequences
    Prefill,
    /// Logits of single positions, with a cache
    Decode,
}

impl From<PhaseOption> for Phase {
    fn from(phase: PhaseOption) -> Self {
        match phase {
            PhaseOption::Training => Phase::Training,
            PhaseOption::Prefill => Phase::Prefill,
            PhaseOption::Decode => Phase::Decode,
        }
    }
}

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ElementOption {
    F32,
    Bf16,
    F16,
}

impl From<ElementOption> for Element {
    fn from(element: ElementOption) -> Self {
        match element {
            ElementOption::F32 => Element::F32,
            ElementOption::Bf16 => Element::Bf16,
            ElementOption::F16 => Element::F16,
        }
    }
}

/// Which pairs to fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FuseOption {
    /// Every pair that can be
    Always,
    /// Those that a closed-form bound favours on the system
    Profitable,
    /// None
    Never,
}

impl From<FuseOption> for Policy {
    fn from(fuse: FuseOption) -> Self {
        match fuse {
            FuseOption::Always => Policy::Always,
            FuseOption::Profitable => Policy::Profitable,
            FuseOption::Never => Policy::Never,
        }
    }
}

/// A whole number of at least 1.
pub fn positive() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..)
}

impl Degrees {
    /// How native code is made.
    pub fn cpu_options(&self) -> crate::CpuOptions {
        let threads = self.threads.and_then(|threads| usize::try_from(threads).ok()).unwrap_or(0);
        crate::CpuOptions { threads, ..crate::CpuOptions::default() }
    }

    /// Refuses what compiling does not do.
    pub fn check(&self) -> Result<(), Error> {
        self.remat().map(drop)
    }

    /// Refuses what only a training program has.
    fn check_phase(&self, phase: Phase) -> Result<(), Error> {
        let wrong = |option, found: &str, what| {
            Err(Error::option(
                option,
                format!("{found}: only a training program has {what}; expected --phase training"),
            ))
        };
        match phase {
            Phase::Training => Ok(()),
            _ if self.remat()? != Remat::None => wrong("--remat", &self.remat, "a backward"),
            _ if self.stage() != Zero::Off => wrong("--zero", &self.zero, "an optimizer"),
            _ => Ok(()),
        }
    }

    /// Refuses what running on this machine does not do.
    pub fn check_run(&self) -> Result<(), Error> {
        match self {
            Self { dp: Some(dp @ 2..), .. } => unsupported("--dp", &dp.to_string(), "1"),
            Self { ep: Some(ep @ 2..), .. } => unsupported("--ep", &ep.to_string(), "1"),
            Self { sequence_parallel: true, .. } => unsupported("--sequence-parallel", "it", "none"),
            Self { remat, .. } if remat != "none" => unsupported("--remat", remat, "none"),
            Self { zero, .. } if zero != "0" => unsupported("--zero", zero, "0"),
            _ => self.check(),
        }
    }

    /// What data parallelism splits beside tokens.
    pub fn stage(&self) -> Zero {
        match self.zero.as_str() {
            "1" => Zero::State,
            "3" => Zero::Parameters,
            _ => Zero::Off,
        }
    }

    /// What backward computes again.
    pub fn remat(&self) -> Result<Remat, Error> {
        self.remat.parse().map_err(|()| {
            Error::option("--remat", format!("{}: expected none, attention, full, or bytes", self.remat))
        })
    }
}

fn unsupported(option: &str, found: &str, expected: &str) -> Result<(), Error> {
    Err(Error::option(option, format!("{found} is not supported by this version; expected {expected}")))
}

impl PassOptions {
    /// Refuses files that could not be written later.
    pub fn check(&self) -> Result<(), Error> {
        let Some(path) = &self.remarks_file else { return Ok(()) };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml" | "yml" | "json") => output::check_writable(path),
            _ => Err(Error::option(
                "--remarks-file",
                format!("{}: expected a name in .yaml or .json", path.display()),
            )),
        }
    }

    /// Refuses what running on this machine does not do.
    pub fn check_run(&self) -> Result<(), Error> {
        match self {
            Self { reassociate: true, .. } => unsupported("--reassociate", "it", "none"),
            Self { remarks_file: Some(path), .. } => {
                unsupported("--remarks-file", &path.display().to_string(), "none; `compile` writes it")
            }
            _ => Ok(()),
        }
    }

    /// Prints what was asked for on standard error.
    ///
    /// # Errors
    /// When the file of remarks cannot be written.
    pub fn report(&self, program: &Program) -> Result<(), Error> {
        if self.mlir_print_ir_after_all {
            for (stage, name) in [
                (Stage::Model, "import"),
                (Stage::Sharded, "sharding"),
                (Stage::T3, "fusion"),
                (Stage::Kernels, "schedule"),
            ] {
                output::message(&format!("// -----// IR after {name} //----- //\n{}", program.mlir(stage)));
            }
        }
        if self.remarks {
            program.remarks().iter().for_each(|remark| output::message(&format!("remark: {remark}")));
        }
        let Some(path) = &self.remarks_file else { return Ok(()) };
        let text = match path.extension().is_some_and(|extension| extension == "json") {
            true => remarks_json(program.remarks()),
            false => to_yaml(program.remarks()),
        };
        files::write(path, text.as_bytes())
    }

    /// With `-v`, says what took how long.
    pub fn timed<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let start = std::time::Instant::now();
        let value = work();
        if self.verbose {
            output::message(&format!("{what}: {:.2} s", start.elapsed().as_secs_f64()));
        }
        value
    }
}

/// `t3c.remarks/1`.
fn remarks_json(remarks: &[Remark]) -> String {
    let value = serde_json::json!({"schema": "t3c.remarks/1", "remarks": remarks});
    format!("{value:#}\n")
}

/// A compiled model, and where each of its sizes came from.
#[derive(Debug)]
pub struct Compiled {
    pub program: Program,
    /// Name, value and origin of each choice, in the order of the summary.
    pub choices: Vec<Choice>,
}

/// One size or setting of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub name: &'static str,
    pub value: String,
    /// Who chose it; empty where the user did.
    pub origin: String,
}

impl Choice {
    /// A choice, of the user where `given`.
    pub fn new(name: &'static str, value: impl ToString, given: bool, otherwise: &str) -> Self {
        Self {
            name,
            value: value.to_string(),
            origin: if given { String::new() } else { otherwise.to_owned() },
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.value)?;
        if self.origin.is_empty() { Ok(()) } else { write!(f, " ({})", self.origin) }
    }
}

impl ModelOptions {
    /// Compiles the model for `system`.
    pub fn compile(&self, system: &System) -> Result<Compiled, Error> {
        self.degrees.check()?;
        self.passes.check()?;
        let (format, _) = detect(&self.model).map_err(Error::from)?;
        match format {
            Format::Recipe(_) => self.compile_recipe(system),
            Format::Mlir(_) => self.compile_model(system, "as in the file", "as in the file"),
            Format::Model(source) => {
                let tp = if source.has("parallelism") { "the file's" } else { LARGEST };
                self.compile_model(system, "the file's", tp)
            }
            Format::HuggingFace(_) => self.compile_model(system, "default", LARGEST),
        }
    }

    fn fuse(&self) -> Policy {
        self.passes.fuse.map_or(Policy::Profitable, Policy::from)
    }

    fn compile_model(
        &self,
        system: &System,
        sizes: &'static str,
        degree: &'static str,
    ) -> Result<Compiled, Error> {
        let phase = self.phase.map_or(Phase::Prefill, Phase::from);
        let options = Options {
            phase,
            batch: self.batch,
            seq: self.seq,
            tp: self.degrees.tp,
            dp: self.degrees.dp,
            ep: self.degrees.ep,
            sequence_parallel: self.degrees.sequence_parallel,
            dtype: self.dtype.map(Element::from),
            ..Options::default()
        };
        self.degrees.check_phase(phase)?;
        let compiler = Compiler::from_path(&self.model).options(options).choose_degree();
        let compiler = compiler.remat(self.degrees.remat()?).reassociate(self.passes.reassociate);
        let compiler = compiler.expert_load(self.expert_load()?).zero(self.degrees.stage());
        let program = compiler.fuse(self.fuse()).system(system.clone()).compile()?;
        let info = program.info();
        let mut choices = vec![Choice::new("phase", phase_name(phase), self.phase.is_some(), "default")];
        choices.extend(info.batch.map(|batch| Choice::new("batch", batch, self.batch.is_some(), sizes)));
        choices.extend(info.seq.map(|seq| Choice::new("seq", seq, self.seq.is_some(), sizes)));
        let degree =
            if info.tp == 1 && degree == LARGEST { none_fits(&info.degrees) } else { degree.to_owned() };
        choices.push(Choice::new("tp", info.tp, self.degrees.tp.is_some(), &degree));
        for (name, value, given) in [("dp", info.dp, self.degrees.dp), ("ep", info.ep, self.degrees.ep)] {
            if value > 1 {
                choices.push(Choice::new(name, value, given.is_some(), "the file's"));
            }
        }
        if self.degrees.sequence_parallel {
            choices.push(Choice::new("sequence_parallel", "on", true, ""));
        }
        if phase == Phase::Training {
            choices.push(Choice::new(
                "remat",
                self.degrees.remat()?,
                self.degrees.remat != "none",
                "default",
            ));
        }
        Ok(Compiled { program, choices })
    }

    /// The share of each expert.
    fn expert_load(&self) -> Result<Vec<f64>, Error> {
        let Some(path) = &self.expert_load else { return Ok(Vec::new()) };
        let text = files::read_text(path)?;
        let wrong = |problem: String| {
            Error::contents(path, format!("{problem}; expected a JSON list of numbers, one an expert"))
        };
        let load: Vec<f64> = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if load.is_empty() || load.iter().any(|share| !share.is_finite() || *share < 0.0) {
            return Err(wrong("no number, or one that is negative".to_owned()));
        }
        if load.iter().sum::<f64>() <= 0.0 {
            return Err(wrong("only zeros".to_owned()));
        }
        Ok(load)
    }

    fn compile_recipe(&self, system: &System) -> Result<Compiled, Error> {
        let fixed = [
            ("--phase", self.phase.is_some_and(|phase| phase != PhaseOption::Training)),
            ("--batch", self.batch.is_some()),
            ("--seq", self.seq.is_some()),
            ("--dtype", self.dtype.is_some_and(|element| element != ElementOption::F32)),
            ("--dp", self.degrees.dp.is_some_and(|dp| dp > 1)),
            ("--ep", self.degrees.ep.is_some_and(|ep| ep > 1)),
            ("--sequence-parallel", self.degrees.sequence_parallel),
            ("--expert-load", self.expert_load.is_some()),
            ("--zero", self.degrees.stage() != Zero::Off),
        ];
        if let Some((option, _)) = fixed.iter().find(|(_, given)| *given) {
            return Err(Error::option(
                option,
                "a recipe fixes it: its training step is compiled; leave it out",
            ));
        }
        let remat = self.degrees.remat()?;
        let recipe = train::read_recipe(&self.model)?;
        let (own, given) = (recipe.parallelism.tp as u64, self.degrees.tp);
        let tp = given.unwrap_or(own);
        let program = train::program(&recipe, tp, |compiler| {
            let compiler = compiler.remat(remat).reassociate(self.passes.reassociate);
            compiler.fuse(self.fuse()).system(system.clone())
        })?;
        let largest = recipe.rl.batches.iter().max_by_key(|bucket| (bucket.tokens, bucket.rows));
        let mut choices = vec![Choice::new("phase", "training", self.phase.is_some(), "a recipe's")];
        if let Some(bucket) = largest {
            choices.push(Choice::new("tokens", bucket.tokens, false, "the recipe's largest batch"));
            choices.push(Choice::new("rows", bucket.rows, false, "the recipe's largest batch"));
        }
        choices.push(Choice::new("tp", tp, given.is_some(), "the recipe's"));
        Ok(Compiled { program, choices })
    }
}

/// Why the degree is 1, and what the user may ask for instead.
fn none_fits(degrees: &[u64]) -> String {
    let larger: Vec<String> = degrees.iter().filter(|degree| **degree > 1).map(u64::to_string).collect();
    match larger.is_empty() {
        true => "no larger degree fits".to_owned(),
        false => format!("none of 8, 4, 2 fits; degrees that do: {}", larger.join(", ")),
    }
}

const LARGEST: &str = "the largest of 8, 4, 2 that fits";
