//! How good the policy is on questions it was not trained on.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Event, Policy, TrainError, Trainer, TreeSummary};
use crate::decode::Decoder;
use crate::random::{Purpose, Seed};
use crate::task::{Split, Task, Token};
use crate::tree::{Selection, Tree, rollout};

/// Steps from here on seed evaluations: no training step gets there.
const EVALUATION_STEPS: u64 = 1 << 48;

/// One evaluation: a chain a question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Warm-start steps done.
    pub sft_steps: u64,
    /// Steps of reinforcement learning done.
    pub rl_steps: u64,
    /// Temperature of sampling; 0 is greedy.
    pub temperature: f64,
    /// Questions asked.
    pub questions: usize,
    /// What the answers say.
    #[serde(flatten)]
    pub summary: TreeSummary,
    /// Seconds it took.
    pub seconds: f64,
}

/// A held-out question and what the policy made of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transcript {
    /// The prompt, the policy's steps and the environment's answers.
    pub tokens: Vec<Token>,
    /// The outcome reward.
    pub r_out: f64,
}

impl<T: Task> Trainer<T> {
    /// What the policy, greedily, makes of the first `count` held-out questions.
    pub fn transcripts<D: Decoder>(
        &self,
        policy: &mut D,
        count: usize,
    ) -> Result<Vec<Transcript>, TrainError<D::Error>> {
        let seed = Seed { seed: self.recipe.evaluation.seed, step: EVALUATION_STEPS };
        let questions = &self.held_out[..count.min(self.held_out.len())];
        let options = self.recipe.evaluation_options(0.0);
        let decode = &self.shapes.decode;
        let (trees, _) = rollout(policy, &self.task, questions, &options, &Selection::Chains, decode, seed)?;
        let transcript = |tree: &Tree| {
            let trajectory = tree.trajectories.first()?;
            let mut tokens = tree.prompt.clone();
            for node in tree.path(trajectory.leaf) {
                tokens.extend_from_slice(&tree.nodes[node].tokens);
                tokens.extend_from_slice(&tree.nodes[node].response);
            }
            Some(Transcript { tokens, r_out: trajectory.r_out })
        };
        Ok(trees.iter().filter_map(transcript).collect())
    }

    /// Asks the held-out questions. The same parameters always give the same answers.
    pub fn evaluate<D: Decoder>(
        &self,
        policy: &mut D,
        temperature: f64,
    ) -> Result<Evaluation, TrainError<D::Error>> {
        let seed = Seed { seed: self.recipe.evaluation.seed, step: EVALUATION_STEPS };
        self.ask(policy, &self.held_out, temperature, seed)
    }

    /// Decides, every so many steps, whether the warm start is good enough.
    pub(super) fn probe<P: Policy>(
        &self,
        policy: &mut P,
        events: &mut Vec<Event>,
    ) -> Result<bool, TrainError<P::Error>> {
        let Some(stop) = self.recipe.sft.stop else { return Ok(false) };
        let step = self.state.sft_steps;
        if step == 0 || !step.is_multiple_of(stop.every) {
            return Ok(false);
        }
        let seed = Seed { seed: self.recipe.seed, step: EVALUATION_STEPS + 1 + step };
        let question = |item| self.task.question(Split::Training, &mut seed.stream(Purpose::Probe, item, 0));
        let questions: Vec<_> = (0..stop.questions as u64).map(question).collect();
        let evaluation = self.ask(policy, &questions, 1.0, seed)?;
        let good_enough = evaluation.summary.accuracy >= stop.accuracy;
        events.push(Event::Probe(evaluation));
        Ok(good_enough)
    }

    fn ask<D: Decoder>(
        &self,
        policy: &mut D,
        questions: &[T::Question],
        temperature: f64,
        seed: Seed,
    ) -> Result<Evaluation, TrainError<D::Error>> {
        let start = Instant::now();
        let options = self.recipe.evaluation_options(temperature);
        let (trees, _) =
            rollout(policy, &self.task, questions, &options, &Selection::Chains, &self.shapes.decode, seed)?;
        let facts = questions.iter().map(|question| self.task.facts(question));
        Ok(Evaluation {
            sft_steps: self.state.sft_steps,
            rl_steps: self.state.rl_steps,
            temperature,
            questions: questions.len(),
            summary: TreeSummary::new(trees.iter().zip(facts)),
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}
