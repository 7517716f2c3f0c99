//! Rollout trees and traces as the flat arrays of a training step.
//!
//! Tokens stand in depth-first preorder, and one array says what each sees: token j is visible to
//! token i iff `j <= i < subtree_end[j]`. A shared prefix stands once; positions are depths, so that a
//! token has the position it was decoded at. Only tokens that the model wrote are loss rows. A row
//! names the token whose hidden state predicts the target: the target's parent in the tree, which at
//! a fork is the same for several targets.

mod batch;

pub use batch::{Batch, Bucket, Objective, TooLarge, batches, sft_batch};

use std::ops::Range;

use crate::credit::Credit;
use crate::task::Token;
use crate::tree::Tree;

/// Packed arrays that still grow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pack {
    /// Tokens in depth-first preorder.
    pub tokens: Vec<Token>,
    /// Depth of each token.
    pub position: Vec<i32>,
    /// End of each token's subtree.
    pub subtree_end: Vec<i32>,
    /// For each loss row the token that predicts it.
    pub rows: Vec<i32>,
    /// The token predicted.
    pub targets: Vec<Token>,
    /// Its log-probability when it was sampled.
    pub old_logp: Vec<f32>,
    /// Σ ω·max(A, 0).
    pub a_plus: Vec<f32>,
    /// Σ ω·min(A, 0).
    pub a_minus: Vec<f32>,
    /// Σ ω.
    pub weight: Vec<f32>,
}

/// What the loss of a step's tokens is weighted with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWeights {
    /// Σ ω·max(A, 0).
    pub a_plus: f64,
    /// Σ ω·min(A, 0).
    pub a_minus: f64,
    /// Σ ω.
    pub weight: f64,
}

impl StepWeights {
    fn scaled(self, scale: f64) -> Self {
        let Self { a_plus, a_minus, weight } = self;
        Self { a_plus: a_plus * scale, a_minus: a_minus * scale, weight: weight * scale }
    }

    fn is_zero(self, with_divergence: bool) -> bool {
        self.a_plus == 0.0 && self.a_minus == 0.0 && !(with_divergence && self.weight != 0.0)
    }
}

/// A tree with the weights of its steps: what [`batches`] packs.
#[derive(Clone, Debug)]
pub struct Weighted<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Weights by node, zero where it was pruned.
    pub weights: Vec<StepWeights>,
    /// For each node whether it or a descendant has a weight.
    needed: Vec<bool>,
}

impl<'a> Weighted<'a> {
    /// The tree with its credit times `scale`. Steps without any weight at or below them are left
    /// out of packs: their gradient is zero. `with_divergence` says whether Σ ω counts.
    pub fn new(tree: &'a Tree, credit: &Credit, scale: f64, with_divergence: bool) -> Self {
        let value = |values: &[Option<f64>], node: usize| values[node].unwrap_or(0.0);
        let weights: Vec<_> = (0..tree.nodes.len())
            .map(|node| StepWeights {
                a_plus: value(&credit.a_plus, node),
                a_minus: value(&credit.a_minus, node),
                weight: value(&credit.weight_sum, node),
            })
            .map(|weights| weights.scaled(scale))
            .collect();
        let mut needed: Vec<_> = weights.iter().map(|weights| !weights.is_zero(with_divergence)).collect();
        for node in (0..tree.nodes.len()).rev() {
            if let Some(parent) = tree.nodes[node].parent {
                needed[parent] |= needed[node];
            }
        }
        Self { tree, weights, needed }
    }

    /// Whether nothing of the tree has a gradient.
    pub fn is_zero(&self) -> bool {
        !self.needed.contains(&true)
    }

    /// Tokens and loss rows in a pack.
    pub fn size(&self) -> (usize, usize) {
        let needed = self.tree.nodes.iter().zip(&self.needed).filter(|(_, needed)| **needed);
        needed.fold((self.tree.prompt.len(), 0), |(tokens, rows), (node, _)| {
            (tokens + node.tokens.len() + node.response.len(), rows + node.tokens.len())
        })
    }

    /// The same with every weight multiplied.
    pub fn scaled(mut self, scale: f64) -> Self {
        self.weights.iter_mut().for_each(|weights| *weights = weights.scaled(scale));
        self
    }
}

impl Pack {
    /// Adds a tree. A shared step is added once.
    pub fn tree(&mut self, weighted: &Weighted<'_>) {
        let nodes = weighted.tree.nodes.len();
        let mut children = vec![Vec::new(); nodes + 1];
        for node in (0..nodes).filter(|node| weighted.needed[*node]) {
            children[weighted.tree.nodes[node].parent.map_or(0, |parent| parent + 1)].push(node);
        }
        let start = self.tokens.len();
        self.environment(&weighted.tree.prompt, 0);
        let end = self.tokens.len();
        for child in &children[0] {
            self.subtree(weighted, &children, *child, end - 1);
        }
        self.close(start..end);
    }

    /// Adds a step, predicted by the token at `parent`, and what follows it.
    fn subtree(&mut self, weighted: &Weighted<'_>, children: &[Vec<usize>], node: usize, parent: usize) {
        let step = &weighted.tree.nodes[node];
        let start = self.tokens.len();
        self.model(&step.tokens, &step.logp, parent, weighted.weights[node]);
        self.environment(&step.response, self.position[self.tokens.len() - 1] + 1);
        let end = self.tokens.len();
        for child in &children[node + 1] {
            self.subtree(weighted, children, *child, end - 1);
        }
        self.close(start..end);
    }

    /// Adds trajectories one by one, shared steps as often as trajectories pass through them: the
    /// slow form that [`Pack::tree`] is equal to.
    pub fn flattened(&mut self, tree: &Tree, credit: &Credit) {
        for (index, trajectory) in tree.trajectories.iter().enumerate() {
            let start = self.tokens.len();
            self.environment(&tree.prompt, 0);
            for (node, advantage) in tree.path(trajectory.leaf).into_iter().zip(&credit.a[index]) {
                let step = &tree.nodes[node];
                let weight = credit.weight[index];
                let weights = StepWeights {
                    a_plus: weight * advantage.max(0.0),
                    a_minus: weight * advantage.min(0.0),
                    weight,
                };
                self.model(&step.tokens, &step.logp, self.tokens.len() - 1, weights);
                self.environment(&step.response, (self.tokens.len() - start) as i32);
            }
            self.close(start..self.tokens.len());
        }
    }

    /// Adds a prompt and a trace whose model tokens weigh `weight` each.
    pub fn trace(&mut self, prompt: &[Token], tokens: &[Token], is_model: &[bool], weight: f32) {
        let start = self.tokens.len();
        self.environment(prompt, 0);
        for (token, is_model) in tokens.iter().zip(is_model) {
            if *is_model {
                self.rows.push(self.tokens.len() as i32 - 1);
                self.targets.push(*token);
                self.old_logp.push(0.0);
                self.a_plus.push(0.0);
                self.a_minus.push(0.0);
                self.weight.push(weight);
            }
            self.environment(&[*token], (self.tokens.len() - start) as i32);
        }
        self.close(start..self.tokens.len());
    }

    /// Tokens without loss, from `position` on.
    fn environment(&mut self, tokens: &[Token], position: i32) {
        self.tokens.extend_from_slice(tokens);
        self.position.extend((position..).take(tokens.len()));
        self.subtree_end.resize(self.tokens.len(), 0);
    }

    /// A step's own tokens, each predicted by the one before it.
    fn model(&mut self, tokens: &[Token], logp: &[f32], parent: usize, weights: StepWeights) {
        let start = self.tokens.len();
        let position = self.position[parent] + 1;
        for index in 0..tokens.len() {
            self.rows.push(if index == 0 { parent } else { start + index - 1 } as i32);
        }
        self.targets.extend_from_slice(tokens);
        self.old_logp.extend_from_slice(logp);
        self.a_plus.resize(self.targets.len(), weights.a_plus as f32);
        self.a_minus.resize(self.targets.len(), weights.a_minus as f32);
        self.weight.resize(self.targets.len(), weights.weight as f32);
        self.environment(tokens, position);
    }

    /// Nothing after the tokens packed so far descends from `segment`.
    fn close(&mut self, segment: Range<usize>) {
        let end = self.tokens.len() as i32;
        self.subtree_end[segment].fill(end);
    }
}

#[cfg(test)]
mod tests;
