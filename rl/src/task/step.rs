//! Reads the tokens of one step and answers a call, like the environment of a served model would
//! from text: the call's body goes through a JSON parser.

use serde_json::{Map, Value};

use super::calls::{CALL, CLOSE, CLOSE_LIST, CallForm, digits, observe};
use super::question::Question;
use super::vocabulary::{
    ANSWER, CANNOT, END_ANSWER, END_RESPONSE, END_THINK, ERROR, RESPONSE, THINK, Vocabulary,
};
use super::{CHECKS, Checks, Ending, Step, Token};

/// Positions in [`Step::checks`].
const THINKS: usize = 0;
const HAS_BLOCK: usize = 1;
const IS_JSON: usize = 2;
const EXACT_KEYS: usize = 3;
const SUCCEEDED: usize = 4;

pub(super) fn read(vocabulary: &Vocabulary, question: &Question, tokens: &[Token]) -> Step {
    let pieces: Vec<&str> = tokens.iter().map(|token| vocabulary.piece(*token)).collect();
    let mut checks = [false; CHECKS];
    let body = match think_end(&pieces) {
        Some(end) => {
            checks[THINKS] = true;
            &pieces[end + 1..]
        }
        None => &pieces[..],
    };
    if let Some(ending) = read_answer(body, &mut checks) {
        return Step { ending, checks, response: Vec::new() };
    }
    let result = read_call(body, question, &mut checks);
    let mut response = vec![RESPONSE.to_owned()];
    match result {
        Some(value) => response.extend(digits(value)),
        None => response.push(ERROR.to_owned()),
    }
    response.push(END_RESPONSE.to_owned());
    Step { ending: Ending::Call, checks, response: vocabulary.encode(&response) }
}

/// Where a think block of one or two tokens ends.
fn think_end(pieces: &[&str]) -> Option<usize> {
    let end = pieces.iter().take(4).position(|piece| *piece == END_THINK)?;
    (pieces[0] == THINK && end >= 2).then_some(end)
}

/// An answer block, or a body that at least ends like one. The checks on calls count as passed.
fn read_answer(body: &[&str], checks: &mut Checks) -> Option<Ending> {
    let inner = body.strip_suffix(&[END_ANSWER])?;
    let Some(inner) = inner.strip_prefix(&[ANSWER]) else { return Some(Ending::Answer(None)) };
    checks[HAS_BLOCK] = true;
    let ending = match inner {
        [word] if *word == CANNOT => Ending::Cannot,
        _ => Ending::Answer(number(inner)),
    };
    if ending != Ending::Answer(None) {
        checks[IS_JSON..].fill(true);
    }
    Some(ending)
}

fn number(pieces: &[&str]) -> Option<f64> {
    let text = pieces.concat();
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-' || byte == b'.');
    if plain { text.parse().ok() } else { None }
}

/// The result of a call; `None` where anything is wrong with it.
fn read_call(body: &[&str], question: &Question, checks: &mut Checks) -> Option<f64> {
    let closes = matches!(body.last(), Some(&CLOSE | &CLOSE_LIST));
    if body.first() != Some(&CALL) || !closes {
        return None;
    }
    checks[HAS_BLOCK] = true;
    let text = body.concat();
    let json = text.strip_prefix("<tool_call>")?.strip_suffix("</tool_call>")?;
    let call: Map<String, Value> = serde_json::from_str(json).ok()?;
    let (name, arguments) = (call.get("name")?.as_str()?, call.get("arguments")?.as_object()?);
    checks[IS_JSON] = true;
    let form = CallForm::of(name)?;
    let tool = crate::tools::find(form.name)?;
    let required = tool.parameters.iter().filter(|parameter| parameter.required).count();
    tool.check_names(arguments).ok()?;
    if arguments.len() != required {
        return None;
    }
    checks[EXACT_KEYS] = true;
    if !question.offered.contains(&form.name) {
        return None;
    }
    let result = observe(form.name, arguments, &question.episode)?;
    checks[SUCCEEDED] = true;
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::format_score;
    use crate::tools::Episode;

    fn read_text(text: &str) -> (Step, String) {
        let vocabulary = Vocabulary::new();
        let question = Question {
            prompt: Vec::new(),
            plan: Vec::new(),
            episode: Episode { hour: 5 },
            offered: vec!["add", "divide", "mean", "get_hour"],
            withheld: None,
            truth: 0.0,
        };
        let step = read(&vocabulary, &question, &vocabulary.tokenise(text).unwrap());
        let response = vocabulary.detokenise(&step.response);
        (step, response)
    }

    #[test]
    fn each_check_fails_alone() {
        let good = r#"<think>use</think><tool_call>{"name":"add","arguments":{"a":20,"b":32}}</tool_call>"#;
        let (step, response) = read_text(good);
        assert_eq!((step.checks, step.ending), ([true; CHECKS], Ending::Call));
        assert_eq!(response, "<tool_response>52</tool_response>");
        let cases = [
            // No think block.
            (
                r#"<tool_call>{"name":"add","arguments":{"a":1,"b":2}}</tool_call>"#,
                [false, true, true, true, true],
            ),
            // No call block.
            (
                r#"<think>use</think>","arguments":{"a":1,"b":2}}</tool_call>"#,
                [true, false, false, false, false],
            ),
            // No JSON: a leading zero.
            (
                r#"<think>use</think><tool_call>{"name":"add","arguments":{"a":01,"b":2}}</tool_call>"#,
                [true, true, false, false, false],
            ),
            // Wrong keys.
            (
                r#"<think>use</think><tool_call>{"name":"add","arguments":{"base":1,"exponent":2}}</tool_call>"#,
                [true, true, true, false, false],
            ),
            // Fails: division by zero, a tool that is not offered.
            (
                r#"<think>use</think><tool_call>{"name":"divide","arguments":{"a":1,"b":0}}</tool_call>"#,
                [true, true, true, true, false],
            ),
            (
                r#"<think>use</think><tool_call>{"name":"multiply","arguments":{"a":1,"b":0}}</tool_call>"#,
                [true, true, true, true, false],
            ),
        ];
        for (text, checks) in cases {
            let (step, response) = read_text(text);
            assert_eq!((step.checks, step.ending), (checks, Ending::Call), "{text}");
            assert_eq!(response.contains(ERROR), !checks[SUCCEEDED], "{text}");
        }
    }

    #[test]
    fn answers_are_numbers_or_cannot() {
        let cases = [
            ("<think>done</think><answer>-12.5</answer>", Ending::Answer(Some(-12.5)), 5),
            ("<answer>7</answer>", Ending::Answer(Some(7.0)), 4),
            ("<think>lack</think><answer>cannot</answer>", Ending::Cannot, 5),
            ("<think>done</think><answer>1-2</answer>", Ending::Answer(None), 2),
            ("<think>done</think>7</answer>", Ending::Answer(None), 1),
        ];
        for (text, ending, passed) in cases {
            let (step, response) = read_text(text);
            assert_eq!(step.ending, ending, "{text}");
            assert_eq!(format_score(&step.checks), f64::from(passed) / 5.0, "{text}");
            assert_eq!(response, "");
        }
    }

    #[test]
    fn lists_and_the_clock_are_called() {
        let list = r#"<tool_call>{"name":"mean","arguments":{"numbers":[1,2]}}</tool_call>"#;
        assert_eq!(read_text(list).1, "<tool_response>1.5</tool_response>");
        let clock = r#"<tool_call>{"name":"get_hour","arguments":{}}</tool_call>"#;
        assert_eq!(read_text(clock).1, "<tool_response>5</tool_response>");
    }

    #[test]
    fn no_tokens_are_a_failed_call() {
        assert_eq!(read_text("").0.checks, [false; CHECKS]);
    }
}
