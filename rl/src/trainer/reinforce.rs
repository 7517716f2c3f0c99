//! One step of reinforcement learning: rollout, credit, packed updates.

use std::time::Instant;

use rand::seq::SliceRandom;

use super::metrics::share;
use super::{
    Decay, LearningRate, Policy, RlMetrics, StepOutcome, TrainError, Trainer, TreeSummary, train_step,
};
use crate::credit::{Credit, Weighting, credit};
use crate::pack::{Batch, Objective, Weighted, batches};
use crate::random::{Purpose, Seed};
use crate::task::{Split, Task};
use crate::tree::{DecodeCounts, TokenCounts, Tree, rollout};

impl<T: Task> Trainer<T> {
    /// One rollout and its updates.
    pub fn rl_step<P: Policy>(&mut self, policy: &mut P) -> Result<RlMetrics, TrainError<P::Error>> {
        let start = Instant::now();
        let step = self.state.rl_steps;
        let seed = Seed { seed: self.recipe.seed, step };
        let question =
            |item| self.task.question(Split::Training, &mut seed.stream(Purpose::Questions, item, 0));
        let questions: Vec<_> = (0..self.recipe.rl.questions as u64).map(question).collect();
        let options = self.recipe.rollout_options();
        let (trees, counts) = rollout(
            policy,
            &self.task,
            &questions,
            &options,
            &self.recipe.rl.selection,
            &self.shapes.decode,
            seed,
        )?;
        let facts = questions.iter().map(|question| self.task.facts(question));
        let mut metrics = RlMetrics { step: step + 1, ..RlMetrics::default() };
        metrics.rollout = TreeSummary::new(trees.iter().zip(facts));
        metrics.learning_rate = self.rl_schedule().at(step);
        metrics.rollout_seconds = start.elapsed().as_secs_f64();
        metrics.count_rollout(&trees, &counts);

        let credits = trees
            .iter()
            .map(|tree| credit(&tree.credit_input(), &self.recipe.rl.credit))
            .collect::<Result<Vec<_>, _>>()?;
        metrics.count_credit(&trees, &credits);
        self.update(policy, seed, &trees, &credits, &mut metrics)?;
        self.state.rl_steps += 1;
        self.state.sampled_tokens += counts.sampled as u64;
        let seconds = start.elapsed().as_secs_f64();
        metrics.train_seconds = seconds - metrics.rollout_seconds;
        metrics.tokens_per_second = share(counts.sampled as f64, seconds);
        Ok(metrics)
    }

    /// The optimizer steps on one rollout.
    fn update<P: Policy>(
        &mut self,
        policy: &mut P,
        seed: Seed,
        trees: &[Tree],
        credits: &[Credit],
        metrics: &mut RlMetrics,
    ) -> Result<(), TrainError<P::Error>> {
        let mut rows = 0.0;
        for epoch in 0..self.recipe.rl.epochs {
            let mut weighted = self.weigh(trees, credits);
            if self.recipe.rl.minibatches > 1 || self.recipe.rl.epochs > 1 {
                weighted.shuffle(&mut seed.stream(Purpose::Order, epoch as u64, 0));
            }
            for mut batch in batches(weighted, &self.shapes.rl, self.recipe.rl.minibatches)? {
                if self.recipe.rl.credit.beta > 0.0 {
                    batch.ref_logp = policy.reference_logp(&batch).map_err(TrainError::Policy)?;
                }
                let hyper = self.hyper(metrics.learning_rate);
                let outcome = train_step(policy, Objective::Portool, &batch, &hyper, metrics.step)?;
                rows += batch.used_rows as f64;
                let options = &self.recipe.rl.credit;
                metrics.count_update(&batch, &outcome, 1.0 - options.clip_low, 1.0 + options.clip_high);
            }
        }
        metrics.average(rows);
        Ok(())
    }

    /// Trees with the weights of the whole step: a tree's credit is normalised by itself.
    fn weigh<'a>(&self, trees: &'a [Tree], credits: &[Credit]) -> Vec<Weighted<'a>> {
        let options = &self.recipe.rl.credit;
        let tokens: Vec<_> = trees.iter().map(|tree| tree.token_counts().flattened_model as f64).collect();
        let all: f64 = tokens.iter().sum();
        let scale = |tokens: f64| match options.weight {
            Weighting::Dapo => tokens / all,
            Weighting::Grpo | Weighting::Drgrpo => 1.0 / trees.len() as f64,
        };
        let parts = trees.iter().zip(credits).zip(&tokens);
        parts
            .map(|((tree, credit), tokens)| Weighted::new(tree, credit, scale(*tokens), options.beta > 0.0))
            .collect()
    }

    fn rl_schedule(&self) -> LearningRate {
        let rl = &self.recipe.rl;
        LearningRate {
            peak: rl.learning_rate,
            warmup: rl.warmup_steps,
            steps: rl.steps,
            final_fraction: rl.final_fraction,
            decay: Decay::Linear,
        }
    }
}

impl RlMetrics {
    fn count_rollout(&mut self, trees: &[Tree], counts: &DecodeCounts) {
        self.sampled_tokens = counts.sampled;
        self.decode_calls = counts.calls;
        self.decode_rows = counts.rows;
        self.decode_padded_rows = counts.padded_rows;
        self.block_copies = counts.copies;
        self.forks_kept = trees.iter().map(|tree| tree.forks_kept).sum();
        self.branches_pruned = trees.iter().map(|tree| tree.branches_pruned).sum();
        let sizes: Vec<TokenCounts> = trees.iter().map(Tree::token_counts).collect();
        let packed: usize = sizes.iter().map(|size| size.packed).sum();
        let flattened: usize = sizes.iter().map(|size| size.flattened).sum();
        self.tree_token_ratio = share(packed as f64, flattened as f64);
        let (mut tokens, mut logp) = (0.0, 0.0);
        for tree in trees {
            for (node, through) in tree.nodes.iter().zip(tree.trajectories_through()) {
                tokens += (node.tokens.len() * through) as f64;
                logp += node.logp.iter().map(|value| f64::from(*value)).sum::<f64>() * through as f64;
            }
        }
        self.entropy = -share(logp, tokens);
    }

    fn count_credit(&mut self, trees: &[Tree], credits: &[Credit]) {
        let zero = credits.iter().filter(|credit| credit.a.iter().flatten().all(|a| *a == 0.0)).count();
        self.zero_variance_groups = share(zero as f64, credits.len() as f64);
        let (mut forks, mut zero) = (0.0, 0.0);
        for (tree, credit) in trees.iter().zip(credits) {
            // By parent, the query first: siblings on trajectories, and whether all have advantage 0.
            let mut groups = vec![(0, true); tree.nodes.len() + 1];
            for (node, advantage) in tree.nodes.iter().zip(&credit.a_fork) {
                let group = &mut groups[node.parent.map_or(0, |parent| parent + 1)];
                if let Some(advantage) = advantage {
                    *group = (group.0 + 1, group.1 && *advantage == 0.0);
                }
            }
            for (_, all_zero) in groups.into_iter().filter(|(siblings, _)| *siblings > 1) {
                forks += 1.0;
                zero += f64::from(all_zero);
            }
        }
        self.zero_variance_forks = share(zero, forks);
    }

    fn count_update(&mut self, batch: &Batch, outcome: &StepOutcome, low: f64, high: f64) {
        let mut largest: f64 = 0.0;
        let mut sum = 0.0;
        for (now, old) in outcome.logp.iter().zip(&batch.pack.old_logp).take(batch.used_rows) {
            let difference = f64::from(*now) - f64::from(*old);
            largest = largest.max(difference.abs());
            sum += difference.abs();
            self.kl -= difference;
            self.clip_fraction += f64::from(!(low..=high).contains(&difference.exp()));
        }
        if self.updates == 0 {
            self.logprob_abs_diff = largest;
            self.logprob_abs_diff_mean = share(sum, batch.used_rows as f64);
        }
        self.updates += 1;
        self.trained_tokens += batch.used_tokens;
        self.padded_tokens += batch.bucket.tokens;
        self.loss += f64::from(outcome.loss);
        self.loss_pg += f64::from(outcome.loss_pg);
        self.loss_kl += f64::from(outcome.loss_kl);
        self.grad_norm += f64::from(outcome.grad_norm);
    }

    /// Turns sums over rows and updates into means.
    fn average(&mut self, rows: f64) {
        self.kl = share(self.kl, rows);
        self.clip_fraction = share(self.clip_fraction, rows);
        let updates = self.updates as f64;
        for sum in [&mut self.loss, &mut self.loss_pg, &mut self.loss_kl, &mut self.grad_norm] {
            *sum = share(*sum, updates);
        }
    }
}
