//! Rollout trees: steps, trajectories, and how branches are chosen.

mod rollout;
mod select;

pub use rollout::{DecodeCounts, RolloutError, RolloutOptions, rollout};
pub use select::{Expansion, Selection};

use crate::credit::{NodeInput, TrajectoryInput, TreeInput};
use crate::task::{Checks, Ending, Token, format_score};

/// One step of a tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The step before; `None` for a first step.
    pub parent: Option<usize>,
    /// 1 for a first step.
    pub depth: u32,
    /// What the model wrote.
    pub tokens: Vec<Token>,
    /// The log-probability of each at the time and temperature of sampling.
    pub logp: Vec<f32>,
    /// What the environment answered, if the trajectory went on from here.
    pub response: Vec<Token>,
    /// How the step ended.
    pub ending: Ending,
    /// Which format checks it passed.
    pub checks: Checks,
}

/// A finished path through a tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trajectory {
    /// Its last step.
    pub leaf: usize,
    /// Whether that was an answer; else depth or context ran out.
    pub finished: bool,
    /// Its outcome reward.
    pub r_out: f64,
}

/// All that was sampled for one question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// The query.
    pub prompt: Vec<Token>,
    /// The steps, parents before children.
    pub nodes: Vec<Node>,
    /// The trajectories, by ascending leaf.
    pub trajectories: Vec<Trajectory>,
    /// Children that steps have beyond their first.
    pub forks_kept: usize,
    /// Live steps of which no fork was kept.
    pub branches_pruned: usize,
}

impl Tree {
    /// The steps to `leaf`, first step first.
    pub fn path(&self, leaf: usize) -> Vec<usize> {
        let parents = std::iter::successors(Some(leaf), |node| self.nodes[*node].parent);
        let mut path: Vec<_> = parents.collect();
        path.reverse();
        path
    }

    /// For each step, on how many trajectories it lies; 0 means that it was pruned.
    pub fn trajectories_through(&self) -> Vec<usize> {
        let mut through = vec![0; self.nodes.len()];
        for trajectory in &self.trajectories {
            through[trajectory.leaf] += 1;
        }
        for node in (0..self.nodes.len()).rev() {
            if let Some(parent) = self.nodes[node].parent {
                through[parent] += through[node];
            }
        }
        through
    }

    /// Tokens with each shared step once, and with each trajectory by itself.
    pub fn token_counts(&self) -> TokenCounts {
        let mut counts = TokenCounts {
            packed: self.prompt.len(),
            flattened: self.prompt.len() * self.trajectories.len(),
            flattened_model: 0,
        };
        for (node, through) in self.nodes.iter().zip(self.trajectories_through()) {
            let tokens = node.tokens.len() + node.response.len();
            counts.packed += if through > 0 { tokens } else { 0 };
            counts.flattened += tokens * through;
            counts.flattened_model += node.tokens.len() * through;
        }
        counts
    }

    /// The tree as the arithmetic of credit sees it when it was just sampled.
    pub fn credit_input(&self) -> TreeInput {
        let node = |node: &Node| {
            let logp: Vec<f64> = node.logp.iter().map(|value| f64::from(*value)).collect();
            NodeInput {
                parent: node.parent.map_or(-1, |parent| parent as i64),
                model_tokens: node.tokens.len(),
                tool_tokens: node.response.len(),
                format_score: format_score(&node.checks),
                old_logp: logp.clone(),
                ref_logp: logp.clone(),
                logp,
            }
        };
        let trajectory = |trajectory: &Trajectory| TrajectoryInput {
            leaf: trajectory.leaf as i64,
            finished: trajectory.finished,
            r_out: trajectory.r_out,
        };
        TreeInput {
            prompt_tokens: self.prompt.len(),
            nodes: self.nodes.iter().map(node).collect(),
            trajectories: self.trajectories.iter().map(trajectory).collect(),
        }
    }
}

/// Sizes of a tree in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Each shared step once; pruned steps not at all.
    pub packed: usize,
    /// Each trajectory by itself, with its prompt.
    pub flattened: usize,
    /// Of these the model's.
    pub flattened_model: usize,
}
