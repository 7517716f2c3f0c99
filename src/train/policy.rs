//! The model in training, as compiled code: what the RL loop drives.
//!
//! Every size for which the loop calls it is an executable of its own; all share one state, in which parameters,
//! moments and caches stay on the devices.

use std::{collections::BTreeMap, sync::Arc};

use rand::Rng;
use t3c_cpu::{Executable, State};
use t3c_frontends::{
    DecoderConfig, Graph, ModelInfo, Objective as Loss, Parameter, Phase, json::Source, portool,
};
use t3c_ir::{Splits, splits};
use t3c_passes::optimizer::AdamW;
use t3c_rl::{
    decode::{DecodeRows, DecodeShape, Decoder},
    pack::{Batch, Objective},
    random::{Purpose, Seed},
    recipe::Recipe,
    trainer::{Hyper, Policy, StepOutcome},
};

use super::graph::{decoder_config, step};
use crate::{Compiler, Error, Goal, HostTensor, Policy as Fuse};

/// The model's name in summaries and locations.
pub(super) const NAME: &str = "portool";

/// A model in training.
pub struct CompiledPolicy {
    recipe: Recipe,
    config: DecoderConfig,
    info: ModelInfo,
    tp: u64,
    fuse: Fuse,
    shape: DecodeShape,
    state: State,
    reference: Option<State>,
    training: BTreeMap<(bool, usize, usize), Executable>,
    reading: BTreeMap<(usize, usize), Executable>,
    decoding: BTreeMap<usize, Executable>,
}

impl CompiledPolicy {
    /// A policy with fresh parameters, drawn from the recipe's seed.
    ///
    /// # Errors
    /// When the recipe's model does not compile at this degree.
    pub fn new(
        recipe: &Recipe,
        source: Option<&Arc<Source>>,
        vocabulary: usize,
        tp: u64,
        fuse: Fuse,
    ) -> Result<Self, Error> {
        let config = decoder_config(recipe, vocabulary);
        let shape = recipe.shapes().decode;
        let smallest = shape.rows.first().copied().unwrap_or(1);
        let graph =
            portool::decode(config.clone(), NAME, (smallest as u64, shape.blocks as u64), tp, source)?;
        let info = graph.info().clone();
        let executable = compile(Graph::Decoder(Box::new(graph)), Phase::Decode, Goal::Forward, fuse)?;
        let mut policy = Self {
            recipe: recipe.clone(),
            config,
            info,
            tp,
            fuse,
            state: executable.state(),
            shape,
            reference: None,
            training: BTreeMap::new(),
            reading: BTreeMap::new(),
            decoding: BTreeMap::from([(smallest, executable)]),
        };
        policy.initialise()?;
        Ok(policy)
    }

    /// The model's parameters and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// One tensor of the parameters (`param`) or moments (`m`, `v`), in the checkpoint's shape.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn tensor(&self, kind: &str, parameter: &Parameter) -> Result<HostTensor, Error> {
        let (mut r#type, bytes) = self.state.get(&format!("{kind}/{}", parameter.name))?;
        r#type.shape = checkpoint_shape(parameter);
        Ok(HostTensor { r#type, bytes })
    }

    /// Replaces a parameter or moment.
    ///
    /// # Errors
    /// When the values do not fit.
    pub fn set_tensor(&mut self, kind: &str, parameter: &Parameter, values: &[f32]) -> Result<(), Error> {
        let tensor = HostTensor::f32(parameter.shape.clone(), values);
        let split = self.split(parameter);
        let name = format!("{kind}/{}", parameter.name);
        Ok(self.state.set(&name, &tensor.r#type, &split, &tensor.bytes)?)
    }

    /// How a parameter lies on the devices, as the executables' ports say.
    fn split(&self, parameter: &Parameter) -> Splits {
        let name = format!("param/{}", parameter.name);
        let ports = self.decoding.values().flat_map(Executable::arguments);
        ports
            .into_iter()
            .find(|port| port.name == name)
            .map_or_else(|| splits::whole(parameter.shape.len()), |port| port.split.clone())
    }

    fn initialise(&mut self) -> Result<(), Error> {
        let seed = Seed { seed: self.recipe.seed, step: 0 };
        for (index, parameter) in self.info.parameters.clone().iter().enumerate() {
            let deviation = self.initial_deviation(parameter);
            let mut random = seed.stream(Purpose::Parameters, index as u64, 0);
            let count = parameter.elements() as usize;
            let values: Vec<f32> = match deviation {
                None => vec![1.0; count],
                Some(deviation) => (0..count).map(|_| (deviation * normal(&mut random)) as f32).collect(),
            };
            self.set_tensor("param", parameter, &values)?;
        }
        self.zero_moments()?;
        let caches: Vec<_> = self.decoding.values().flat_map(Executable::arguments).cloned().collect();
        for port in caches.into_iter().filter(|port| port.name.starts_with("cache/")) {
            let bytes = vec![0; (port.r#type.elements() * port.r#type.element.bytes()) as usize];
            self.state.set(&port.name, &port.r#type, &port.split, &bytes)?;
        }
        Ok(())
    }

    /// The standard deviation of a parameter's initial values; `None` for norms, which start at 1.
    fn initial_deviation(&self, parameter: &Parameter) -> Option<f64> {
        let model = &self.recipe.model;
        let &[_, fan_in] = checkpoint_shape(parameter).as_slice() else { return None };
        if parameter.name.contains("embed") {
            return Some(model.embedding_std);
        }
        let writes_residual = parameter.name.contains("o_proj") || parameter.name.contains("down_proj");
        let depth = if writes_residual { (2.0 * model.num_hidden_layers as f64).sqrt() } else { 1.0 };
        Some(model.init_scale / (fan_in as f64).sqrt() / depth)
    }

    fn zero_moments(&mut self) -> Result<(), Error> {
        for parameter in self.info.parameters.clone() {
            let zeros = vec![0.0; parameter.elements() as usize];
            self.set_tensor("m", &parameter, &zeros)?;
            self.set_tensor("v", &parameter, &zeros)?;
        }
        Ok(())
    }

    /// Compiles the step for a batch's size, the first time it is met.
    fn prepare_training(&mut self, objective: Objective, tokens: usize, rows: usize) -> Result<(), Error> {
        let supervised = objective == Objective::Sft;
        let key = (supervised, tokens, rows);
        if !self.training.contains_key(&key) {
            let size = (tokens as u64, rows as u64);
            let graph = portool::training(
                self.config.clone(),
                NAME,
                &step(&self.recipe, objective, size, self.tp),
                None,
            )?;
            let goal = Goal::Optimizer(adamw(&self.recipe, objective));
            self.training
                .insert(key, compile(Graph::Decoder(Box::new(graph)), Phase::Training, goal, self.fuse)?);
        }
        Ok(())
    }

    fn set_batch(&mut self, objective: Objective, batch: &Batch, hyper: Option<&Hyper>) -> Result<(), Error> {
        let (n, m) = (batch.bucket.tokens as u64, batch.bucket.rows as u64);
        let pack = &batch.pack;
        let ints = [
            ("tokens", n, &pack.tokens),
            ("position", n, &pack.position),
            ("subtree_end", n, &pack.subtree_end),
            ("rows", m, &pack.rows),
            ("targets", m, &pack.targets),
        ];
        for (name, count, values) in ints {
            set(&mut self.state, name, &HostTensor::i32([count], values))?;
        }
        set(&mut self.state, "weight", &HostTensor::f32([m], &pack.weight))?;
        if objective == Objective::Portool {
            for (name, values) in
                [("old_logp", &pack.old_logp), ("a_plus", &pack.a_plus), ("a_minus", &pack.a_minus)]
            {
                set(&mut self.state, name, &HostTensor::f32([m], values))?;
            }
            if !batch.ref_logp.is_empty() {
                set(&mut self.state, "ref_logp", &HostTensor::f32([m], &batch.ref_logp))?;
            }
        }
        if let Some(hyper) = hyper {
            for (name, value) in [("lr", hyper.lr), ("bias1", hyper.bias1), ("bias2", hyper.bias2)] {
                set(&mut self.state, name, &HostTensor::f32([], &[value]))?;
            }
        }
        Ok(())
    }

    fn scalar(&self, name: &str) -> Result<f32, Error> {
        Ok(floats(&self.state, name)?.first().copied().unwrap_or(f32::NAN))
    }
}

fn set(state: &mut State, name: &str, tensor: &HostTensor) -> Result<(), Error> {
    let split = splits::whole(tensor.r#type.shape.len());
    Ok(state.set(name, &tensor.r#type, &split, &tensor.bytes)?)
}

fn floats(state: &State, name: &str) -> Result<Vec<f32>, Error> {
    let (r#type, bytes) = state.get(name)?;
    Ok(HostTensor { r#type, bytes }.to_f32().unwrap_or_default())
}

/// A parameter's shape in the checkpoint: those of recipes' models are whole tensors.
pub(super) fn checkpoint_shape(parameter: &Parameter) -> Vec<u64> {
    parameter.sources.first().map_or_else(|| parameter.shape.clone(), |source| source.shape.clone())
}

fn compile(graph: Graph, phase: Phase, goal: Goal, fuse: Fuse) -> Result<Executable, Error> {
    let program = Compiler::from_graph(graph).phase(phase).goal(goal).fuse(fuse).compile()?;
    program.compile_cpu(t3c_cpu::Options::default())
}

/// The optimizer of a phase.
pub(super) fn adamw(recipe: &Recipe, objective: Objective) -> AdamW {
    let optimizer = &recipe.optimizer;
    let weight_decay = match objective {
        Objective::Sft => recipe.sft.weight_decay,
        Objective::Portool => recipe.rl.weight_decay,
    };
    AdamW {
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        eps: optimizer.eps,
        weight_decay,
        clip: Some(optimizer.clip_norm),
        keep_gradients: false,
    }
}

/// A normal variate, by Box and Muller's transform.
fn normal(random: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

impl Decoder for CompiledPolicy {
    type Error = Error;

    fn decode(&mut self, rows: &DecodeRows, logits: &mut Vec<f32>) -> Result<(), Error> {
        let count = rows.len();
        if !self.decoding.contains_key(&count) {
            let size = (count as u64, self.shape.blocks as u64);
            let graph = portool::decode(self.config.clone(), NAME, size, self.tp, None)?;
            let executable =
                compile(Graph::Decoder(Box::new(graph)), Phase::Decode, Goal::Forward, self.fuse)?;
            self.decoding.insert(count, executable);
        }
        let (s, width) = (count as u64, rows.width as u64);
        set(&mut self.state, "tokens", &HostTensor::i32([s], &rows.tokens))?;
        set(&mut self.state, "position", &HostTensor::i32([s], &rows.position))?;
        set(&mut self.state, "block_table", &HostTensor::i32([s, width], &rows.block_table))?;
        if let Some(executable) = self.decoding.get_mut(&count) {
            executable.run(&mut self.state)?;
        }
        *logits = floats(&self.state, "logits")?;
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), Error> {
        for layer in 0..self.info.layers {
            for kind in ["k", "v"] {
                let name = format!("cache/{kind}/{layer}");
                for &(from, to) in copies {
                    self.state.copy_rows(&name, from as usize, to as usize, 1)?;
                }
            }
        }
        Ok(())
    }
}

impl Policy for CompiledPolicy {
    fn train(&mut self, objective: Objective, batch: &Batch, hyper: &Hyper) -> Result<StepOutcome, Error> {
        let (tokens, rows) = (batch.bucket.tokens, batch.bucket.rows);
        self.prepare_training(objective, tokens, rows)?;
        self.set_batch(objective, batch, Some(hyper))?;
        if let Some(executable) = self.training.get_mut(&(objective == Objective::Sft, tokens, rows)) {
            executable.run(&mut self.state)?;
        }
        let supervised = objective == Objective::Sft;
        let beta = self.recipe.rl.credit.beta;
        Ok(StepOutcome {
            loss: self.scalar("loss")?,
            loss_pg: if supervised { 0.0 } else { self.scalar("loss_pg")? },
            loss_kl: if supervised || beta == 0.0 { 0.0 } else { self.scalar("loss_kl")? },
            logp: floats(&self.state, "logp")?,
            grad_norm: self.scalar("grad_norm")?,
        })
    }

    fn reset_optimizer(&mut self) -> Result<(), Error> {
        self.zero_moments()
    }

    fn keep_reference(&mut self) -> Result<(), Error> {
        let mut reference = State::new(self.state.grid());
        for parameter in &self.info.parameters {
            let name = format!("param/{}", parameter.name);
            let (r#type, bytes) = self.state.get(&name)?;
            reference.set(&name, &r#type, &self.split(parameter), &bytes)?;
        }
        self.reference = Some(reference);
        Ok(())
    }

    fn reference_logp(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let key = (batch.bucket.tokens, batch.bucket.rows);
        if !self.reading.contains_key(&key) {
            // The supervised loss at the recipe's temperature, for its log-probabilities alone.
            let mut size = step(&self.recipe, Objective::Portool, (key.0 as u64, key.1 as u64), self.tp);
            size.objective = Loss::Lm;
            let graph = portool::training(self.config.clone(), NAME, &size, None)?;
            let graph = Graph::Decoder(Box::new(graph));
            self.reading.insert(key, compile(graph, Phase::Training, Goal::Forward, self.fuse)?);
        }
        self.set_batch(Objective::Sft, batch, None)?;
        let (Some(reference), Some(executable)) = (&mut self.reference, self.reading.get_mut(&key)) else {
            return Err(Error::Training("there is no reference policy yet".into()));
        };
        for name in ["tokens", "position", "subtree_end", "rows", "targets", "weight"] {
            let (r#type, bytes) = self.state.get(name)?;
            reference.set(name, &r#type, &splits::whole(r#type.shape.len()), &bytes)?;
        }
        executable.run(reference)?;
        floats(reference, "logp")
    }
}
