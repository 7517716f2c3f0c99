//! A policy that is a table: logits by the token before, trained with AdamW by hand.

use std::convert::Infallible;

use t3c_rl::credit::{Options, k3, surrogate};
use t3c_rl::decode::{DecodeRows, Decoder};
use t3c_rl::pack::{Batch, Objective};
use t3c_rl::recipe::Recipe;
use t3c_rl::trainer::{Hyper, Policy, StepOutcome};

#[derive(Clone)]
pub struct Tables {
    vocabulary: usize,
    temperature: f64,
    credit: Options,
    beta: (f64, f64),
    table: Vec<f64>,
    reference: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    pub updates: usize,
}

impl Tables {
    pub fn new(recipe: &Recipe, vocabulary: usize) -> Self {
        let zero = vec![0.0; vocabulary * vocabulary];
        Self {
            vocabulary,
            temperature: recipe.rl.temperature,
            credit: recipe.rl.credit,
            beta: (recipe.optimizer.beta1, recipe.optimizer.beta2),
            table: zero.clone(),
            reference: zero.clone(),
            m: zero.clone(),
            v: zero,
            updates: 0,
        }
    }

    /// Log-probabilities of what may follow `token`.
    fn logp(&self, table: &[f64], token: i32, temperature: f64) -> Vec<f64> {
        let start = token as usize * self.vocabulary;
        let logits = table[start..start + self.vocabulary].iter().map(|logit| logit / temperature);
        let logits: Vec<f64> = logits.collect();
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit - total.ln()).collect()
    }

    fn adam(&mut self, gradient: &[f64], hyper: &Hyper) {
        for (index, gradient) in gradient.iter().enumerate() {
            self.m[index] = self.beta.0 * self.m[index] + (1.0 - self.beta.0) * gradient;
            self.v[index] = self.beta.1 * self.v[index] + (1.0 - self.beta.1) * gradient * gradient;
            let (m, v) = (self.m[index] / f64::from(hyper.bias1), self.v[index] / f64::from(hyper.bias2));
            self.table[index] -= f64::from(hyper.lr) * m / (v.sqrt() + 1e-8);
        }
    }
}

impl Decoder for Tables {
    type Error = Infallible;

    fn decode(&mut self, rows: &DecodeRows, logits: &mut Vec<f32>) -> Result<(), Infallible> {
        logits.clear();
        for token in &rows.tokens {
            let start = *token as usize * self.vocabulary;
            logits.extend(self.table[start..start + self.vocabulary].iter().map(|x| *x as f32));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, _: &[(u32, u32)]) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Policy for Tables {
    fn train(
        &mut self,
        objective: Objective,
        batch: &Batch,
        hyper: &Hyper,
    ) -> Result<StepOutcome, Infallible> {
        let pack = &batch.pack;
        let temperature = if objective == Objective::Sft { 1.0 } else { self.temperature };
        let mut gradient = vec![0.0; self.table.len()];
        let (mut outcome, mut loss_pg, mut loss_kl) = (StepOutcome::default(), 0.0, 0.0);
        for row in 0..batch.bucket.rows {
            let (token, target) = (pack.tokens[pack.rows[row] as usize], pack.targets[row] as usize);
            let distribution = self.logp(&self.table, token, temperature);
            let logp = distribution[target];
            let weight = f64::from(pack.weight[row]);
            let slope = match objective {
                Objective::Sft => {
                    loss_pg -= weight * logp;
                    -weight
                }
                Objective::Portool => {
                    let (plus, minus) = (f64::from(pack.a_plus[row]), f64::from(pack.a_minus[row]));
                    let pg = surrogate(logp, f64::from(pack.old_logp[row]), plus, minus, &self.credit);
                    let reference = batch.ref_logp.get(row).copied().unwrap_or(logp as f32);
                    let kl = k3(logp, f64::from(reference));
                    loss_pg += pg.value;
                    loss_kl += self.credit.beta * weight * kl.value;
                    pg.derivative + self.credit.beta * weight * kl.derivative
                }
            };
            for (next, logp) in distribution.iter().enumerate() {
                let hit = f64::from(u8::from(next == target));
                gradient[token as usize * self.vocabulary + next] += slope * (hit - logp.exp()) / temperature;
            }
            outcome.logp.push(logp as f32);
        }
        self.adam(&gradient, hyper);
        self.updates += 1;
        outcome.loss = (loss_pg + loss_kl) as f32;
        (outcome.loss_pg, outcome.loss_kl) = (loss_pg as f32, loss_kl as f32);
        outcome.grad_norm = gradient.iter().map(|x| x * x).sum::<f64>().sqrt() as f32;
        Ok(outcome)
    }

    fn reset_optimizer(&mut self) -> Result<(), Infallible> {
        self.m.fill(0.0);
        self.v.fill(0.0);
        Ok(())
    }

    fn keep_reference(&mut self) -> Result<(), Infallible> {
        self.reference.clone_from(&self.table);
        Ok(())
    }

    fn reference_logp(&mut self, batch: &Batch) -> Result<Vec<f32>, Infallible> {
        let pack = &batch.pack;
        let logp = |row: usize| {
            let token = pack.tokens[pack.rows[row] as usize];
            self.logp(&self.reference, token, self.temperature)[pack.targets[row] as usize] as f32
        };
        Ok((0..batch.bucket.rows).map(logp).collect())
    }
}
