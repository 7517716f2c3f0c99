//! What a step reports. The doc comment of a field says how it is computed.

use serde::{Deserialize, Serialize};

use crate::task::{CHECKS, Ending, Facts, format_score};
use crate::tree::{Node, Tree};

/// Accuracy on the questions that need a given number of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CallAccuracy {
    /// Calls of the shortest plan.
    pub planned_calls: usize,
    /// Trajectories on answerable questions with such a plan.
    pub trajectories: usize,
    /// Share of them that are right.
    pub accuracy: f64,
}

/// What a set of trees says about the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TreeSummary {
    /// Mean outcome reward over all trajectories.
    pub reward: f64,
    /// Share of right answers among trajectories on answerable questions.
    pub accuracy: f64,
    /// The same by planned calls.
    pub accuracy_by_calls: Vec<CallAccuracy>,
    /// Mean calls of a trajectory on an answerable question.
    pub tool_calls: f64,
    /// Mean calls of the shortest plans of the same.
    pub planned_calls: f64,
    /// Mean calls beyond the plan of the same; calls too few count 0.
    pub extra_calls: f64,
    /// Share of `cannot` on answerable questions: the paper's unanswerable rate.
    pub cannot: f64,
    /// Share of `cannot` on questions with a withheld tool.
    pub rightly_cannot: f64,
    /// Share of all trajectories that ended without an answer.
    pub unfinished: f64,
    /// Share of calls that failed, unreadable ones included, over all trajectories.
    pub tool_failures: f64,
    /// Mean format score of the steps of trajectories, shared steps counted as often as shared.
    pub format_score: f64,
}

/// One step of the warm start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SftMetrics {
    /// The step, from 1.
    pub step: u64,
    /// Mean of −logp over the batch's model tokens.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Tokens of the batch without padding.
    pub tokens: usize,
    /// Seconds of the step.
    pub seconds: f64,
    /// Tokens by seconds.
    pub tokens_per_second: f64,
}

/// One step of reinforcement learning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RlMetrics {
    /// The step, from 1.
    pub step: u64,
    /// What the rollout says about the policy before the step.
    #[serde(flatten)]
    pub rollout: TreeSummary,
    /// Tokens sampled in the rollout, pruned branches included.
    pub sampled_tokens: usize,
    /// Sampled tokens by seconds of the whole step.
    pub tokens_per_second: f64,
    /// Children of steps beyond their first, over all trees.
    pub forks_kept: usize,
    /// Live steps of which no fork was kept, over all trees.
    pub branches_pruned: usize,
    /// Tokens with shared steps once, by tokens trajectory by trajectory, over all trees.
    pub tree_token_ratio: f64,
    /// Share of questions whose steps all have advantage 0.
    pub zero_variance_groups: f64,
    /// Share of forks (two siblings or more) whose steps all have fork advantage 0; 0 if none forked.
    pub zero_variance_forks: f64,
    /// Mean of −logp over sampled tokens of trajectories, an estimate of the entropy.
    pub entropy: f64,
    /// Mean over loss rows and updates of old_logp − logp: how far the policy moved from the one
    /// that sampled, before each update.
    pub kl: f64,
    /// Share of loss rows, over updates, whose ratio lies outside the clip range.
    pub clip_fraction: f64,
    /// Largest |logp − old_logp| over the loss rows of the first update, where both are the same
    /// policy's: what decoding and training disagree by.
    pub logprob_abs_diff: f64,
    /// Its mean.
    pub logprob_abs_diff_mean: f64,
    /// The loss, mean over updates.
    pub loss: f64,
    /// Its policy-gradient part.
    pub loss_pg: f64,
    /// Its divergence part.
    pub loss_kl: f64,
    /// Norm of the gradient before clipping, mean over updates.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Optimizer steps; 0 where no trajectory had an advantage.
    pub updates: usize,
    /// Tokens trained on without padding, over updates.
    pub trained_tokens: usize,
    /// The same with padding.
    pub padded_tokens: usize,
    /// Decode calls.
    pub decode_calls: usize,
    /// Rows decoded without padding.
    pub decode_rows: usize,
    /// The same with padding.
    pub decode_padded_rows: usize,
    /// Cache blocks copied on write.
    pub block_copies: usize,
    /// Seconds of the rollout.
    pub rollout_seconds: f64,
    /// Seconds of credit, packing and updates.
    pub train_seconds: f64,
}

/// A share that is 0 where there is nothing to share.
pub(super) fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[derive(Default)]
struct Sums {
    trajectories: f64,
    reward: f64,
    answerable: f64,
    right: f64,
    calls: f64,
    planned: f64,
    extra: f64,
    cannot: f64,
    withheld: f64,
    rightly_cannot: f64,
    unfinished: f64,
    all_calls: f64,
    failed_calls: f64,
    steps: f64,
    format: f64,
}

impl TreeSummary {
    /// Of trees and what is known about their questions.
    pub(super) fn new<'a>(trees: impl Iterator<Item = (&'a Tree, Facts)>) -> Self {
        let mut sums = Sums::default();
        let mut by_calls: Vec<(f64, f64)> = Vec::new();
        for (tree, facts) in trees {
            for trajectory in &tree.trajectories {
                let path: Vec<&Node> = tree.path(trajectory.leaf).iter().map(|n| &tree.nodes[*n]).collect();
                let right = f64::from(trajectory.r_out > 0.0);
                sums.trajectories += 1.0;
                sums.reward += trajectory.r_out;
                sums.unfinished += f64::from(!trajectory.finished);
                sums.steps += path.len() as f64;
                sums.format += path.iter().map(|step| format_score(&step.checks)).sum::<f64>();
                for call in path.iter().filter(|step| step.ending == Ending::Call) {
                    sums.all_calls += 1.0;
                    sums.failed_calls += f64::from(!call.checks[CHECKS - 1]);
                }
                let cannot = f64::from(path.last().is_some_and(|step| step.ending == Ending::Cannot));
                if facts.answerable {
                    sums.answer(facts, &path, right, cannot);
                    by_calls.resize(by_calls.len().max(facts.planned_calls + 1), (0.0, 0.0));
                    by_calls[facts.planned_calls].0 += 1.0;
                    by_calls[facts.planned_calls].1 += right;
                } else {
                    sums.withheld += 1.0;
                    sums.rightly_cannot += cannot;
                }
            }
        }
        sums.summary(&by_calls)
    }
}

impl Sums {
    fn answer(&mut self, facts: Facts, path: &[&Node], right: f64, cannot: f64) {
        let calls = path.iter().filter(|step| step.ending == Ending::Call).count();
        self.answerable += 1.0;
        self.right += right;
        self.calls += calls as f64;
        self.planned += facts.planned_calls as f64;
        self.extra += calls.saturating_sub(facts.planned_calls) as f64;
        self.cannot += cannot;
    }

    fn summary(&self, by_calls: &[(f64, f64)]) -> TreeSummary {
        let by_calls = by_calls.iter().enumerate().filter(|(_, (count, _))| *count > 0.0);
        TreeSummary {
            reward: share(self.reward, self.trajectories),
            accuracy: share(self.right, self.answerable),
            accuracy_by_calls: by_calls
                .map(|(planned_calls, (count, right))| CallAccuracy {
                    planned_calls,
                    trajectories: *count as usize,
                    accuracy: share(*right, *count),
                })
                .collect(),
            tool_calls: share(self.calls, self.answerable),
            planned_calls: share(self.planned, self.answerable),
            extra_calls: share(self.extra, self.answerable),
            cannot: share(self.cannot, self.answerable),
            rightly_cannot: share(self.rightly_cannot, self.withheld),
            unfinished: share(self.unfinished, self.trajectories),
            tool_failures: share(self.failed_calls, self.all_calls),
            format_score: share(self.format, self.steps),
        }
    }
}
