//! The data of one tree and the choices that the paper leaves open.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One step of a rollout tree, with its tokens' log-probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeInput {
    /// Index of the step before; −1 is the query. Parents stand before their children.
    pub parent: i64,
    /// Tokens that the model wrote. They come before the tool's.
    pub model_tokens: usize,
    /// Tokens of the tool's output: packed, but in no loss.
    #[serde(default)]
    pub tool_tokens: usize,
    /// Share of the format checks passed, 0 to 1.
    pub format_score: f64,
    /// Log-probability of each model token under the policy being trained.
    pub logp: Vec<f64>,
    /// The same under the policy that sampled the tokens.
    pub old_logp: Vec<f64>,
    /// The same under the reference policy; may be left out while `beta` is 0.
    #[serde(default)]
    pub ref_logp: Vec<f64>,
}

/// One trajectory: the path from the query to its last step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrajectoryInput {
    /// Index of the last step.
    pub leaf: i64,
    /// Whether it ended with an answer. One that did not can only have the outcome −1.
    pub finished: bool,
    /// Outcome reward.
    pub r_out: f64,
}

/// One rollout tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TreeInput {
    /// Tokens of the query.
    #[serde(default)]
    pub prompt_tokens: usize,
    /// All steps, parents first. A step on no trajectory was pruned.
    pub nodes: Vec<NodeInput>,
    /// The trajectories that survived.
    pub trajectories: Vec<TrajectoryInput>,
}

/// How the returns of the trajectories through a step become its reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Their mean.
    Mean,
    /// The best.
    Max,
    /// The worst.
    Min,
}

/// What stands for a whole trajectory when trajectories are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrajScore {
    /// Its outcome reward.
    Outcome,
    /// The mean of its step rewards.
    Mean,
    /// Their sum.
    Sum,
}

/// Whether trajectory advantages are divided by their standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrajNorm {
    /// Divided by std + eps.
    Std,
    /// Centred only.
    None,
}

/// Whether fork advantages are divided by their standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForkNorm {
    /// Divided by std + eps.
    Std,
    /// Divided where there are three or more siblings (two would give ±0.707 whatever the gap).
    #[serde(rename = "std_if_3")]
    StdIf3,
    /// Centred only.
    None,
}

/// How much each trajectory's tokens weigh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// 1/(n·|τ|): every trajectory weighs the same.
    Grpo,
    /// 1/Σ|τ|: every token weighs the same.
    Dapo,
    /// 1/(n·L): a constant.
    Drgrpo,
}

/// The choices of the estimator and of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Decay by the distance to the end, 0 to 1. Default 0.95 (PORTool's best).
    pub gamma: f64,
    /// Aggregator of the returns through a step. Default mean (not known from the paper).
    #[serde(rename = "G")]
    pub aggregate: Aggregate,
    /// Longest trajectory in steps; sets the range ±γ^t_max/2 of the format reward. Default 4.
    pub t_max: u32,
    /// What stands for a trajectory. Default outcome (measured better than mean on the mini-task).
    pub traj_score: TrajScore,
    /// Scale of the trajectory advantages. Default std (GRPO).
    pub traj_norm: TrajNorm,
    /// Scale of the fork advantages. Default none (measured better on the mini-task).
    pub fork_norm: ForkNorm,
    /// Weight of the trajectory-relative advantage. Default 1 (not known from the paper).
    pub w1: f64,
    /// Weight of the fork-relative advantage. Default 1 (not known from the paper); 0 on plain
    /// chains is GRPO.
    pub w2: f64,
    /// Added to every standard deviation. Default 1e-6.
    pub eps: f64,
    /// Weights of the trajectories. Default dapo (the mean over model tokens).
    pub weight: Weighting,
    /// The constant L of `drgrpo`, in tokens. Default 64.
    pub l_max: u32,
    /// The ratio is clipped below at 1 − clip_low. Default 0.2 (DAPO).
    pub clip_low: f64,
    /// The ratio is clipped above at 1 + clip_high. Default 0.28 (DAPO).
    pub clip_high: f64,
    /// Weight of the divergence from the reference policy. Default 0 (DAPO).
    pub beta: f64,
    /// Bounds the loss of negative advantages at this multiple. Default none.
    pub dual_clip: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gamma: 0.95,
            aggregate: Aggregate::Mean,
            t_max: 4,
            traj_score: TrajScore::Outcome,
            traj_norm: TrajNorm::Std,
            fork_norm: ForkNorm::None,
            w1: 1.0,
            w2: 1.0,
            eps: 1e-6,
            weight: Weighting::Dapo,
            l_max: 64,
            clip_low: 0.2,
            clip_high: 0.28,
            beta: 0.0,
            dual_clip: None,
        }
    }
}

/// What `t3c credit` reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The tree.
    pub input: TreeInput,
    /// The choices; what is left out has its default.
    #[serde(default)]
    pub options: Options,
}

/// Rewards, advantages and loss of a tree. Values by node are `None` where it was pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Credit {
    /// Format reward of each node.
    pub r_fm: Vec<Option<f64>>,
    /// Step reward of each node.
    pub r_step: Vec<Option<f64>>,
    /// Score of each trajectory.
    pub traj_score: Vec<f64>,
    /// Trajectory-relative advantage of each trajectory.
    pub a_traj: Vec<f64>,
    /// Fork-relative advantage of each node.
    pub a_fork: Vec<Option<f64>>,
    /// Blended advantage of each step of each trajectory, first step first.
    pub a: Vec<Vec<f64>>,
    /// Weight ω of each trajectory's tokens.
    pub weight: Vec<f64>,
    /// Σ ω·max(A, 0) over the trajectories through each node.
    pub a_plus: Vec<Option<f64>>,
    /// Σ ω·min(A, 0) over the trajectories through each node.
    pub a_minus: Vec<Option<f64>>,
    /// Σ ω over the trajectories through each node.
    pub weight_sum: Vec<Option<f64>>,
    /// The whole loss.
    pub loss: f64,
    /// Its clipped policy-gradient part.
    pub loss_pg: f64,
    /// Its divergence part.
    pub loss_kl: f64,
    /// Derivative of the loss in each model token's `logp`, a row a node.
    pub dlogp: Vec<Vec<f64>>,
}
