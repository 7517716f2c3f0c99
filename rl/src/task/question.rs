//! Draws questions: a list of tools, a frame, one to three phrases.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::calls::{CallForm, FORMS, digits};
use super::options::TaskOptions;
use super::phrases::{DOUBLE, FRAMES, First, SINGLE, THEN};
use super::vocabulary::{END_TOOLS, TOOLS, Vocabulary};
use super::{Split, Token};
use crate::tools::Episode;

/// Tools listed in a prompt, unless the plan needs more.
const OFFERED: usize = 5;
/// No intermediate result is larger in magnitude.
const LARGEST: f64 = 9999.0;

/// An operand of a planned call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A number of the question.
    Number(f64),
    /// The result of the call before.
    Previous,
}

/// A call of the shortest plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedCall {
    /// The tool.
    pub tool: &'static str,
    /// Its operands in order.
    pub operands: Vec<Operand>,
}

/// A question with its episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The prompt's tokens.
    pub prompt: Vec<Token>,
    /// The shortest plan.
    pub plan: Vec<PlannedCall>,
    /// The state that tools may read.
    pub episode: Episode,
    /// The tools offered, in the prompt's order.
    pub offered: Vec<&'static str>,
    /// The needed tool that is not offered, if any.
    pub withheld: Option<&'static str>,
    /// The right answer.
    pub truth: f64,
}

/// The phrases of a question before its tools are chosen.
struct Draft {
    words: Vec<String>,
    plan: Vec<PlannedCall>,
    numbers: Vec<u64>,
    /// Operation and wording of each phrase, for the hash that splits combinations.
    combination: Vec<String>,
}

/// Draws until a question has a value in range and belongs to the split.
pub(super) fn draw(
    options: &TaskOptions,
    vocabulary: &Vocabulary,
    split: Split,
    random: &mut ChaCha8Rng,
) -> Question {
    let calls = weighted(&options.mix, random) + 1;
    loop {
        let episode = Episode { hour: random.random_range(1..=23) };
        let Some(draft) = draft(calls, random) else { continue };
        let Some(truth) = value(&draft.plan, &episode) else { continue };
        if belongs(&draft, split) {
            return finish(options, vocabulary, draft, episode, truth, random);
        }
    }
}

/// An index drawn with these relative weights.
fn weighted(weights: &[f64; 3], random: &mut ChaCha8Rng) -> usize {
    let mut left = random.random::<f64>() * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    // Rounding may leave a sliver: the last index that can be drawn.
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
}

fn draft(calls: usize, random: &mut ChaCha8Rng) -> Option<Draft> {
    let first = first_phrase(calls, random);
    let wording = random.random_range(0..first.wordings.len() as u32) as usize;
    let numbers = operands(first.name, random)?;
    let list = matches!(first.name, "mean" | "max_value" | "min_value");
    let mut draft = Draft {
        words: Vec::new(),
        plan: plan(first, &numbers),
        combination: vec![first.name.to_owned(), wording.to_string()],
        numbers,
    };
    for word in first.wordings[wording].split(' ') {
        match word {
            "A" => draft.words.extend(digits(draft.numbers[0] as f64)),
            "B" => draft.words.extend(digits(draft.numbers[1] as f64)),
            "L" if list => draft.words.extend(spoken_list(&draft.numbers)),
            _ => draft.words.push(word.to_owned()),
        }
    }
    for _ in first.calls.len()..calls {
        then_phrase(&mut draft, random);
    }
    Some(draft)
}

fn first_phrase(calls: usize, random: &mut ChaCha8Rng) -> &'static First {
    if calls > 1 && random.random::<f64>() < 0.25 {
        return &DOUBLE[random.random_range(0..DOUBLE.len() as u32) as usize];
    }
    // The clock counts twice where more phrases follow: alone it is one question only.
    let extra = u32::from(calls > 1);
    let index = random.random_range(0..SINGLE.len() as u32 + extra) as usize;
    &SINGLE[index.min(SINGLE.len() - 1)]
}

/// The numbers of a first phrase; `None` where they must be drawn again.
fn operands(name: &str, random: &mut ChaCha8Rng) -> Option<Vec<u64>> {
    let mut draw = |low, high| random.random_range::<u64, _>(low..=high);
    let (a, b) = match name {
        "add" | "gap" => (draw(2, 99), draw(2, 99)),
        "subtract" => {
            let (a, b) = (draw(2, 99), draw(2, 99));
            (a.max(b), a.min(b))
        }
        "multiply" => (draw(2, 99), draw(2, 12)),
        "divide" => {
            let b = draw(2, 12);
            (b * draw(2, 20), b)
        }
        "divround" => (draw(11, 99), draw(3, 9)),
        "power" => return Some(vec![draw(2, 9), draw(2, 3)]),
        "get_hour" => return Some(Vec::new()),
        _ => {
            let length = draw(2, 3);
            let list: Vec<u64> = (0..length).map(|_| draw(2, 99)).collect();
            let repeats = (1..list.len()).any(|i| list[..i].contains(&list[i]));
            let inexact = name == "mean" && list.iter().sum::<u64>() * 100 % length != 0;
            return (!repeats && !inexact).then_some(list);
        }
    };
    (a != b).then(|| vec![a, b])
}

fn plan(first: &First, numbers: &[u64]) -> Vec<PlannedCall> {
    let operands = numbers.iter().map(|number| Operand::Number(*number as f64)).collect();
    let mut plan = vec![PlannedCall { tool: first.calls[0], operands }];
    for tool in &first.calls[1..] {
        plan.push(PlannedCall { tool, operands: vec![Operand::Previous] });
    }
    plan
}

fn spoken_list(numbers: &[u64]) -> Vec<String> {
    let mut words = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        if index > 0 {
            let last = index + 1 == numbers.len();
            words.push(if last { "and" } else { "," }.to_owned());
        }
        words.extend(digits(*number as f64));
    }
    words
}

fn then_phrase(draft: &mut Draft, random: &mut ChaCha8Rng) {
    let then = &THEN[random.random_range(0..THEN.len() as u32) as usize];
    let wording = random.random_range(0..then.wordings.len() as u32) as usize;
    let number: u64 = match then.tool {
        "multiply" => random.random_range(2..=12),
        "power" => random.random_range(2..=3),
        _ => random.random_range(2..=99),
    };
    draft.words.push("then".to_owned());
    for word in then.wordings[wording].split(' ') {
        match word {
            "C" => draft.words.extend(digits(number as f64)),
            _ => draft.words.push(word.to_owned()),
        }
    }
    let operands = vec![Operand::Previous, Operand::Number(number as f64)];
    draft.plan.push(PlannedCall { tool: then.tool, operands });
    draft.numbers.push(number);
    draft.combination.extend([then.tool.to_owned(), wording.to_string()]);
}

/// The plan's result, if every intermediate result is in range.
fn value(plan: &[PlannedCall], episode: &Episode) -> Option<f64> {
    let mut previous = 0.0;
    for call in plan {
        let operands = call.operands(previous);
        previous = CallForm::of(call.tool)?.result(&operands, episode)?;
        if previous.abs() > LARGEST {
            return None;
        }
    }
    Some(previous)
}

impl PlannedCall {
    /// The operands once the result of the call before is known.
    pub(super) fn operands(&self, previous: f64) -> Vec<f64> {
        let operand = |operand: &Operand| match operand {
            Operand::Number(number) => *number,
            Operand::Previous => previous,
        };
        self.operands.iter().map(operand).collect()
    }
}

/// Held out are the questions whose numbers hash to 0 mod 5 and, if phrases are combined, whose
/// combination hashes to 0 mod 4. Training questions have neither property, so that both the
/// numbers and the combinations of a held-out question are new.
fn belongs(draft: &Draft, split: Split) -> bool {
    let held_out = split == Split::HeldOut;
    let hash: u64 = draft.numbers.iter().zip(1..).map(|(number, weight)| weight * number * 7).sum();
    let numbers = if draft.numbers.is_empty() { false } else { hash.is_multiple_of(5) };
    let combined = draft.combination.len() > 2;
    let combination = combination_hash(&draft.combination).is_multiple_of(4);
    let numbers_fit = numbers == held_out || (draft.numbers.is_empty() && !held_out);
    numbers_fit && (!combined || combination == held_out)
}

fn combination_hash(combination: &[String]) -> u64 {
    combination.join("|").bytes().fold(17, |hash, byte| (hash * 31 + u64::from(byte)) % 1_000_003)
}

fn finish(
    options: &TaskOptions,
    vocabulary: &Vocabulary,
    draft: Draft,
    episode: Episode,
    truth: f64,
    random: &mut ChaCha8Rng,
) -> Question {
    let mut needed: Vec<&'static str> = Vec::new();
    for call in &draft.plan {
        if !needed.contains(&call.tool) {
            needed.push(call.tool);
        }
    }
    let mut others: Vec<&'static str> =
        FORMS.iter().map(|form| form.name).filter(|name| !needed.contains(name)).collect();
    others.shuffle(random);
    let distractors = OFFERED.saturating_sub(needed.len());
    let mut offered = needed.clone();
    offered.extend(&others[..distractors]);
    let withheld =
        (random.random::<f64>() < options.withheld).then(|| needed.choose(random).copied()).flatten();
    if let Some(withheld) = withheld {
        offered.retain(|name| *name != withheld);
        offered.push(others[distractors]);
    }
    offered.shuffle(random);
    let frame = FRAMES[random.random_range(0..FRAMES.len() as u32) as usize];
    let mut words = vec![TOOLS.to_owned()];
    words.extend(offered.iter().map(|name| (*name).to_owned()));
    words.push(END_TOOLS.to_owned());
    words.extend(frame.split(' ').map(str::to_owned));
    words.extend(draft.words);
    words.push("?".to_owned());
    let prompt = vocabulary.encode(&words);
    Question { prompt, plan: draft.plan, episode, offered, withheld, truth }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn questions(split: Split, count: usize) -> Vec<Question> {
        let (options, vocabulary) = (TaskOptions::default(), Vocabulary::new());
        let mut random = ChaCha8Rng::seed_from_u64(3);
        (0..count).map(|_| draw(&options, &vocabulary, split, &mut random)).collect()
    }

    #[test]
    fn questions_have_the_mix_and_the_share_of_withheld_tools() {
        let questions = questions(Split::Training, 4000);
        for (calls, share) in [(1, 0.3), (2, 0.6), (3, 0.1)] {
            let count = questions.iter().filter(|q| q.plan.len() == calls).count();
            assert!((count as f64 / 4000.0 - share).abs() < 0.03, "{calls}: {count}");
        }
        let withheld = questions.iter().filter(|q| q.withheld.is_some()).count();
        assert!((withheld as f64 / 4000.0 - 0.12).abs() < 0.02, "{withheld}");
        let mean: f64 = questions.iter().map(|q| q.prompt.len() as f64).sum::<f64>() / 4000.0;
        assert!((17.0..19.5).contains(&mean), "{mean}");
    }

    #[test]
    fn a_withheld_tool_is_needed_and_not_offered() {
        for question in questions(Split::HeldOut, 500) {
            assert_eq!(question.offered.len(), OFFERED);
            for call in &question.plan {
                let offered = question.offered.contains(&call.tool);
                assert_eq!(offered, question.withheld != Some(call.tool));
            }
        }
    }

    #[test]
    fn no_prompt_of_one_split_has_the_phrases_and_numbers_of_the_other() {
        let vocabulary = Vocabulary::new();
        let text = |question: &Question| {
            let text = vocabulary.detokenise(&question.prompt);
            text.split(END_TOOLS).nth(1).unwrap().to_owned()
        };
        let training: std::collections::HashSet<_> =
            questions(Split::Training, 3000).iter().map(text).collect();
        assert!(questions(Split::HeldOut, 1000).iter().all(|q| !training.contains(&text(q))));
    }

    #[test]
    fn a_seed_always_asks_the_same() {
        let text = |question: &Question| Vocabulary::new().detokenise(&question.prompt);
        let asked: Vec<_> = questions(Split::HeldOut, 3).iter().map(text).collect();
        let expected = [
            "<tools>get_hour absolute_value divide mean round_number</tools>tell me 11 over 7 rounded ?",
            "<tools>get_hour round_number absolute_value add subtract</tools>compute how far 28 is from 86 ?",
            "<tools>absolute_value get_hour divide subtract max_value</tools>compute how far 22 is from 19 ?",
        ];
        assert_eq!(asked, expected);
    }

    #[test]
    fn prompts_survive_text() {
        let vocabulary = Vocabulary::new();
        for question in questions(Split::Training, 300) {
            let text = vocabulary.detokenise(&question.prompt);
            assert_eq!(vocabulary.tokenise(&text).unwrap(), question.prompt, "{text}");
        }
    }
}
