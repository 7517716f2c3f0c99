//! From a model to a program: importers, autodiff, sharding, fusion and the schedule, in that order.

use std::path::{Path, PathBuf};

use t3c_frontends::{Graph, Objective, Options, Phase};
use t3c_ir::{
    Context, Element, Module,
    units::{UnitKind, unit_of},
};
use t3c_passes::{
    Remark,
    autodiff::{self, Autodiff, Remat},
    fuse::Policy,
    optimizer::{self, AdamW},
    pipelines, run_passes,
    schedule::schedule,
    shard::EXPERT_LOAD,
    shard::Stage as Zero,
};
use t3c_sim::System;

use crate::{Error, Program, program::Texts};

/// What a training program computes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Goal {
    /// What the graph says.
    #[default]
    Forward,
    /// Also the gradients of these parameters (all where empty).
    Gradients(Vec<String>),
    /// One optimizer step.
    Optimizer(AdamW),
}

enum Source {
    Path(PathBuf),
    Mlir { text: String, name: String },
    Graph(Box<Graph>),
}

/// Compiles one model. A builder: options left unset are the model's own or the documented defaults.
pub struct Compiler {
    source: Source,
    options: Options,
    goal: Option<Goal>,
    fuse: Policy,
    system: Option<System>,
    chooses_degree: bool,
    remat: Remat,
    reassociate: bool,
    zero: Zero,
    expert_load: Vec<f64>,
}

impl Compiler {
    fn new(source: Source) -> Self {
        Self {
            source,
            options: Options::default(),
            goal: None,
            fuse: Policy::Profitable,
            system: None,
            chooses_degree: false,
            remat: Remat::None,
            reassociate: false,
            zero: Zero::Off,
            expert_load: Vec::new(),
        }
    }

    /// A model file or folder: Hugging Face, `model.json`, or `.mlir`.
    pub fn from_path(path: impl AsRef<Path>) -> Self {
        Self::new(Source::Path(path.as_ref().to_owned()))
    }

    /// MLIR text; `name` stands for its file in messages.
    pub fn from_mlir(text: impl Into<String>, name: impl Into<String>) -> Self {
        Self::new(Source::Mlir { text: text.into(), name: name.into() })
    }

    /// A graph built in Rust.
    pub fn from_graph(graph: Graph) -> Self {
        Self::new(Source::Graph(Box::new(graph)))
    }

    /// The phase (default prefill).
    pub fn phase(mut self, phase: Phase) -> Self {
        self.options.phase = phase;
        self
    }

    /// Tensor parallelism.
    pub fn tp(mut self, tp: u64) -> Self {
        self.options.tp = Some(tp);
        self
    }

    /// Data parallelism: groups of devices among which sequences are split.
    pub fn dp(mut self, dp: u64) -> Self {
        self.options.dp = Some(dp);
        self
    }

    /// Expert parallelism: groups of devices among which experts are split.
    pub fn ep(mut self, ep: u64) -> Self {
        self.options.ep = Some(ep);
        self
    }

    /// Whether activations between tensor-parallel blocks are split along the tokens.
    pub fn sequence_parallel(mut self, sequence_parallel: bool) -> Self {
        self.options.sequence_parallel = sequence_parallel;
        self
    }

    /// What backward computes again instead of keeping it.
    pub fn remat(mut self, remat: Remat) -> Self {
        self.remat = remat;
        self
    }

    /// Whether rewrites may change the order of additions.
    pub fn reassociate(mut self, reassociate: bool) -> Self {
        self.reassociate = reassociate;
        self
    }

    /// What data parallelism splits beside tokens.
    pub fn zero(mut self, stage: Zero) -> Self {
        self.zero = stage;
        self
    }

    /// The share of rows, or the number of rows, that each expert takes; balanced where it is empty.
    pub fn expert_load(mut self, load: Vec<f64>) -> Self {
        self.expert_load = load;
        self
    }

    /// Where no degree is given, here or in the file: the largest of 8, 4, 2 that fits, instead of 1.
    pub fn choose_degree(mut self) -> Self {
        self.chooses_degree = true;
        self
    }

    /// Sequences.
    pub fn batch(mut self, batch: u64) -> Self {
        self.options.batch = Some(batch);
        self
    }

    /// Tokens a sequence.
    pub fn seq(mut self, seq: u64) -> Self {
        self.options.seq = Some(seq);
        self
    }

    /// Element type of parameters and activations.
    pub fn dtype(mut self, element: Element) -> Self {
        self.options.dtype = Some(element);
        self
    }

    /// Whether embedding and head are split by vocabulary (default: where the devices divide it).
    pub fn vocab_parallel(mut self, split: bool) -> Self {
        self.options.vocab_parallel = Some(split);
        self
    }

    /// What training minimises.
    pub fn objective(mut self, objective: Objective) -> Self {
        self.options.objective = objective;
        self
    }

    /// The importer's options as a whole.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// What a training program computes (default: one AdamW step).
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Which pairs to fuse.
    pub fn fuse(mut self, fuse: Policy) -> Self {
        self.fuse = fuse;
        self
    }

    /// The machine whose rates decide what is profitable.
    pub fn system(mut self, system: System) -> Self {
        self.system = Some(system);
        self
    }

    /// Compiles.
    ///
    /// # Errors
    /// The first thing that does not fit, with its place in the model.
    pub fn compile(self) -> Result<Program, Error> {
        let graph = self.graph()?;
        let context = Context::new();
        let mut module = graph.build(&context)?;
        if self.options.phase == Phase::Training {
            self.differentiate(&module)?;
        }
        set_expert_load(&module, &self.expert_load)?;
        let mut remarks = Vec::new();
        let model = module.text(true);
        run_passes(&mut module, &pipelines::sharding_with(self.zero, self.reassociate), &mut remarks)?;
        let sharded = module.text(true);
        let fusion = pipelines::fusion(&self.fusion(graph.info().element));
        run_passes(&mut module, &fusion, &mut remarks)?;
        let t3 = module.text(true);
        let (schedule, kernels) = finish(&mut module, &mut remarks)?;
        let info = graph.info().clone();
        Ok(Program::new(info, self.options.phase, Texts { model, sharded, t3, kernels }, schedule, remarks))
    }

    fn graph(&self) -> Result<Graph, Error> {
        let load = |options: &Options| match &self.source {
            Source::Path(path) => t3c_frontends::load(path, options).map_err(Error::from),
            Source::Mlir { text, name } => {
                Ok(Graph::Mlir(Box::new(t3c_frontends::mlir::load(name, text.clone())?)))
            }
            Source::Graph(graph) => Ok((**graph).clone()),
        };
        let graph = load(&self.options)?;
        if self.options.tp.is_some() || !self.chooses_degree || graph.info().tp != 1 {
            return Ok(graph);
        }
        match graph.info().default_degree() {
            1 => Ok(graph),
            degree => load(&Options { tp: Some(degree), ..self.options.clone() }),
        }
    }

    fn differentiate(&self, module: &Module<'_>) -> Result<(), Error> {
        match self.goal.clone().unwrap_or_else(|| Goal::Optimizer(AdamW::default())) {
            Goal::Forward => {}
            Goal::Gradients(names) => {
                let inputs = (!names.is_empty()).then_some(names);
                autodiff::differentiate(
                    module.op(),
                    &Autodiff { inputs, remat: self.remat, ..Default::default() },
                )?;
            }
            Goal::Optimizer(adamw) => {
                let autodiff = Autodiff { remat: self.remat, ..Default::default() };
                autodiff::differentiate(module.op(), &autodiff)?;
                optimizer::append(module.op(), &adamw)?;
            }
        }
        module.verify()?;
        Ok(())
    }

    fn fusion(&self, element: Element) -> pipelines::Fusion {
        let mut fusion = pipelines::Fusion { policy: self.fuse, ..Default::default() };
        if let Some(system) = &self.system {
            fusion.rates = system.rates(element);
        }
        fusion
    }
}

/// Tells sharding how many rows each expert takes.
fn set_expert_load(module: &Module<'_>, load: &[f64]) -> Result<(), Error> {
    if load.is_empty() {
        return Ok(());
    }
    let units = t3c_ir::function::functions(module.op()).into_iter().filter_map(unit_of);
    let routers = units.filter(|unit| unit.kind == UnitKind::Route);
    let mut experts = routers.filter_map(|unit| unit.arguments.first()?.shape.last().copied()).peekable();
    if experts.peek().is_none() {
        return Err(Error::option("--expert-load", "the model has no experts; leave it out"));
    }
    if let Some(experts) = experts.find(|experts| *experts != load.len() as u64) {
        let problem = format!("{} numbers; the model has {experts} experts", load.len());
        return Err(Error::option("--expert-load", problem));
    }
    let numbers: Vec<String> = load.iter().map(|share| format!("{share:.17e}")).collect();
    let text = format!("array<f64: {}>", numbers.join(", "));
    let attribute = melior::ir::Attribute::parse(module.context().mlir(), &text)
        .ok_or_else(|| Error::option("expert load", format!("`{text}` is no list of numbers")))?;
    t3c_ir::ffi::set_attribute(module.op(), EXPERT_LOAD, attribute);
    Ok(())
}

/// Gathers elementwise work into kernels and reads the schedule off.
fn finish(
    module: &mut Module<'_>,
    remarks: &mut Vec<Remark>,
) -> Result<(t3c_schedule::Schedule, String), Error> {
    run_passes(module, &pipelines::schedule(), remarks)?;
    let schedule = schedule(module.op())?;
    Ok((schedule, module.text(true)))
}
