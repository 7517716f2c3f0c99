//! From outcomes and format scores to advantages by node.

use super::types::{Aggregate, ForkNorm, Options, TrajScore, TreeInput, Weighting};

/// What of a tree the arithmetic needs again and again.
pub(super) struct Shape {
    /// For each trajectory its nodes, first step first. T_k is the length.
    pub paths: Vec<Vec<usize>>,
    /// For each node the trajectories through it, m(s). Empty where it was pruned.
    pub through: Vec<Vec<usize>>,
    /// For each node its depth; 1 is the first step.
    pub depth: Vec<usize>,
    /// The forks: children of one parent that were not pruned. First that of the query.
    pub forks: Vec<Vec<usize>>,
    /// Model tokens of each trajectory, |τ|.
    pub tokens: Vec<usize>,
}

/// Σ ω·max(A, 0), Σ ω·min(A, 0) and Σ ω by node.
pub(super) struct Merged {
    pub a_plus: Vec<f64>,
    pub a_minus: Vec<f64>,
    pub weight_sum: Vec<f64>,
}

impl Shape {
    /// Of a checked tree.
    pub fn of(input: &TreeInput) -> Self {
        let nodes = input.nodes.len();
        let parent = |node: usize| usize::try_from(input.nodes[node].parent).ok();
        let mut depth = vec![1; nodes];
        for node in 0..nodes {
            depth[node] = parent(node).map_or(1, |parent| depth[parent] + 1);
        }
        let mut through = vec![Vec::new(); nodes];
        let mut paths = Vec::new();
        for (index, trajectory) in input.trajectories.iter().enumerate() {
            let mut path = Vec::new();
            let mut node = usize::try_from(trajectory.leaf).ok();
            while let Some(current) = node {
                path.push(current);
                through[current].push(index);
                node = parent(current);
            }
            path.reverse();
            paths.push(path);
        }
        let mut forks = vec![Vec::new(); nodes + 1];
        for (node, trajectories) in through.iter().enumerate() {
            if !trajectories.is_empty() {
                forks[parent(node).map_or(0, |parent| parent + 1)].push(node);
            }
        }
        let tokens = |path: &Vec<usize>| path.iter().map(|n| input.nodes[*n].model_tokens).sum();
        let tokens = paths.iter().map(tokens).collect();
        Self { paths, through, depth, forks, tokens }
    }
}

/// R_fm: the format score mapped to ±γ^T_max/2, so that a correct descendant always outranks form.
pub(super) fn format(input: &TreeInput, options: &Options, shape: &Shape) -> Vec<f64> {
    let half = power(options.gamma, options.t_max as usize) / 2.0;
    let reward = |node: usize| match shape.through[node].is_empty() {
        true => 0.0,
        false => (2.0 * input.nodes[node].format_score - 1.0) * half,
    };
    (0..input.nodes.len()).map(reward).collect()
}

/// R(s) = G over the trajectories through s of γ^(T − t)·R_out + R_fm.
pub(super) fn steps(input: &TreeInput, options: &Options, shape: &Shape, r_fm: &[f64]) -> Vec<f64> {
    let reward = |node: usize| {
        let returns = shape.through[node].iter().map(|index| {
            let distance = shape.paths[*index].len() - shape.depth[node];
            power(options.gamma, distance) * input.trajectories[*index].r_out + r_fm[node]
        });
        aggregate(options.aggregate, returns)
    };
    (0..input.nodes.len()).map(reward).collect()
}

fn aggregate(how: Aggregate, values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    match how {
        Aggregate::Mean => values.sum::<f64>() / count,
        Aggregate::Max => values.reduce(f64::max).unwrap_or(0.0),
        Aggregate::Min => values.reduce(f64::min).unwrap_or(0.0),
    }
}

fn power(base: f64, exponent: usize) -> f64 {
    // 0^0 = 1: with γ = 0 only the last step sees the outcome.
    base.powi(i32::try_from(exponent).unwrap_or(i32::MAX))
}

pub(super) fn trajectory_scores(
    input: &TreeInput,
    options: &Options,
    shape: &Shape,
    r_step: &[f64],
) -> Vec<f64> {
    let score = |(path, outcome): (&Vec<usize>, f64)| {
        let sum: f64 = path.iter().map(|node| r_step[*node]).sum();
        match options.traj_score {
            TrajScore::Outcome => outcome,
            TrajScore::Mean => sum / path.len() as f64,
            TrajScore::Sum => sum,
        }
    };
    let outcomes = input.trajectories.iter().map(|trajectory| trajectory.r_out);
    shape.paths.iter().zip(outcomes).map(score).collect()
}

/// Values less their mean, divided by the unbiased standard deviation + eps if `scaled`. Equal
/// values give exact zeros, where rounding of the mean over a tiny deviation would give anything.
pub(super) fn centred(values: &[f64], scaled: bool, eps: f64) -> Vec<f64> {
    if values.iter().all(|value| *value == values[0]) {
        return vec![0.0; values.len()];
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let scale = if scaled { (squares / (count - 1.0)).sqrt() + eps } else { 1.0 };
    values.iter().map(|value| (value - mean) / scale).collect()
}

pub(super) fn fork_advantages(options: &Options, shape: &Shape, r_step: &[f64]) -> Vec<f64> {
    let mut advantages = vec![0.0; r_step.len()];
    for siblings in &shape.forks {
        let scaled = match options.fork_norm {
            ForkNorm::Std => true,
            ForkNorm::StdIf3 => siblings.len() >= 3,
            ForkNorm::None => false,
        };
        let rewards: Vec<f64> = siblings.iter().map(|node| r_step[*node]).collect();
        for (node, advantage) in siblings.iter().zip(centred(&rewards, scaled, options.eps)) {
            advantages[*node] = advantage;
        }
    }
    advantages
}

pub(super) fn blend(options: &Options, shape: &Shape, a_traj: &[f64], a_fork: &[f64]) -> Vec<Vec<f64>> {
    let row = |(path, a_traj): (&Vec<usize>, &f64)| {
        path.iter().map(|node| options.w1 * a_traj + options.w2 * a_fork[*node]).collect()
    };
    shape.paths.iter().zip(a_traj).map(row).collect()
}

pub(super) fn weights(input: &TreeInput, options: &Options, shape: &Shape) -> Vec<f64> {
    let count = input.trajectories.len() as f64;
    let total = shape.tokens.iter().sum::<usize>() as f64;
    let weight = |tokens: &usize| match options.weight {
        Weighting::Grpo => 1.0 / (count * *tokens as f64),
        Weighting::Dapo => 1.0 / total,
        Weighting::Drgrpo => 1.0 / (count * f64::from(options.l_max)),
    };
    shape.tokens.iter().map(weight).collect()
}

pub(super) fn merge(shape: &Shape, a: &[Vec<f64>], weight: &[f64]) -> Merged {
    let nodes = shape.through.len();
    let zero = vec![0.0; nodes];
    let mut merged = Merged { a_plus: zero.clone(), a_minus: zero.clone(), weight_sum: zero };
    for ((path, row), weight) in shape.paths.iter().zip(a).zip(weight) {
        for (node, advantage) in path.iter().zip(row) {
            merged.a_plus[*node] += weight * advantage.max(0.0);
            merged.a_minus[*node] += weight * advantage.min(0.0);
            merged.weight_sum[*node] += weight;
        }
    }
    merged
}
