//! Streams of random numbers that depend only on what they are for.
//!
//! Every draw belongs to a key (seed, purpose, step, item, part). So the numbers do not depend on
//! the order in which a batch happens to be decoded, and a resumed run draws what an uninterrupted
//! one would.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Traces of the warm start.
    Traces = 1,
    /// Training questions of a step.
    Questions = 2,
    /// Held-out questions.
    HeldOut = 3,
    /// Questions that decide when the warm start ends.
    Probe = 4,
    /// Tokens of a rollout node.
    Tokens = 5,
    /// Which forks survive.
    Selection = 6,
    /// Order of trees in minibatches.
    Order = 7,
    /// Initial parameters.
    Parameters = 8,
}

/// The first part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The run's seed.
    pub seed: u64,
    /// The step of the run, or another number that tells rollouts apart.
    pub step: u64,
}

impl Seed {
    /// The stream of one item. The key is used as it stands: the cipher does the mixing.
    pub fn stream(self, purpose: Purpose, item: u64, part: u64) -> ChaCha8Rng {
        let words = [self.seed, (purpose as u64) << 56 | self.step, item, part];
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    }
}
