//! What is trained on: questions, the environment that answers calls, and the teacher.
//!
//! [`Task`] is the seam between the learning code and a task: rollouts, credit and the trainer see
//! tokens, endings and rewards, never words or tools. [`MiniTask`] is the task that ships: small
//! arithmetic questions that need one to three tool calls, learned from scratch in minutes.

mod calls;
mod options;
mod phrases;
mod question;
mod step;
mod teacher;
mod vocabulary;

pub use options::{Faults, TaskOptions, Teacher};
pub use question::{Operand, PlannedCall, Question};
pub use vocabulary::{UnknownText, Vocabulary};

use rand_chacha::ChaCha8Rng;

/// A token id.
pub type Token = i32;

/// Which questions may be drawn. Held-out questions share neither their numbers nor their
/// combination of phrases with training questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For the warm start and for reinforcement learning.
    Training,
    /// For evaluation only.
    HeldOut,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    /// With a call (or with something unreadable, which counts as a failed call): the environment
    /// answers and the trajectory goes on.
    Call,
    /// With an answer; `None` if it is not a number.
    Answer(Option<f64>),
    /// With the statement that the question cannot be answered.
    Cannot,
}

/// Number of format checks of a step. In order: it has a think block; it has a call or an answer
/// block; the call is JSON; it has exactly the required keys; the tool succeeded. An answer passes
/// the last three.
pub const CHECKS: usize = 5;

/// Which format checks a step passed.
pub type Checks = [bool; CHECKS];

/// The share of checks passed, 0 to 1.
pub fn format_score(checks: &Checks) -> f64 {
    checks.iter().filter(|passed| **passed).count() as f64 / CHECKS as f64
}

/// What the environment makes of the tokens of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// How it ended.
    pub ending: Ending,
    /// Which format checks it passed.
    pub checks: Checks,
    /// The environment's answer to a call; empty after an answer.
    pub response: Vec<Token>,
}

/// A teacher's trajectory after the prompt: steps of the model and responses of the environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// All tokens after the prompt.
    pub tokens: Vec<Token>,
    /// For each token, whether the model has to learn it.
    pub is_model: Vec<bool>,
}

/// What metrics need to know about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the offered tools suffice.
    pub answerable: bool,
    /// Calls of the shortest plan.
    pub planned_calls: usize,
}

/// A task: where questions come from, how steps are answered, what is rewarded.
pub trait Task {
    /// One question with its episode's state.
    type Question;

    /// Number of tokens.
    fn vocabulary_size(&self) -> usize;

    /// Draws a question.
    fn question(&self, split: Split, random: &mut ChaCha8Rng) -> Self::Question;

    /// The tokens that the policy continues.
    fn prompt<'q>(&self, question: &'q Self::Question) -> &'q [Token];

    /// Whether `token` is the last of a step.
    fn ends_step(&self, token: Token) -> bool;

    /// Reads a finished step and answers it.
    fn step(&self, question: &Self::Question, tokens: &[Token]) -> Step;

    /// The outcome reward of a trajectory whose last step ended so: 1 right, −1 wrong,
    /// 0 rightly found unanswerable. A call as last step means that the depth ran out.
    fn outcome(&self, question: &Self::Question, ending: Ending) -> f64;

    /// A trajectory of the teacher, for the warm start.
    fn trace(&self, question: &Self::Question, random: &mut ChaCha8Rng) -> Trace;

    /// What metrics need to know about the question.
    fn facts(&self, question: &Self::Question) -> Facts;
}

/// The small calculator task: ten arithmetic tools and a clock, five of them listed in the prompt.
#[derive(Clone, Debug)]
pub struct MiniTask {
    options: TaskOptions,
    vocabulary: Vocabulary,
}

impl MiniTask {
    /// The task with these options.
    pub fn new(options: TaskOptions) -> Self {
        Self { options, vocabulary: Vocabulary::new() }
    }

    /// The tokens and their text.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

impl Task for MiniTask {
    type Question = Question;

    fn vocabulary_size(&self) -> usize {
        self.vocabulary.len()
    }

    fn question(&self, split: Split, random: &mut ChaCha8Rng) -> Question {
        question::draw(&self.options, &self.vocabulary, split, random)
    }

    fn prompt<'q>(&self, question: &'q Question) -> &'q [Token] {
        &question.prompt
    }

    fn ends_step(&self, token: Token) -> bool {
        self.vocabulary.ends_step(token)
    }

    fn step(&self, question: &Question, tokens: &[Token]) -> Step {
        step::read(&self.vocabulary, question, tokens)
    }

    fn outcome(&self, question: &Question, ending: Ending) -> f64 {
        match ending {
            // Half a unit of the second decimal, to which all results are rounded.
            Ending::Answer(Some(value)) if (value - question.truth).abs() < 0.006 => 1.0,
            Ending::Cannot if question.withheld.is_some() => 0.0,
            Ending::Cannot => self.options.cannot,
            Ending::Answer(_) | Ending::Call => -1.0,
        }
    }

    fn trace(&self, question: &Question, random: &mut ChaCha8Rng) -> Trace {
        let faults = self.options.faults();
        teacher::trace(&self.vocabulary, &faults, question, random)
    }

    fn facts(&self, question: &Question) -> Facts {
        Facts { answerable: question.withheld.is_none(), planned_calls: question.plan.len() }
    }
}
