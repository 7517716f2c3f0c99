//! The tokens. Pieces of the frame are single tokens, so that a step is short although it is real
//! JSON between real tags; numbers are spelled digit by digit.

use std::collections::{BTreeSet, HashMap};

use thiserror::Error;

use super::Token;
use super::calls::{CALL, CLOSE, CLOSE_LIST, FORMS, OPENINGS, SEPARATORS};
use super::phrases;

/// Padding, and the token of id 0.
pub(super) const PAD: &str = "<pad>";
pub(super) const TOOLS: &str = "<tools>";
pub(super) const END_TOOLS: &str = "</tools>";
pub(super) const THINK: &str = "<think>";
pub(super) const END_THINK: &str = "</think>";
pub(super) const ANSWER: &str = "<answer>";
pub(super) const END_ANSWER: &str = "</answer>";
pub(super) const RESPONSE: &str = "<tool_response>";
pub(super) const END_RESPONSE: &str = "</tool_response>";
pub(super) const ERROR: &str = "error";
pub(super) const CANNOT: &str = "cannot";

const FRAME: [&str; 18] = [
    PAD,
    TOOLS,
    END_TOOLS,
    THINK,
    END_THINK,
    CALL,
    CLOSE,
    CLOSE_LIST,
    ANSWER,
    END_ANSWER,
    RESPONSE,
    END_RESPONSE,
    ERROR,
    CANNOT,
    "use",
    "done",
    "lack",
    "-",
];
const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Text that is no sequence of tokens.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("no token matches the text at byte {at}")]
pub struct UnknownText {
    /// Where the first piece that is no token begins.
    pub at: usize,
}

/// The tokens and their text.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    pieces: Vec<&'static str>,
    ids: HashMap<&'static str, Token>,
    ends: [Token; 3],
    longest: usize,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self::new()
    }
}

impl Vocabulary {
    /// The vocabulary of the mini-task.
    pub fn new() -> Self {
        let mut pieces: Vec<&'static str> = FRAME.to_vec();
        pieces.push(".");
        pieces.extend(OPENINGS);
        pieces.extend(SEPARATORS);
        pieces.extend(FORMS.iter().map(|form| form.name));
        pieces.extend(DIGITS);
        let words: BTreeSet<_> = phrases::words().filter(|word| !pieces.contains(word)).collect();
        pieces.extend(words);
        let ids: HashMap<_, _> = pieces.iter().enumerate().map(|(id, piece)| (*piece, id as Token)).collect();
        let ends = [CLOSE, CLOSE_LIST, END_ANSWER].map(|piece| ids[piece]);
        let longest = pieces.iter().map(|piece| piece.len()).max().unwrap_or(0);
        Self { pieces, ids, ends, longest }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is no token (never).
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The text of all tokens, by id.
    pub fn pieces(&self) -> &[&'static str] {
        &self.pieces
    }

    /// The text of a token; the empty string for an id out of range.
    pub fn piece(&self, token: Token) -> &'static str {
        usize::try_from(token).ok().and_then(|id| self.pieces.get(id)).copied().unwrap_or("")
    }

    /// The token with exactly this text.
    pub fn id(&self, piece: &str) -> Option<Token> {
        self.ids.get(piece).copied()
    }

    /// Whether `token` closes a call or an answer.
    pub fn ends_step(&self, token: Token) -> bool {
        self.ends.contains(&token)
    }

    /// The text of a sequence: words and numbers apart, frames as they are.
    pub fn detokenise(&self, tokens: &[Token]) -> String {
        let mut text = String::new();
        let mut previous = Class::Frame;
        for token in tokens {
            let piece = self.piece(*token);
            let class = Class::of(piece);
            let apart = previous != Class::Frame && class != Class::Frame;
            if apart && !(previous == Class::Number && class == Class::Number) {
                text.push(' ');
            }
            text.push_str(piece);
            previous = class;
        }
        text
    }

    /// The tokens of a text, longest piece first; spaces only separate.
    pub fn tokenise(&self, text: &str) -> Result<Vec<Token>, UnknownText> {
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < text.len() {
            if text.as_bytes()[at] == b' ' {
                at += 1;
                continue;
            }
            let matched = (1..=self.longest.min(text.len() - at))
                .rev()
                .find_map(|length| self.id(text.get(at..at + length)?).map(|id| (id, length)));
            let (id, length) = matched.ok_or(UnknownText { at })?;
            tokens.push(id);
            at += length;
        }
        Ok(tokens)
    }

    /// Ids of pieces that are in the vocabulary by construction.
    pub(super) fn encode<S: AsRef<str>>(&self, pieces: &[S]) -> Vec<Token> {
        pieces.iter().map(|piece| self.ids[piece.as_ref()]).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Frame,
    Number,
    Word,
}

impl Class {
    fn of(piece: &str) -> Self {
        let first = piece.chars().next().unwrap_or('<');
        if first.is_ascii_digit() || piece == "-" || piece == "." {
            Self::Number
        } else if first.is_ascii_lowercase() || piece == "?" {
            Self::Word
        } else {
            Self::Frame
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_single_tokens_and_padding_is_zero() {
        let vocabulary = Vocabulary::new();
        assert_eq!(vocabulary.len(), 104);
        assert_eq!(vocabulary.id(PAD), Some(0));
        let text = r#"<think>use</think><tool_call>{"name":"add","arguments":{"a":20,"b":3}}</tool_call>"#;
        let tokens = vocabulary.tokenise(text).unwrap();
        assert_eq!(tokens.len(), 3 + 3 + 2 + 1 + 1 + 1);
        assert_eq!(vocabulary.detokenise(&tokens), text);
        assert!(vocabulary.ends_step(*tokens.last().unwrap()));
    }

    #[test]
    fn unknown_text_is_located() {
        assert_eq!(Vocabulary::new().tokenise("find é"), Err(UnknownText { at: 5 }));
        assert_eq!(Vocabulary::new().tokenise("what was"), Err(UnknownText { at: 5 }));
    }
}
