//! The teacher of the warm start: follows the plan, with faults that a policy can unlearn.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::calls::{CallForm, FORMS, OPENINGS, digits};
use super::options::Faults;
use super::question::Question;
use super::step;
use super::vocabulary::{ANSWER, CANNOT, END_ANSWER, END_THINK, THINK, Vocabulary};
use super::{Token, Trace};

/// Calls in one trace, at most.
const MOST_CALLS: usize = 4;
/// The same call in a row, at most.
const MOST_REPEATS: usize = 3;

pub(super) fn trace(
    vocabulary: &Vocabulary,
    faults: &Faults,
    question: &Question,
    random: &mut ChaCha8Rng,
) -> Trace {
    let mut writer = Writer { vocabulary, faults, question, random, trace: Trace::default(), calls: 0 };
    writer.write();
    writer.trace
}

struct Writer<'a> {
    vocabulary: &'a Vocabulary,
    faults: &'a Faults,
    question: &'a Question,
    random: &'a mut ChaCha8Rng,
    trace: Trace,
    calls: usize,
}

impl Writer<'_> {
    fn chance(&mut self, probability: f64) -> bool {
        self.random.random::<f64>() < probability
    }

    fn write(&mut self) {
        let says_cannot = match self.question.withheld {
            Some(_) => self.faults.admits,
            None => self.faults.gives_up,
        };
        if self.chance(says_cannot) {
            return self.answer("lack", vec![CANNOT.to_owned()]);
        }
        let mut previous = 0.0;
        for (index, planned) in self.question.plan.iter().enumerate() {
            if (index > 0 && self.chance(self.faults.early)) || self.calls >= MOST_CALLS {
                break;
            }
            match self.call(planned.tool, planned.operands(previous)) {
                Some(result) => previous = result,
                None => return self.answer("lack", vec![CANNOT.to_owned()]),
            }
        }
        self.answer("done", digits(previous));
    }

    /// Makes a planned call with its faults. Returns the last result that was seen.
    fn call(&mut self, tool: &'static str, mut operands: Vec<f64>) -> Option<f64> {
        if operands.len() == 2 && self.chance(self.faults.swap) {
            operands.reverse();
        }
        let mut form = CallForm::of(tool)?;
        if !operands.is_empty()
            && self.chance(self.faults.wrong_tool)
            && let Some(wrong) = self.wrong_tool(tool, operands.len())
        {
            form = wrong;
            operands.truncate(form.arity().unwrap_or(operands.len()));
        }
        let pieces = form.pieces(&operands);
        if self.calls < MOST_CALLS - 1 && self.chance(self.faults.wrong_keys) {
            let mut wrong = pieces.clone();
            wrong[2] = OPENINGS.choose(self.random)?.to_string();
            self.call_step(&wrong);
        }
        let mut repeats = 1;
        while self.calls + repeats < MOST_CALLS && repeats < MOST_REPEATS && self.chance(self.faults.repeat) {
            repeats += 1;
        }
        let mut result = None;
        for _ in 0..repeats {
            result = self.call_step(&pieces);
        }
        result
    }

    /// Another offered tool that could be spelled with as many operands.
    fn wrong_tool(&mut self, tool: &str, operands: usize) -> Option<&'static CallForm> {
        let fits = |form: &&CallForm| {
            let alike = if operands >= 2 { form.separator.is_some() } else { form.arity() == Some(1) };
            form.name != tool
                && self.question.offered.contains(&form.name)
                && (alike || form.arity() == Some(0))
        };
        let candidates: Vec<_> = FORMS.iter().filter(fits).collect();
        candidates.choose(self.random).copied()
    }

    fn think(&mut self, word: &str) -> Vec<String> {
        if self.chance(self.faults.no_think) {
            return Vec::new();
        }
        [THINK, word, END_THINK].map(str::to_owned).to_vec()
    }

    fn call_step(&mut self, call: &[String]) -> Option<f64> {
        let mut pieces = self.think("use");
        pieces.extend_from_slice(call);
        let tokens = self.vocabulary.encode(&pieces);
        let answered = step::read(self.vocabulary, self.question, &tokens);
        self.calls += 1;
        self.push(&tokens, true);
        self.push(&answered.response, false);
        let inner = answered.response.get(1..answered.response.len().saturating_sub(1))?;
        inner.iter().map(|token| self.vocabulary.piece(*token)).collect::<String>().parse().ok()
    }

    fn answer(&mut self, thought: &str, answer: Vec<String>) {
        let mut pieces = self.think(thought);
        pieces.push(ANSWER.to_owned());
        pieces.extend(answer);
        pieces.push(END_ANSWER.to_owned());
        let tokens = self.vocabulary.encode(&pieces);
        self.push(&tokens, true);
    }

    fn push(&mut self, tokens: &[Token], is_model: bool) {
        self.trace.tokens.extend_from_slice(tokens);
        self.trace.is_model.resize(self.trace.tokens.len(), is_model);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::task::{Ending, MiniTask, Split, Task, TaskOptions, Teacher};

    /// Splits a trace into its steps and plays them.
    fn play(task: &MiniTask, question: &Question, trace: &Trace) -> (Ending, usize) {
        let (mut step, mut calls, mut ending) = (Vec::new(), 0, Ending::Call);
        for (token, is_model) in trace.tokens.iter().zip(&trace.is_model) {
            if !is_model {
                continue;
            }
            step.push(*token);
            if task.ends_step(*token) {
                ending = task.step(question, &step).ending;
                calls += usize::from(ending == Ending::Call);
                step.clear();
            }
        }
        (ending, calls)
    }

    #[test]
    fn the_clean_teacher_is_always_right_with_the_shortest_plan() {
        let task = MiniTask::new(TaskOptions { teacher: Teacher::Clean, ..Default::default() });
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..500 {
            let question = task.question(Split::HeldOut, &mut random);
            let (ending, calls) = play(&task, &question, &task.trace(&question, &mut random));
            match question.withheld {
                Some(_) => assert_eq!((ending, calls), (Ending::Cannot, 0)),
                None => {
                    assert_eq!(task.outcome(&question, ending), 1.0);
                    assert_eq!(calls, question.plan.len());
                }
            }
        }
    }

    #[test]
    fn faulty_teachers_differ_in_calls_and_fit_the_context() {
        let mut means = Vec::new();
        for teacher in [Teacher::Early, Teacher::Repeats] {
            let task = MiniTask::new(TaskOptions { teacher, ..Default::default() });
            let mut random = ChaCha8Rng::seed_from_u64(2);
            let (mut calls, mut right, mut length) = (0, 0.0, 0);
            for _ in 0..2000 {
                let question = task.question(Split::Training, &mut random);
                let trace = task.trace(&question, &mut random);
                assert_eq!(trace.tokens.len(), trace.is_model.len());
                assert!(question.prompt.len() + trace.tokens.len() <= 128);
                let (ending, made) = play(&task, &question, &trace);
                calls += made;
                length += trace.tokens.len();
                right += f64::from(task.outcome(&question, ending) > 0.0);
            }
            means.push(calls as f64 / 2000.0);
            assert!((0.35..0.65).contains(&(right / 2000.0)), "{teacher:?}: {right}");
            assert!((25..50).contains(&(length / 2000)), "{teacher:?}: {length}");
        }
        assert!(means[1] > means[0] + 0.5, "{means:?}");
    }
}
