//! The supervised warm start: a model from scratch first has to learn the format at all.

use std::time::Instant;

use super::metrics::share;
use super::{Decay, LearningRate, Policy, SftMetrics, TrainError, Trainer, train_step};
use crate::pack::{Objective, sft_batch};
use crate::random::{Purpose, Seed};
use crate::task::{Split, Task};

impl<T: Task> Trainer<T> {
    /// One optimizer step on fresh traces.
    pub fn sft_step<P: Policy>(&mut self, policy: &mut P) -> Result<SftMetrics, TrainError<P::Error>> {
        let start = Instant::now();
        let step = self.state.sft_steps;
        let seed = Seed { seed: self.recipe.seed, step };
        let mut item = 0;
        let batch = sft_batch(self.shapes.sft, self.shapes.context, || {
            let mut random = seed.stream(Purpose::Traces, item, 0);
            item += 1;
            let question = self.task.question(Split::Training, &mut random);
            let trace = self.task.trace(&question, &mut random);
            (self.task.prompt(&question).to_vec(), trace)
        })?;
        let learning_rate = self.sft_schedule().at(step);
        let hyper = self.hyper(learning_rate);
        let outcome = train_step(policy, Objective::Sft, &batch, &hyper, step + 1)?;
        self.state.sft_steps += 1;
        self.state.sft_tokens += batch.used_tokens as u64;
        let seconds = start.elapsed().as_secs_f64();
        Ok(SftMetrics {
            step: step + 1,
            loss: f64::from(outcome.loss),
            grad_norm: f64::from(outcome.grad_norm),
            learning_rate,
            tokens: batch.used_tokens,
            seconds,
            tokens_per_second: share(batch.used_tokens as f64, seconds),
        })
    }

    fn sft_schedule(&self) -> LearningRate {
        let sft = &self.recipe.sft;
        LearningRate {
            peak: sft.learning_rate,
            warmup: sft.warmup_steps,
            steps: sft.steps,
            final_fraction: sft.final_fraction,
            decay: Decay::Cosine,
        }
    }
}
