//! Running a model once: weights and tokens in, logits (and gradients) out.

use std::{collections::BTreeMap, path::Path};

use t3c_cpu::{Executable, State};
use t3c_frontends::{ModelInfo, Phase, Source};

use crate::{
    Compiler, Error, Goal, Policy,
    files::{self, HostTensor},
};

/// Named results.
pub type Outputs = BTreeMap<String, HostTensor>;

/// A compiled model with its weights on the devices.
#[derive(Debug)]
pub struct Runner {
    executable: Executable,
    state: State,
    info: ModelInfo,
}

impl Runner {
    /// Compiles `compiler`'s model for this machine.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn new(compiler: Compiler, options: t3c_cpu::Options) -> Result<Self, Error> {
        let program = compiler.compile()?;
        let executable = program.compile_cpu(options)?;
        let state = executable.state();
        Ok(Self { executable, state, info: program.info().clone() })
    }

    /// Goes on with another program of the same model, such as decode steps of another size: parameters, caches
    /// and whatever else is on the devices stay there.
    ///
    /// # Errors
    /// When the other program does not compile, or is for other devices.
    pub fn then(self, compiler: Compiler, options: t3c_cpu::Options) -> Result<Self, Error> {
        let next = Self::new(compiler, options)?;
        if next.state.grid() != self.state.grid() {
            return Err(Error::option("tp", "differs from that of the program before"));
        }
        Ok(Self { state: self.state, ..next })
    }

    /// The model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The compiled code.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// Sets the parameters from tensors named as in the checkpoint; bf16, f16 and f64 are converted.
    ///
    /// # Errors
    /// Names the tensor that is missing or of another shape.
    pub fn set_weights(&mut self, path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<(), Error> {
        for parameter in self.info.parameters.clone() {
            let values = parameter.gather(|source| floats(path, tensors, source))?;
            let tensor = HostTensor::f32(parameter.shape.clone(), &values);
            self.set(&format!("param/{}", parameter.name), &tensor)?;
        }
        Ok(())
    }

    /// The checkpoint's tensors as `kind` (`param`, `grad`, `m`, `v`) has them: of every parameter, or of those of
    /// which a part is in a tensor that `wanted` accepts.
    ///
    /// # Errors
    /// When the program has no such results.
    pub fn checkpoint(&self, kind: &str, wanted: impl Fn(&str) -> bool) -> Result<Outputs, Error> {
        let mut tensors = BTreeMap::new();
        for parameter in &self.info.parameters {
            if parameter.sources.iter().any(|source| wanted(&source.tensor)) {
                let name = format!("{kind}/{}", parameter.name);
                let values = self.get(&name)?.to_f32();
                let values = values.ok_or_else(|| Error::option(&name, "is no f32"))?;
                parameter.scatter(&values, &mut tensors);
            }
        }
        let shapes = self.info.checkpoint();
        let whole = |(name, values): (String, Vec<f32>)| {
            let shape = shapes.get(name.as_str()).map(|shape| shape.to_vec()).unwrap_or_default();
            let tensor = HostTensor::f32(shape, &values);
            (name, tensor)
        };
        Ok(tensors.into_iter().filter(|(name, _)| wanted(name)).map(whole).collect())
    }

    /// Sets one argument of the entry, whatever its shape is called there.
    ///
    /// # Errors
    /// When the entry has no such argument, or the tensor does not fit it.
    pub fn set(&mut self, name: &str, tensor: &HostTensor) -> Result<(), Error> {
        let port = self.executable.arguments().iter().find(|port| port.name == name);
        let port = port.ok_or_else(|| Error::option(name, "the model has no such input"))?;
        if port.r#type != tensor.r#type {
            return Err(Error::option(name, format!("is a {}, expected a {}", tensor.r#type, port.r#type)));
        }
        Ok(self.state.set(name, &port.r#type, &port.split, &tensor.bytes)?)
    }

    /// Sets every argument that is still missing to zero: caches, moments.
    ///
    /// # Errors
    /// Never for a compiled program.
    pub fn zero_missing(&mut self) -> Result<(), Error> {
        let missing: Vec<_> = self
            .executable
            .arguments()
            .iter()
            .filter(|port| !self.state.contains(&port.name))
            .cloned()
            .collect();
        for port in missing {
            let bytes = vec![0; (port.r#type.elements() * port.r#type.element.bytes()) as usize];
            self.state.set(&port.name, &port.r#type, &port.split, &bytes)?;
        }
        Ok(())
    }

    /// Runs once.
    ///
    /// # Errors
    /// When an argument is missing or an index is out of range.
    pub fn run(&mut self) -> Result<(), Error> {
        Ok(self.executable.run(&mut self.state)?)
    }

    /// A tensor of the state: a result, or an argument.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<HostTensor, Error> {
        let (r#type, bytes) = self.state.get(name)?;
        Ok(HostTensor { r#type, bytes })
    }

    /// Sets the inputs of a forward or training program to `batch` sequences of one length.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the program takes other sizes.
    pub fn set_tokens(&mut self, sequences: &[Vec<i64>]) -> Result<(), Error> {
        let vocabulary = self.info.vocab_size.unwrap_or(u64::MAX);
        let length = sequences.first().map_or(0, Vec::len);
        let mut tokens = Vec::new();
        for (row, sequence) in sequences.iter().enumerate() {
            for (column, &token) in sequence.iter().enumerate() {
                if token < 0 || token as u64 >= vocabulary {
                    let problem = format!(
                        "token {token} at [{row}, {column}] is outside the vocabulary of {vocabulary}"
                    );
                    return Err(Error::option("tokens", problem));
                }
                tokens.push(token as i32);
            }
        }
        let count = tokens.len() as u64;
        let position: Vec<i32> = (0..sequences.len()).flat_map(|_| 0..length as i32).collect();
        let ends: Vec<i32> =
            (1..=sequences.len()).flat_map(|row| vec![(row * length) as i32; length]).collect();
        self.set("tokens", &HostTensor::i32([count], &tokens))?;
        self.set("position", &HostTensor::i32([count], &position))?;
        self.set("subtree_end", &HostTensor::i32([count], &ends))
    }

    /// Sets the targets of a training program to the next tokens of the sequences, weighted to their mean.
    ///
    /// # Errors
    /// When the program takes other sizes.
    pub fn set_next_token_targets(&mut self, sequences: &[Vec<i64>]) -> Result<(), Error> {
        let length = sequences.first().map_or(0, Vec::len);
        let count = sequences.len() * length;
        let predicted = sequences.len() * length.saturating_sub(1);
        let rows: Vec<i32> = (0..count as i32).collect();
        let mut targets = vec![0i32; count];
        let mut weight = vec![0f32; count];
        for (row, sequence) in sequences.iter().enumerate() {
            for column in 1..length {
                targets[row * length + column - 1] = sequence[column] as i32;
                weight[row * length + column - 1] = 1.0 / predicted as f32;
            }
        }
        let count = count as u64;
        self.set("rows", &HostTensor::i32([count], &rows))?;
        self.set("targets", &HostTensor::i32([count], &targets))?;
        self.set("weight", &HostTensor::f32([count], &weight))
    }
}

/// The floats of a checkpoint tensor. Checkpoints of a bare model leave out the first part of names that
/// `transformers` gives it inside a language model: `h.0.…` for `transformer.h.0.…`.
fn floats(path: &Path, tensors: &BTreeMap<String, HostTensor>, source: &Source) -> Result<Vec<f32>, Error> {
    let name = &source.tensor;
    let bare = name.split_once('.').and_then(|(_, bare)| tensors.get(bare));
    let tensor = tensors.get(name).or(bare).ok_or_else(|| {
        Error::contents(path, format!("tensor `{name}` is missing; expected shape {:?}", source.shape))
    })?;
    if tensor.r#type.shape != source.shape {
        let problem =
            format!("tensor `{name}` has shape {:?}, expected {:?}", tensor.r#type.shape, source.shape);
        return Err(Error::contents(path, problem));
    }
    files::widen_to_f32(tensor)
        .ok_or_else(|| Error::contents(path, format!("tensor `{name}` holds integers, expected floats")))
}

/// What `t3c run` computes.
#[derive(Debug)]
pub struct Request {
    /// Tensor parallelism.
    pub tp: Option<u64>,
    /// Which pairs to fuse.
    pub fuse: Policy,
    /// Sequences of one length.
    pub sequences: Vec<Vec<i64>>,
    /// Whether tokens came as one row, so that logits lose their batch dimension.
    pub flat: bool,
    /// Gradients of these parameters; all where the list is empty, none without a list.
    pub gradients: Option<Vec<String>>,
    /// A safetensors file or checkpoint folder.
    pub weights: std::path::PathBuf,
    /// Threads of each device; 0 for the machine's cores divided among the devices.
    pub threads: usize,
}

/// Logits of the sequences, and with gradients also the loss.
///
/// # Errors
/// When the model, the weights or the tokens do not fit.
pub fn run_language_model(model: &Path, request: &Request) -> Result<Outputs, Error> {
    let (batch, length) =
        (request.sequences.len() as u64, request.sequences.first().map_or(0, Vec::len) as u64);
    let compiler = |phase, goal| {
        let compiler = Compiler::from_path(model)
            .phase(phase)
            .batch(batch)
            .seq(length)
            .fuse(request.fuse)
            .dtype(t3c_ir::Element::F32);
        let compiler = compiler.goal(goal);
        match request.tp {
            Some(tp) => compiler.tp(tp),
            None => compiler,
        }
    };
    let cpu = || t3c_cpu::Options { threads: request.threads, ..t3c_cpu::Options::default() };
    let tensors = files::read_tensors(&request.weights)?;
    let mut outputs = Outputs::new();
    let mut forward = Runner::new(compiler(Phase::Prefill, Goal::Forward), cpu())?;
    forward.set_weights(&request.weights, &tensors)?;
    forward.set_tokens(&request.sequences)?;
    forward.run()?;
    let mut logits = forward.get("logits")?;
    let vocabulary = logits.r#type.shape.last().copied().unwrap_or(0);
    logits.r#type.shape =
        if request.flat { vec![length, vocabulary] } else { vec![batch, length, vocabulary] };
    outputs.insert("logits".into(), logits);
    if let Some(names) = &request.gradients {
        for name in names {
            if !forward.info().checkpoint().contains_key(name.as_str()) {
                return Err(Error::option("--grad", format!("the model has no parameter `{name}`")));
            }
        }
        let wanted = |name: &str| names.is_empty() || names.iter().any(|other| other == name);
        let parts = forward.info().parameters.iter().filter(|parameter| {
            !names.is_empty() && parameter.sources.iter().any(|source| wanted(&source.tensor))
        });
        let goal = Goal::Gradients(parts.map(|parameter| format!("param/{}", parameter.name)).collect());
        let mut training = Runner::new(compiler(Phase::Training, goal), cpu())?;
        training.set_weights(&request.weights, &tensors)?;
        training.set_tokens(&request.sequences)?;
        training.set_next_token_targets(&request.sequences)?;
        training.run()?;
        outputs.insert("loss".into(), training.get("loss")?);
        for (name, gradient) in training.checkpoint("grad", wanted)? {
            outputs.insert(format!("grad/{name}"), gradient);
        }
    }
    Ok(outputs)
}
