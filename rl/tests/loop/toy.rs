//! A task of 24 tokens: the prompt ends with a question q, right is the answer that belongs to q.
//!
//! A step is either `CALL`, answered by the question's hint, or an answer token and `ANSWER`, or any
//! other tokens up to one of the two.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use t3c_rl::task::{Ending, Facts, Split, Step, Task, Token, Trace};

pub const CALL: Token = 1;
pub const ANSWER: Token = 2;
const QUESTIONS: Token = 3;
const COUNT: Token = 5;
const HINTS: Token = QUESTIONS + COUNT;
const ANSWERS: Token = HINTS + COUNT;

/// Tokens before the question make prompts of several lengths.
const FILLER: Token = ANSWERS + COUNT;
pub const VOCABULARY: usize = FILLER as usize + 1;

pub struct Toy {
    pub longest_filler: usize,
}

pub struct Question {
    prompt: Vec<Token>,
    which: Token,
}

impl Task for Toy {
    type Question = Question;

    fn vocabulary_size(&self) -> usize {
        VOCABULARY
    }

    fn question(&self, _: Split, random: &mut ChaCha8Rng) -> Question {
        let which = random.random_range(0..COUNT);
        let filler = random.random_range(0..=self.longest_filler as u32) as usize;
        let mut prompt = vec![FILLER; filler];
        prompt.push(QUESTIONS + which);
        Question { prompt, which }
    }

    fn prompt<'q>(&self, question: &'q Question) -> &'q [Token] {
        &question.prompt
    }

    fn ends_step(&self, token: Token) -> bool {
        token == CALL || token == ANSWER
    }

    fn step(&self, question: &Question, tokens: &[Token]) -> Step {
        if tokens.last() == Some(&ANSWER) {
            let right = tokens == [ANSWERS + question.which, ANSWER];
            let ending = Ending::Answer(Some(f64::from(right)));
            return Step { ending, checks: [tokens.len() == 2; 5], response: Vec::new() };
        }
        // Long answers to long calls, so that prefixes end anywhere in a block.
        let response = vec![HINTS + question.which; 1 + tokens.len() % 3];
        Step { ending: Ending::Call, checks: [tokens == [CALL]; 5], response }
    }

    fn outcome(&self, _: &Question, ending: Ending) -> f64 {
        if ending == Ending::Answer(Some(1.0)) { 1.0 } else { -1.0 }
    }

    fn trace(&self, question: &Question, random: &mut ChaCha8Rng) -> Trace {
        let mut trace = Trace::default();
        if random.random::<f64>() < 0.5 {
            trace.tokens.extend([CALL, HINTS + question.which, HINTS + question.which]);
            trace.is_model.extend([true, false, false]);
        }
        // A poor teacher: right in two cases of five.
        let which =
            if random.random::<f64>() < 0.25 { question.which } else { random.random_range(0..COUNT) };
        trace.tokens.extend([ANSWERS + which, ANSWER]);
        trace.is_model.extend([true, true]);
        trace
    }

    fn facts(&self, _: &Question) -> Facts {
        Facts { answerable: true, planned_calls: 1 }
    }
}
