//! The eleven tools of the mini-task, how a call to each is spelled in tokens, and how results are
//! brought into the task's range.

use serde_json::{Map, Value, json};

use crate::tools::{self, Episode};

/// The tokens of a call and where they differ between tools.
pub(super) struct CallForm {
    /// The tool's name, which is one token.
    pub name: &'static str,
    /// The token between the name and the first operand.
    pub opening: &'static str,
    /// The token between two operands.
    pub separator: Option<&'static str>,
    /// The token that closes the call.
    pub closing: &'static str,
}

pub(super) const CALL: &str = r#"<tool_call>{"name":""#;
pub(super) const CLOSE: &str = "}}</tool_call>";
pub(super) const CLOSE_LIST: &str = "]}}</tool_call>";

const OPEN_A: &str = r#"","arguments":{"a":"#;
const OPEN_BASE: &str = r#"","arguments":{"base":"#;
const OPEN_NUMBER: &str = r#"","arguments":{"number":"#;
const OPEN_NUMBERS: &str = r#"","arguments":{"numbers":["#;
const OPEN_NONE: &str = r#"","arguments":{"#;
const NEXT_B: &str = r#","b":"#;
const NEXT_EXPONENT: &str = r#","exponent":"#;

/// The openings and separators, sorted as the vocabulary lists them.
pub(super) const OPENINGS: [&str; 5] = [OPEN_A, OPEN_BASE, OPEN_NUMBER, OPEN_NUMBERS, OPEN_NONE];
pub(super) const SEPARATORS: [&str; 3] = [",", NEXT_B, NEXT_EXPONENT];

const fn form(
    name: &'static str,
    opening: &'static str,
    separator: Option<&'static str>,
    closing: &'static str,
) -> CallForm {
    CallForm { name, opening, separator, closing }
}

pub(super) const FORMS: [CallForm; 11] = [
    form("add", OPEN_A, Some(NEXT_B), CLOSE),
    form("subtract", OPEN_A, Some(NEXT_B), CLOSE),
    form("multiply", OPEN_A, Some(NEXT_B), CLOSE),
    form("divide", OPEN_A, Some(NEXT_B), CLOSE),
    form("power", OPEN_BASE, Some(NEXT_EXPONENT), CLOSE),
    form("absolute_value", OPEN_NUMBER, None, CLOSE),
    form("mean", OPEN_NUMBERS, Some(","), CLOSE_LIST),
    form("max_value", OPEN_NUMBERS, Some(","), CLOSE_LIST),
    form("min_value", OPEN_NUMBERS, Some(","), CLOSE_LIST),
    form("round_number", OPEN_NUMBER, None, CLOSE),
    form("get_hour", OPEN_NONE, None, CLOSE),
];

impl CallForm {
    /// The form of the tool called `name`, if it is one of the task's.
    pub fn of(name: &str) -> Option<&'static CallForm> {
        FORMS.iter().find(|form| form.name == name)
    }

    /// How many operands a well-formed call takes; `None` for a list.
    pub fn arity(&self) -> Option<usize> {
        match self.opening {
            OPEN_NUMBERS => None,
            OPEN_NONE => Some(0),
            OPEN_NUMBER => Some(1),
            _ => Some(2),
        }
    }

    /// The pieces of a call with these operands.
    pub fn pieces(&self, operands: &[f64]) -> Vec<String> {
        let mut pieces = vec![CALL.to_owned(), self.name.to_owned(), self.opening.to_owned()];
        for (index, operand) in operands.iter().enumerate() {
            if index > 0 {
                pieces.push(self.separator.unwrap_or(",").to_owned());
            }
            pieces.extend(digits(*operand));
        }
        pieces.push(self.closing.to_owned());
        pieces
    }

    /// The result for these operands, in the task's range.
    pub fn result(&self, operands: &[f64], episode: &Episode) -> Option<f64> {
        let mut arguments = Map::new();
        match self.opening {
            OPEN_A => insert(&mut arguments, &["a", "b"], operands),
            OPEN_BASE => insert(&mut arguments, &["base", "exponent"], operands),
            OPEN_NUMBER => insert(&mut arguments, &["number"], operands),
            OPEN_NUMBERS => {
                arguments.insert("numbers".to_owned(), json!(operands));
            }
            _ => {}
        }
        observe(self.name, &arguments, episode)
    }
}

fn insert(arguments: &mut Map<String, Value>, keys: &[&str], operands: &[f64]) {
    for (key, operand) in keys.iter().zip(operands) {
        arguments.insert((*key).to_owned(), json!(operand));
    }
}

/// Runs a tool and rounds its result to two decimals; nothing at or above a million.
pub(super) fn observe(name: &str, arguments: &Map<String, Value>, episode: &Episode) -> Option<f64> {
    let result = tools::find(name)?.call(arguments, episode).ok()?;
    if result.abs() >= 1e6 {
        return None;
    }
    format!("{result:.2}").parse().ok()
}

/// A number in the task's notation, one piece a digit: at most two decimals, no trailing zeros.
pub(super) fn digits(number: f64) -> Vec<String> {
    let text = format!("{number:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let text = if text == "-0" { "0" } else { text };
    text.chars().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_trailing_zeros() {
        for (number, text) in
            [(52.0, "52"), (-3.5, "-3.5"), (0.333_33, "0.33"), (-0.001, "0"), (100.0, "100")]
        {
            assert_eq!(digits(number).concat(), text);
        }
    }

    #[test]
    fn results_leave_the_range_as_errors() {
        let episode = Episode { hour: 3 };
        let divide = CallForm::of("divide").unwrap();
        assert_eq!(divide.result(&[1.0, 3.0], &episode), Some(0.33));
        assert_eq!(divide.result(&[1.0, 0.0], &episode), None);
        assert_eq!(CallForm::of("power").unwrap().result(&[99.0, 3.0], &episode), Some(970_299.0));
        assert_eq!(CallForm::of("power").unwrap().result(&[100.0, 3.0], &episode), None);
        assert_eq!(CallForm::of("get_hour").unwrap().result(&[], &episode), Some(3.0));
    }

    #[test]
    fn a_call_is_json_between_its_tags() {
        let pieces = CallForm::of("mean").unwrap().pieces(&[12.0, 7.5]).concat();
        assert_eq!(pieces, r#"<tool_call>{"name":"mean","arguments":{"numbers":[12,7.5]}}</tool_call>"#);
    }
}
