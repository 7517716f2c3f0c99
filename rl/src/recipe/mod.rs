//! `portool.json`: everything that decides a training run. One field, one documented default.

mod check;

pub use check::RecipeError;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credit::Options as CreditOptions;
use crate::decode::DecodeShape;
use crate::pack::Bucket;
use crate::task::TaskOptions;
use crate::tree::{RolloutOptions, Selection};

/// The version of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Schema {
    /// The first version.
    #[default]
    #[serde(rename = "t3c.portool/1")]
    Portool1,
}

/// A training recipe: model, warm start, reinforcement learning, evaluation.
///
/// "Measured" in a default's source means: on the mini-task, see the book's page on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Always `t3c.portool/1`.
    pub schema: Schema,
    /// Seed of everything random but the held-out questions. Default 0.
    #[serde(default)]
    pub seed: u64,
    /// The model's shape; its vocabulary is the task's.
    #[serde(default)]
    pub model: ModelOptions,
    /// Questions and teacher.
    #[serde(default)]
    pub task: TaskOptions,
    /// AdamW, for both phases. Its moments start anew with reinforcement learning.
    #[serde(default)]
    pub optimizer: OptimizerOptions,
    /// The supervised warm start.
    #[serde(default)]
    pub sft: SftOptions,
    /// Reinforcement learning.
    #[serde(default)]
    pub rl: RlOptions,
    /// Evaluation on held-out questions.
    #[serde(default)]
    pub evaluation: EvaluationOptions,
    /// How the training step is spread over devices.
    #[serde(default)]
    pub parallelism: Parallelism,
}

/// A Llama from scratch; names as in a Hugging Face `config.json`. The default has about a million
/// parameters; wider and shallower ones learn to copy digits later (measured).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// Width. Default 128.
    pub hidden_size: usize,
    /// Layers. Default 5.
    pub num_hidden_layers: usize,
    /// Query heads. Default 4.
    pub num_attention_heads: usize,
    /// Key and value heads. Default 2.
    pub num_key_value_heads: usize,
    /// Width of a head. Default 32.
    pub head_dim: usize,
    /// Width of the feed-forward part. Default 384.
    pub intermediate_size: usize,
    /// Longest sequence; every trace of the mini-task fits in 128. Default 128.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies. Default 10000.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm. Default 1e-5.
    pub rms_norm_eps: f64,
    /// Standard deviation of the tied embedding's initial values. Default 0.02.
    pub embedding_std: f64,
    /// Matrices start with the standard deviation `init_scale`/√fan-in, those that write to the
    /// residual stream with 1/√(2·layers) of it. Default 0.6 (measured).
    pub init_scale: f64,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_hidden_layers: 5,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            intermediate_size: 384,
            max_position_embeddings: 128,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            embedding_std: 0.02,
            init_scale: 0.6,
        }
    }
}

/// AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerOptions {
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// The gradient is scaled down to this norm. Default 1.
    pub clip_norm: f64,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip_norm: 1.0 }
    }
}

/// The supervised warm start on the teacher's traces, each seen once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SftOptions {
    /// Optimizer steps, at most. Default 800 (measured).
    pub steps: u64,
    /// Size of a batch, which traces fill: about 16 of the `repeats` teacher's in 960 tokens, of
    /// which 500 are loss rows. Default 960 tokens, 576 rows.
    pub batch: Bucket,
    /// Peak learning rate. Default 1.2e-3; at 3e-3 faulty traces are learned slowly (measured).
    pub learning_rate: f64,
    /// Steps of linear warm-up. Default 50.
    pub warmup_steps: u64,
    /// The cosine ends at this fraction of the peak, after `steps`. Default 0.1.
    pub final_fraction: f64,
    /// Decoupled weight decay. Default 0.01.
    pub weight_decay: f64,
    /// Ends the warm start early, so that seeds start reinforcement learning alike. Default none.
    pub stop: Option<StopOptions>,
}

impl Default for SftOptions {
    fn default() -> Self {
        Self {
            steps: 800,
            batch: Bucket { tokens: 960, rows: 576 },
            learning_rate: 1.2e-3,
            warmup_steps: 50,
            final_fraction: 0.1,
            weight_decay: 0.01,
            stop: None,
        }
    }
}

/// When the warm start is good enough, on fresh training questions at temperature 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopOptions {
    /// Stop at this accuracy. Default 0.4.
    pub accuracy: f64,
    /// Look every so many steps. Default 50.
    pub every: u64,
    /// Questions asked. Default 192.
    pub questions: usize,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self { accuracy: 0.4, every: 50, questions: 192 }
    }
}

/// Reinforcement learning from rewarded trees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RlOptions {
    /// Steps: a rollout and its updates. Default 60.
    pub steps: u64,
    /// Questions a step. Default 24.
    pub questions: usize,
    /// Trajectories a question, the paper's n. Default 8 (not known from the paper).
    pub trajectories: usize,
    /// Candidates a live node, the paper's f. Default 2 (not known from the paper).
    pub branching: usize,
    /// Which candidates survive. Default `portool`.
    pub selection: Selection,
    /// Tokens of a step, at most. Default 22, the longest well-formed step.
    pub max_step_tokens: usize,
    /// Temperature in sampling and in the loss. Default 0.7; at 1, errors in copied digits drown the
    /// signal (measured).
    pub temperature: f64,
    /// Peak learning rate. Default 3e-4; higher ones, or more updates at them, collapse (measured).
    pub learning_rate: f64,
    /// Steps of linear warm-up. Default 5.
    pub warmup_steps: u64,
    /// The linear decay ends at this fraction of the peak, after `steps`. Default 0.1.
    pub final_fraction: f64,
    /// Decoupled weight decay. Default 0.
    pub weight_decay: f64,
    /// Times that a rollout is used. Default 1.
    pub epochs: usize,
    /// Optimizer steps an epoch; more where the trees do not fit in one batch. Default 1.
    pub minibatches: usize,
    /// Sizes for which the training step is compiled, any order; the smallest that fits is used.
    pub batches: Vec<Bucket>,
    /// Rows for which the decode step is compiled. Default 32, 96, 192.
    pub decode_rows: Vec<usize>,
    /// Rewards, advantages and loss. `t_max` is also the depth of the rollouts.
    pub credit: CreditOptions,
}

impl Default for RlOptions {
    fn default() -> Self {
        let bucket = |tokens, rows| Bucket { tokens, rows };
        Self {
            steps: 60,
            questions: 24,
            trajectories: 8,
            branching: 2,
            selection: Selection::Portool,
            max_step_tokens: 22,
            temperature: 0.7,
            learning_rate: 3e-4,
            warmup_steps: 5,
            final_fraction: 0.1,
            weight_decay: 0.0,
            epochs: 1,
            minibatches: 1,
            batches: vec![bucket(2048, 1536), bucket(3072, 2304), bucket(4096, 3072), bucket(6144, 4608)],
            decode_rows: vec![32, 96, 192],
            credit: CreditOptions::default(),
        }
    }
}

/// Evaluation on held-out questions, before and after reinforcement learning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationOptions {
    /// Questions. Default 400, for a standard error of about 2 points.
    pub questions: usize,
    /// Seed of the questions, so that runs of different seeds are asked the same. Default 1.
    pub seed: u64,
    /// Also evaluate every so many steps of reinforcement learning; 0 is never. Default 20.
    pub every: u64,
    /// Steps of a trajectory, at most. Default 5: the warm start's habits show in full.
    pub t_max: u32,
    /// Temperature of the second evaluation; the first is greedy. Default 1.
    pub temperature: f64,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self { questions: 400, seed: 1, every: 20, t_max: 5, temperature: 1.0 }
    }
}

/// Degrees of parallelism; the command line overrides them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parallelism {
    /// Tensor parallelism. Default 1.
    pub tp: usize,
    /// Data parallelism. Default 1.
    pub dp: usize,
    /// Expert parallelism. Default 1.
    pub ep: usize,
    /// Whether norms and residuals are sharded along the tokens. Default no.
    pub sequence_parallel: bool,
}

impl Default for Parallelism {
    fn default() -> Self {
        Self { tp: 1, dp: 1, ep: 1, sequence_parallel: false }
    }
}

/// The sizes for which a recipe needs compiled code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Tokens in the vocabulary are the task's; this is the longest sequence.
    pub context: usize,
    /// The batch of the warm start.
    pub sft: Bucket,
    /// The batches of reinforcement learning.
    pub rl: Vec<Bucket>,
    /// The decode calls and their cache.
    pub decode: DecodeShape,
}

impl Recipe {
    /// Reads and checks a recipe.
    pub fn from_json(text: &str) -> Result<Self, RecipeError> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let recipe: Self = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let field = error.path().to_string();
            RecipeError::json(error.into_inner(), &field)
        })?;
        reader.end().map_err(RecipeError::from)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The JSON Schema of the format.
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Recipe).to_value()
    }

    /// The sizes for which it needs compiled code.
    pub fn shapes(&self) -> Shapes {
        let context = self.model.max_position_embeddings;
        let live = self.rl.questions * self.rl.trajectories;
        Shapes {
            context,
            sft: self.sft.batch,
            rl: self.rl.batches.clone(),
            decode: DecodeShape::new(self.rl.decode_rows.clone(), live, context),
        }
    }

    /// The shape of a training rollout.
    pub fn rollout_options(&self) -> RolloutOptions {
        RolloutOptions {
            trajectories: self.rl.trajectories,
            branching: self.rl.branching,
            t_max: self.rl.credit.t_max,
            max_step_tokens: self.rl.max_step_tokens,
            context: self.model.max_position_embeddings,
            temperature: self.rl.temperature as f32,
        }
    }

    /// The shape of an evaluation: one chain a question.
    pub fn evaluation_options(&self, temperature: f64) -> RolloutOptions {
        RolloutOptions {
            trajectories: 1,
            branching: 1,
            t_max: self.evaluation.t_max,
            temperature: temperature as f32,
            ..self.rollout_options()
        }
    }
}

#[cfg(test)]
mod tests;
