//! Learning rates over the steps of a phase.

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Half a cosine.
    Cosine,
    /// A straight line, cut off at the final fraction.
    Linear,
}

/// A schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The peak.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps until the final fraction.
    pub steps: u64,
    /// What is left of the peak at the end.
    pub final_fraction: f64,
    /// How it gets there.
    pub decay: Decay,
}

impl LearningRate {
    /// The rate of step 0, 1, ….
    pub fn at(&self, step: u64) -> f64 {
        let done = step as f64 / self.steps.max(1) as f64;
        let decayed = match self.decay {
            Decay::Cosine => {
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
                self.final_fraction + (1.0 - self.final_fraction) * cosine
            }
            Decay::Linear => (1.0 - done).max(self.final_fraction),
        };
        let warm = (step + 1) as f64 / self.warmup.max(1) as f64;
        self.peak * decayed * warm.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        let cosine =
            LearningRate { peak: 2.0, warmup: 10, steps: 100, final_fraction: 0.1, decay: Decay::Cosine };
        assert!(cosine.at(0) < cosine.at(5) && cosine.at(5) < cosine.at(9));
        assert!((cosine.at(50) - 2.0 * 0.55).abs() < 1e-12);
        assert!((cosine.at(1000) - 0.2).abs() < 1e-12);
        let linear = LearningRate { decay: Decay::Linear, ..cosine };
        assert!((linear.at(40) - 1.2).abs() < 1e-12);
        assert!((linear.at(99) - 0.2).abs() < 1e-12);
    }
}
