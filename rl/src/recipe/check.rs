//! Refuses recipes that cannot be run, by the name of the field.

use thiserror::Error;

use super::Recipe;
use crate::credit::{self, CreditError};

/// Why a recipe cannot be run.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RecipeError {
    /// Not JSON, an unknown field, or a value of the wrong type.
    #[error("{message}")]
    Json {
        /// Line, from 1; 0 if unknown.
        line: usize,
        /// Column, from 1; 0 if unknown.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// A value that makes no sense.
    #[error("`{field}` is {value}, expected {expected}")]
    Value {
        /// The path of the field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A value of `rl.credit`; its field is named from there on, as `options.…`.
    #[error("{}", .0.to_string().replace("`options.", "`rl.credit."))]
    Credit(CreditError),
}

impl From<serde_json::Error> for RecipeError {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        // The position is a field of its own; serde repeats it at the end of the text.
        let message = match message.rfind(" at line ") {
            Some(at) => message[..at].to_owned(),
            None => message,
        };
        Self::Json { line, column, message }
    }
}

fn require(field: &'static str, value: f64, holds: bool, expected: &'static str) -> Result<(), RecipeError> {
    if holds && value.is_finite() { Ok(()) } else { Err(RecipeError::Value { field, value, expected }) }
}

fn at_least_one(field: &'static str, value: usize) -> Result<(), RecipeError> {
    require(field, value as f64, value >= 1, "1 or more")
}

/// A size of arrays that fits 32-bit indices.
fn size(field: &'static str, value: usize) -> Result<(), RecipeError> {
    at_least_one(field, value)?;
    require(field, value as f64, value <= 1 << 24, "at most 16777216")
}

fn probability(field: &'static str, value: f64) -> Result<(), RecipeError> {
    require(field, value, (0.0..=1.0).contains(&value), "0 to 1")
}

fn positive(field: &'static str, value: f64) -> Result<(), RecipeError> {
    require(field, value, value > 0.0, "more than 0")
}

fn not_negative(field: &'static str, value: f64) -> Result<(), RecipeError> {
    require(field, value, value >= 0.0, "0 or more")
}

impl Recipe {
    /// Checks values that the types do not.
    pub fn check(&self) -> Result<(), RecipeError> {
        self.check_model()?;
        self.check_task()?;
        self.check_optimizer()?;
        self.check_sft()?;
        self.check_rl()?;
        self.check_evaluation()
    }

    fn check_model(&self) -> Result<(), RecipeError> {
        let model = &self.model;
        for (field, value) in [
            ("model.hidden_size", model.hidden_size),
            ("model.num_hidden_layers", model.num_hidden_layers),
            ("model.num_attention_heads", model.num_attention_heads),
            ("model.num_key_value_heads", model.num_key_value_heads),
            ("model.head_dim", model.head_dim),
            ("model.intermediate_size", model.intermediate_size),
            ("model.max_position_embeddings", model.max_position_embeddings),
            ("parallelism.tp", self.parallelism.tp),
            ("parallelism.dp", self.parallelism.dp),
            ("parallelism.ep", self.parallelism.ep),
        ] {
            size(field, value)?;
        }
        let (heads, groups) = (model.num_attention_heads, model.num_key_value_heads);
        let divides = heads.is_multiple_of(groups);
        require("model.num_key_value_heads", groups as f64, divides, "a divisor of `num_attention_heads`")?;
        require("model.head_dim", model.head_dim as f64, model.head_dim.is_multiple_of(2), "an even number")?;
        positive("model.rope_theta", model.rope_theta)?;
        positive("model.rms_norm_eps", model.rms_norm_eps)?;
        positive("model.embedding_std", model.embedding_std)?;
        positive("model.init_scale", model.init_scale)
    }

    fn check_task(&self) -> Result<(), RecipeError> {
        let task = &self.task;
        for weight in task.mix {
            not_negative("task.mix", weight)?;
        }
        positive("task.mix", task.mix.iter().sum())?;
        probability("task.withheld", task.withheld)?;
        require("task.cannot", task.cannot, (-1.0..=1.0).contains(&task.cannot), "-1 to 1")?;
        let faults = task.faults();
        for (field, value) in [
            ("task.faults.early", faults.early),
            ("task.faults.repeat", faults.repeat),
            ("task.faults.no_think", faults.no_think),
            ("task.faults.wrong_tool", faults.wrong_tool),
            ("task.faults.swap", faults.swap),
            ("task.faults.wrong_keys", faults.wrong_keys),
            ("task.faults.gives_up", faults.gives_up),
            ("task.faults.admits", faults.admits),
        ] {
            probability(field, value)?;
        }
        Ok(())
    }

    fn check_optimizer(&self) -> Result<(), RecipeError> {
        let optimizer = &self.optimizer;
        for (field, value) in [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)] {
            require(field, value, (0.0..1.0).contains(&value), "0 to less than 1")?;
        }
        positive("optimizer.eps", optimizer.eps)?;
        positive("optimizer.clip_norm", optimizer.clip_norm)
    }

    fn check_sft(&self) -> Result<(), RecipeError> {
        let sft = &self.sft;
        size("sft.batch.tokens", sft.batch.tokens)?;
        size("sft.batch.rows", sft.batch.rows)?;
        let (tokens, context) = (sft.batch.tokens, self.model.max_position_embeddings);
        require("sft.batch.tokens", tokens as f64, tokens >= context, "`max_position_embeddings` or more")?;
        positive("sft.learning_rate", sft.learning_rate)?;
        probability("sft.final_fraction", sft.final_fraction)?;
        not_negative("sft.weight_decay", sft.weight_decay)?;
        if let Some(stop) = &sft.stop {
            probability("sft.stop.accuracy", stop.accuracy)?;
            at_least_one("sft.stop.every", stop.every as usize)?;
            size("sft.stop.questions", stop.questions)?;
        }
        Ok(())
    }

    fn check_rl(&self) -> Result<(), RecipeError> {
        let rl = &self.rl;
        credit::check_options(&rl.credit).map_err(RecipeError::Credit)?;
        for (field, value) in [
            ("rl.questions", rl.questions),
            ("rl.trajectories", rl.trajectories),
            ("rl.branching", rl.branching),
            ("rl.max_step_tokens", rl.max_step_tokens),
            ("rl.epochs", rl.epochs),
            ("rl.minibatches", rl.minibatches),
            ("rl.credit.t_max", rl.credit.t_max as usize),
            ("rl.batches", rl.batches.len()),
            ("rl.decode_rows", rl.decode_rows.len()),
        ] {
            at_least_one(field, value)?;
            require(field, value as f64, value <= 1 << 16, "at most 65536")?;
        }
        for bucket in &rl.batches {
            size("rl.batches.tokens", bucket.tokens)?;
            size("rl.batches.rows", bucket.rows)?;
        }
        for rows in &rl.decode_rows {
            size("rl.decode_rows", *rows)?;
        }
        let t_max = f64::from(rl.credit.t_max);
        require("rl.credit.t_max", t_max, t_max <= 1024.0, "at most 1024")?;
        let positions = (rl.questions * rl.trajectories) as f64 * self.model.max_position_embeddings as f64;
        let expected = "so that `questions` × `trajectories` × `max_position_embeddings` is below 2^31";
        require("rl.questions", rl.questions as f64, positions < 2f64.powi(31), expected)?;
        // No tree is larger, so no run can end for want of a batch that holds it.
        let tree = rl.trajectories * self.model.max_position_embeddings;
        let fits = rl.batches.iter().any(|bucket| bucket.tokens.min(bucket.rows) >= tree);
        let largest = rl.batches.iter().map(|bucket| bucket.tokens).max().unwrap_or(0);
        let expected = "one with `trajectories` × `max_position_embeddings` tokens and rows, or more";
        require("rl.batches", largest as f64, fits, expected)?;
        let (step, context) = (rl.max_step_tokens, self.model.max_position_embeddings);
        require("rl.max_step_tokens", step as f64, step < context, "less than `max_position_embeddings`")?;
        positive("rl.temperature", rl.temperature)?;
        positive("rl.learning_rate", rl.learning_rate)?;
        probability("rl.final_fraction", rl.final_fraction)?;
        not_negative("rl.weight_decay", rl.weight_decay)
    }

    fn check_evaluation(&self) -> Result<(), RecipeError> {
        size("evaluation.questions", self.evaluation.questions)?;
        let t_max = f64::from(self.evaluation.t_max);
        require("evaluation.t_max", t_max, (1.0..=1024.0).contains(&t_max), "1 to 1024")?;
        positive("evaluation.temperature", self.evaluation.temperature)
    }
}
