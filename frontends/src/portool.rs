//! The training and decode graphs of an RL recipe.
//!
//! The recipe's own file is read by the RL crate, which this one does not know: what arrives here is plain
//! numbers.

use std::sync::Arc;

use crate::{
    DecoderConfig, Error, Objective, Options, Phase,
    decoder::{Decoder, Origin},
    json::Source,
};

/// The sizes of a training step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Packed tokens (N).
    pub tokens: u64,
    /// Rows with a target (M).
    pub rows: u64,
    /// What is minimised.
    pub objective: Objective,
    /// Divides logits before log-softmax.
    pub temperature: f64,
    /// Tensor parallelism.
    pub tp: u64,
}

/// The forward and loss of a training step on packed trees. `recipe` is the file for locations; the model's
/// fields are those of its object `model`.
///
/// # Errors
/// Names the field of the model or the size that does not fit.
pub fn training(
    config: DecoderConfig,
    name: &str,
    step: &Step,
    recipe: Option<&Arc<Source>>,
) -> Result<Decoder, Error> {
    let options = Options {
        phase: Phase::Training,
        tokens: Some(step.tokens),
        rows: Some(step.rows),
        tp: Some(step.tp),
        // The normaliser is added up as the rollout does it, which sees whole rows of logits.
        vocab_parallel: Some(false),
        objective: step.objective.clone(),
        temperature: Some(step.temperature),
        ..Options::default()
    };
    Decoder::new(config, name, &options, recipe.map(origin))
}

/// One call of decode: `rows` positions of any sequences, in a cache of `blocks` blocks of which one sequence
/// uses at most enough for the model's context.
///
/// # Errors
/// Names the field of the model or the size that does not fit.
pub fn decode(
    config: DecoderConfig,
    name: &str,
    (rows, blocks): (u64, u64),
    tp: u64,
    recipe: Option<&Arc<Source>>,
) -> Result<Decoder, Error> {
    let options = Options {
        phase: Phase::Decode,
        batch: Some(rows),
        seq: Some(config.max_position_embeddings),
        cache_blocks: Some(blocks),
        tp: Some(tp),
        vocab_parallel: Some(false),
        ..Options::default()
    };
    Decoder::new(config, name, &options, recipe.map(origin))
}

fn origin(recipe: &Arc<Source>) -> Origin {
    Origin { source: Arc::clone(recipe), prefix: "model." }
}
