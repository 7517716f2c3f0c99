//! From logits to a token and its log-probability.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::task::Token;

/// The distribution over the next token, kept between calls to reuse its memory.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    logp: Vec<f32>,
    /// Probabilities, not normalised.
    mass: Vec<f32>,
    total: f32,
    greedy: bool,
}

impl Distribution {
    /// Log-softmax of `logits / temperature` in f32. A temperature of 0 is greedy: the largest logit
    /// is certain to be drawn, and log-probabilities are those at temperature 1.
    pub fn set(&mut self, logits: &[f32], temperature: f32) {
        self.greedy = temperature == 0.0;
        let divisor = if self.greedy { 1.0 } else { temperature };
        self.logp.clear();
        self.logp.extend(logits.iter().map(|logit| logit / divisor));
        let largest = self.logp.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.mass.clear();
        self.mass.extend(self.logp.iter().map(|value| (value - largest).exp()));
        self.total = self.mass.iter().sum();
        let shift = largest + self.total.ln();
        self.logp.iter_mut().for_each(|value| *value -= shift);
    }

    /// Draws a token. Returns it with its log-probability.
    pub fn draw(&self, random: &mut ChaCha8Rng) -> (Token, f32) {
        let index = if self.greedy { self.largest() } else { self.drawn(random) };
        (index as Token, self.logp.get(index).copied().unwrap_or(f32::NEG_INFINITY))
    }

    /// The first of the largest.
    fn largest(&self) -> usize {
        let mut best = 0;
        for (index, value) in self.logp.iter().enumerate() {
            if *value > self.logp[best] {
                best = index;
            }
        }
        best
    }

    fn drawn(&self, random: &mut ChaCha8Rng) -> usize {
        let mut left = random.random::<f32>() * self.total;
        for (index, mass) in self.mass.iter().enumerate() {
            left -= mass;
            if left < 0.0 {
                return index;
            }
        }
        // Rounding may leave a sliver after the last token: the most likely one takes it.
        self.largest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Seed};

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let logits = [0.0, 1.0, -1.0, 0.5];
        let mut distribution = Distribution::default();
        distribution.set(&logits, 0.7);
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(x / 0.7f32).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut random = Seed { seed: 1, step: 0 }.stream(Purpose::Tokens, 0, 0);
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            let (token, logp) = distribution.draw(&mut random);
            counts[token as usize] += 1.0 / 20_000.0;
            assert!((f64::from(logp) - (weights[token as usize] / total).ln()).abs() < 1e-6);
        }
        for (count, weight) in counts.iter().zip(&weights) {
            assert!((count - weight / total).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut distribution = Distribution::default();
        distribution.set(&[0.0, 2.0, 2.0], 0.0);
        let mut random = Seed { seed: 1, step: 0 }.stream(Purpose::Tokens, 0, 0);
        assert_eq!(distribution.draw(&mut random).0, 1);
    }
}
