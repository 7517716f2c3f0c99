//! Training by a recipe: the RL loop over compiled code, with metrics, checkpoints and resumption on disk.

mod checkpoint;
mod graph;
mod policy;

use std::{
    fs::OpenOptions,
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use t3c_frontends::{Format, Graph, Phase, portool};
use t3c_rl::{
    pack::Objective,
    recipe::Recipe,
    task::MiniTask,
    trainer::{Event, State, TrainError, Trainer},
};

pub use policy::CompiledPolicy;

use crate::{Compiler, Error, Goal, Policy as Fuse, Program, files};

/// How a recipe is run.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The folder for metrics and checkpoints.
    pub out: PathBuf,
    /// Tensor parallelism, instead of the recipe's.
    pub tp: Option<u64>,
    /// The seed, instead of the recipe's.
    pub seed: Option<u64>,
    /// Which pairs are fused.
    pub fuse: Fuse,
    /// Go on where the checkpoint in `out` stands.
    pub resume: bool,
}

/// Where a run's results lie.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Where the run stands.
    pub state: State,
    /// A Hugging Face folder with the last parameters.
    pub checkpoint: PathBuf,
    /// One JSON object a line: every event.
    pub metrics: PathBuf,
}

/// Reads a recipe.
///
/// # Errors
/// Names the file, and the line or field that does not fit.
pub fn read_recipe(path: &Path) -> Result<Recipe, Error> {
    let text = files::read_text(path)?;
    Recipe::from_json(&text).map_err(|source| Error::Recipe { path: path.to_owned(), source })
}

/// The recipe's training step, compiled: the graph that [`train`] runs, at its largest batch.
///
/// # Errors
/// When the recipe's model does not compile at this degree.
pub fn program(
    recipe: &Recipe,
    tp: u64,
    compiler: impl FnOnce(Compiler) -> Compiler,
) -> Result<Program, Error> {
    let task = MiniTask::new(recipe.task.clone());
    let config = graph::decoder_config(recipe, task.vocabulary().len());
    let largest = recipe.rl.batches.iter().max_by_key(|bucket| (bucket.tokens, bucket.rows));
    let size = largest.map_or((1024, 1024), |bucket| (bucket.tokens as u64, bucket.rows as u64));
    let decoder =
        portool::training(config, policy::NAME, &graph::step(recipe, Objective::Portool, size, tp), None)?;
    let base = Compiler::from_graph(Graph::Decoder(Box::new(decoder)))
        .phase(Phase::Training)
        .goal(Goal::Optimizer(policy::adamw(recipe, Objective::Portool)));
    compiler(base).compile()
}

/// Trains. `progress` sees every event; `Break` ends the run, which can be resumed.
///
/// # Errors
/// When the model does not compile, a file cannot be written, or training diverges.
pub fn train(
    recipe: &Path,
    options: &TrainOptions,
    progress: &mut dyn FnMut(&Event) -> ControlFlow<()>,
) -> Result<Trained, Error> {
    let source = match t3c_frontends::detect(recipe)? {
        (Format::Recipe(source), _) => Some(Arc::new(source)),
        _ => None,
    };
    let mut recipe = read_recipe(recipe)?;
    recipe.seed = options.seed.unwrap_or(recipe.seed);
    let tp = options.tp.unwrap_or(recipe.parallelism.tp as u64);
    let task = MiniTask::new(recipe.task.clone());
    let mut policy =
        CompiledPolicy::new(&recipe, source.as_ref(), task.vocabulary().len(), tp, options.fuse)?;
    let out = files::create_folder(&options.out)?;
    let state = if options.resume { checkpoint::load(&out, &recipe, &mut policy)? } else { State::default() };
    let metrics = out.join("metrics.jsonl");
    let mut log = OpenOptions::new()
        .create(true)
        .write(true)
        .append(options.resume)
        .truncate(!options.resume)
        .open(&metrics)
        .map_err(|source| Error::file(&metrics, source))?;
    let mut failure = None;
    let mut trainer = Trainer::new(recipe.clone(), task, state);
    let mut sink = |event: &Event, policy: &mut CompiledPolicy, state: &State| {
        let written = record(&mut log, &metrics, event).and_then(|()| match event {
            Event::Phase { .. } => checkpoint::save(&out, &recipe, policy, state),
            Event::Evaluated(evaluation) if evaluation.temperature > 0.0 => {
                checkpoint::save(&out, &recipe, policy, state)
            }
            _ => Ok(()),
        });
        match written {
            Ok(()) => progress(event),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let state = trainer.run(&mut policy, &mut sink).map_err(|error| match error {
        TrainError::Policy(error) => error,
        other => Error::Training(other.to_string()),
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    checkpoint::save(&out, &recipe, &policy, &state)?;
    Ok(Trained { state, checkpoint: out.join(checkpoint::FOLDER), metrics })
}

fn record(log: &mut std::fs::File, path: &Path, event: &Event) -> Result<(), Error> {
    let line = serde_json::to_string(event).map_err(|error| Error::contents(path, error.to_string()))?;
    writeln!(log, "{line}").map_err(|source| Error::file(path, source))
}
