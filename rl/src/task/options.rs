//! The task's part of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which questions are asked and who teaches the warm start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TaskOptions {
    /// Relative weights of questions that need one, two and three calls.
    /// Default 0.3, 0.6, 0.1 (measured: most of the gain is in two calls).
    pub mix: [f64; 3],
    /// Probability that one needed tool is not offered, so that the right answer is `cannot`.
    /// Default 0.12.
    pub withheld: f64,
    /// Outcome reward of `cannot` on a question that can be answered. Default −1: an evaluator that
    /// knows the truth calls it wrong. 0 is PORTool's reading; from a weak warm start it collapses
    /// to answering `cannot` always (measured).
    pub cannot: f64,
    /// The teacher of the warm start. Default `repeats`, whose pupils call too often, so that both
    /// accuracy and number of calls can improve.
    pub teacher: Teacher,
    /// Probabilities that replace the named teacher's. Default none.
    pub faults: Option<Faults>,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self { mix: [0.3, 0.6, 0.1], withheld: 0.12, cannot: -1.0, teacher: Teacher::Repeats, faults: None }
    }
}

/// A teacher by the fault that it is known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// Often answers with an intermediate result: its pupils call too rarely.
    Early,
    /// Often repeats the call just made: its pupils call too often.
    Repeats,
    /// Makes no fault.
    Clean,
}

/// Probabilities of the teacher's faults, each drawn independently.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Faults {
    /// Answers with the intermediate result, at each further call.
    pub early: f64,
    /// Repeats the call just made, up to three in all.
    pub repeat: f64,
    /// Leaves out the think block, at each step.
    pub no_think: f64,
    /// Calls another offered tool, at each call.
    pub wrong_tool: f64,
    /// Swaps the two operands, at each call.
    pub swap: f64,
    /// Calls with the wrong keys first, then with the right ones, at each call.
    pub wrong_keys: f64,
    /// Says `cannot` although the question can be answered.
    pub gives_up: f64,
    /// Says `cannot` at once where a needed tool is withheld.
    pub admits: f64,
}

impl TaskOptions {
    /// The probabilities in force.
    pub fn faults(&self) -> Faults {
        self.faults.unwrap_or_else(|| self.teacher.faults())
    }
}

impl Teacher {
    /// The probabilities of this teacher (measured: its pupils learn to copy in 800 steps).
    pub fn faults(self) -> Faults {
        let (early, repeat) = match self {
            Self::Early => (0.5, 0.33),
            Self::Repeats => (0.4, 0.6),
            Self::Clean => return Faults::none(),
        };
        Faults {
            early,
            repeat,
            no_think: 0.3,
            wrong_tool: 0.03,
            swap: 0.03,
            wrong_keys: 0.03,
            gives_up: 0.01,
            admits: 0.6,
        }
    }
}

impl Faults {
    fn none() -> Self {
        Self {
            early: 0.0,
            repeat: 0.0,
            no_think: 0.0,
            wrong_tool: 0.0,
            swap: 0.0,
            wrong_keys: 0.0,
            gives_up: 0.0,
            admits: 1.0,
        }
    }
}
