//! The loop: a warm start on the teacher's traces, then rollouts, credit and updates.
//!
//! The loop fills the inputs of compiled code and reads its outputs; what a step computes is not
//! known here. Everything random is drawn by (seed, step), so a [`State`] of a few counters, with the
//! policy's parameters, is all that a resumed run needs.

mod evaluate;
mod metrics;
mod reinforce;
mod schedule;
mod warm_start;

pub use evaluate::{Evaluation, Transcript};
pub use metrics::{CallAccuracy, RlMetrics, SftMetrics, TreeSummary};
pub use schedule::{Decay, LearningRate};

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::credit::CreditError;
use crate::decode::Decoder;
use crate::pack::{Batch, Objective, TooLarge};
use crate::random::{Purpose, Seed};
use crate::recipe::{Recipe, Shapes};
use crate::task::{Split, Task};
use crate::tree::RolloutError;

/// The scalars of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f32,
    /// 1 − β1^t at optimizer step t = 1, 2, ….
    pub bias1: f32,
    /// 1 − β2^t.
    pub bias2: f32,
}

/// What one optimizer step reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutcome {
    /// The loss.
    pub loss: f32,
    /// Its policy-gradient part; 0 in the warm start.
    pub loss_pg: f32,
    /// Its divergence part.
    pub loss_kl: f32,
    /// Log-probability of each target before the update, padding included.
    pub logp: Vec<f32>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
}

/// A model in training.
pub trait Policy: Decoder {
    /// One optimizer step on a packed batch. The next decode uses the new parameters.
    fn train(
        &mut self,
        objective: Objective,
        batch: &Batch,
        hyper: &Hyper,
    ) -> Result<StepOutcome, Self::Error>;

    /// Sets the optimizer's moments to zero: a new phase begins.
    fn reset_optimizer(&mut self) -> Result<(), Self::Error>;

    /// Keeps a copy of the parameters as the reference policy. Called only where `beta` > 0.
    fn keep_reference(&mut self) -> Result<(), Self::Error>;

    /// Log-probability of each target under the reference policy, padding included, at the recipe's
    /// temperature. Called only where `beta` > 0.
    fn reference_logp(&mut self, batch: &Batch) -> Result<Vec<f32>, Self::Error>;
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// In the warm start.
    #[default]
    Sft,
    /// In reinforcement learning.
    Rl,
    /// At its end.
    Done,
}

/// The counters that, with the policy, make a run resumable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The phase.
    pub phase: Phase,
    /// Warm-start steps done.
    pub sft_steps: u64,
    /// Steps of reinforcement learning done.
    pub rl_steps: u64,
    /// Optimizer steps done in this phase.
    pub optimizer_steps: u64,
    /// Tokens of warm-start batches so far.
    pub sft_tokens: u64,
    /// Tokens sampled in reinforcement learning so far.
    pub sampled_tokens: u64,
}

/// Why training stopped.
#[derive(Debug, Error)]
pub enum TrainError<E: std::error::Error> {
    /// The policy failed.
    #[error(transparent)]
    Policy(E),
    /// A rollout failed.
    #[error(transparent)]
    Rollout(#[from] RolloutError<E>),
    /// A tree without meaning: the policy's log-probabilities are not finite.
    #[error("a rollout has no credit: {0}")]
    Credit(#[from] CreditError),
    /// A tree or trace that fits no batch.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A step that does not report one log-probability a loss row.
    #[error("the policy reported {found} log-probabilities for {expected} loss rows")]
    Outcome {
        /// Values reported.
        found: usize,
        /// Loss rows of the batch.
        expected: usize,
    },
    /// A loss or gradient that is not finite: going on would lose the parameters.
    #[error("step {step}: the {what} is {value}")]
    Diverged {
        /// The step of the phase.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f32,
    },
}

/// What happened, for whoever shows or records it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// One step of the warm start.
    Sft(SftMetrics),
    /// The warm start's accuracy on fresh training questions.
    Probe(Evaluation),
    /// One step of reinforcement learning.
    Rl(RlMetrics),
    /// An evaluation on held-out questions.
    Evaluated(Evaluation),
    /// The phase changed.
    Phase {
        /// The new phase.
        phase: Phase,
    },
}

/// Takes events as they happen, with the policy and the state at that moment (to save both).
pub trait Sink<P> {
    /// `Break` ends the run after the events of this step; a run resumed from `state` goes on as if
    /// it had never stopped.
    fn event(&mut self, event: &Event, policy: &mut P, state: &State) -> ControlFlow<()>;
}

impl<P, F: FnMut(&Event, &mut P, &State) -> ControlFlow<()>> Sink<P> for F {
    fn event(&mut self, event: &Event, policy: &mut P, state: &State) -> ControlFlow<()> {
        self(event, policy, state)
    }
}

/// A run: recipe, task, and where it stands.
#[derive(Debug)]
pub struct Trainer<T: Task> {
    recipe: Recipe,
    shapes: Shapes,
    task: T,
    held_out: Vec<T::Question>,
    state: State,
}

impl<T: Task> Trainer<T> {
    /// A run at its beginning, or where `state` says. The recipe should have been checked.
    pub fn new(recipe: Recipe, task: T, state: State) -> Self {
        let seed = Seed { seed: recipe.evaluation.seed, step: 0 };
        let held_out = (0..recipe.evaluation.questions as u64)
            .map(|item| task.question(Split::HeldOut, &mut seed.stream(Purpose::HeldOut, item, 0)))
            .collect();
        Self { shapes: recipe.shapes(), recipe, task, held_out, state }
    }

    /// Where the run stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The task.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// Runs to the end, or until the sink breaks. The held-out questions are asked when the warm
    /// start ends, every `evaluation.every` steps, and at the end.
    pub fn run<P: Policy>(
        &mut self,
        policy: &mut P,
        sink: &mut impl Sink<P>,
    ) -> Result<State, TrainError<P::Error>> {
        while self.state.phase != Phase::Done {
            let mut goes_on = true;
            for event in self.advance(policy)? {
                goes_on &= sink.event(&event, policy, &self.state).is_continue();
            }
            if !goes_on {
                break;
            }
        }
        Ok(self.state)
    }

    /// One step of the current phase, with the probe, evaluation or change of phase that follows.
    pub fn advance<P: Policy>(&mut self, policy: &mut P) -> Result<Vec<Event>, TrainError<P::Error>> {
        let mut events = Vec::new();
        match self.state.phase {
            Phase::Sft => {
                if self.state.sft_steps < self.recipe.sft.steps {
                    events.push(Event::Sft(self.sft_step(policy)?));
                }
                let good_enough = self.probe(policy, &mut events)?;
                if good_enough || self.state.sft_steps >= self.recipe.sft.steps {
                    self.begin_reinforcement(policy, &mut events)?;
                }
            }
            Phase::Rl => {
                if self.state.rl_steps < self.recipe.rl.steps {
                    events.push(Event::Rl(self.rl_step(policy)?));
                }
                let (step, every) = (self.state.rl_steps, self.recipe.evaluation.every);
                let ends = step >= self.recipe.rl.steps;
                if ends || (every > 0 && step.is_multiple_of(every)) {
                    self.evaluate_both(policy, &mut events)?;
                }
                if ends {
                    self.state.phase = Phase::Done;
                    events.push(Event::Phase { phase: Phase::Done });
                }
            }
            Phase::Done => {}
        }
        Ok(events)
    }

    fn begin_reinforcement<P: Policy>(
        &mut self,
        policy: &mut P,
        events: &mut Vec<Event>,
    ) -> Result<(), TrainError<P::Error>> {
        policy.reset_optimizer().map_err(TrainError::Policy)?;
        if self.recipe.rl.credit.beta > 0.0 {
            policy.keep_reference().map_err(TrainError::Policy)?;
        }
        self.state.phase = Phase::Rl;
        self.state.optimizer_steps = 0;
        events.push(Event::Phase { phase: Phase::Rl });
        self.evaluate_both(policy, events)
    }

    fn evaluate_both<P: Policy>(
        &self,
        policy: &mut P,
        events: &mut Vec<Event>,
    ) -> Result<(), TrainError<P::Error>> {
        for temperature in [0.0, self.recipe.evaluation.temperature] {
            events.push(Event::Evaluated(self.evaluate(policy, temperature)?));
        }
        Ok(())
    }

    /// Counts an optimizer step and returns its scalars.
    fn hyper(&mut self, learning_rate: f64) -> Hyper {
        self.state.optimizer_steps += 1;
        let optimizer = &self.recipe.optimizer;
        let bias = |beta: f64| (1.0 - beta.powf(self.state.optimizer_steps as f64)) as f32;
        Hyper { lr: learning_rate as f32, bias1: bias(optimizer.beta1), bias2: bias(optimizer.beta2) }
    }
}

/// The policy's step, with its report checked.
fn train_step<P: Policy>(
    policy: &mut P,
    objective: Objective,
    batch: &Batch,
    hyper: &Hyper,
    step: u64,
) -> Result<StepOutcome, TrainError<P::Error>> {
    let outcome = policy.train(objective, batch, hyper).map_err(TrainError::Policy)?;
    if outcome.logp.len() != batch.bucket.rows {
        let (found, expected) = (outcome.logp.len(), batch.bucket.rows);
        return Err(TrainError::Outcome { found, expected });
    }
    for (what, value) in [("loss", outcome.loss), ("gradient norm", outcome.grad_norm)] {
        if !value.is_finite() {
            return Err(TrainError::Diverged { step, what, value });
        }
    }
    Ok(outcome)
}
