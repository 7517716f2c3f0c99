//! JSON with places: serde reads the values, and this tells where in the file each of them stands.

use std::ops::Range;

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{ObjectPropName, Value},
    common::Ranged,
    parse_to_ast,
};
use serde::{Deserialize, Deserializer, de};

use crate::error::{Error, Field, Place};

/// A parsed file.
#[derive(Clone, Debug)]
pub struct Source {
    file: String,
    text: String,
    root: Node,
}

#[derive(Clone, Debug)]
struct Node {
    range: Range<usize>,
    children: Children,
}

#[derive(Clone, Debug)]
enum Children {
    Scalar,
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
}

/// JSON as its standard has it: none of the parser's extensions.
const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

impl Source {
    /// Parses `text`; `file` is the name in its places.
    ///
    /// # Errors
    /// [`Error::Syntax`] at the first thing that is not JSON.
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        let syntax = |range: Range<usize>, message: String| Error::Syntax {
            place: place(file, text, &range),
            message,
        };
        let parsed = parse_to_ast(text, &CollectOptions::default(), &STRICT).map_err(|error| {
            let (range, message) = (error.range(), lower(&error.kind().to_string()));
            if !message.starts_with("unterminated") {
                return syntax(range.start..range.end, message);
            }
            // The parser names where the object or array starts; what lacks is at the end.
            let start = place(file, text, &(range.start..range.end));
            let message = format!("{message}, which starts at line {}", start.line);
            syntax(text.len()..text.len(), message)
        })?;
        let value = parsed.value.ok_or_else(|| syntax(0..0, "expected a JSON value".into()))?;
        Ok(Self { file: file.to_owned(), text: text.to_owned(), root: node(&value) })
    }

    /// Reads the whole file as `T`.
    ///
    /// # Errors
    /// [`Error::Invalid`] at the field that does not fit.
    pub fn read<T: de::DeserializeOwned>(&self) -> Result<T, Error> {
        let mut reader = serde_json::Deserializer::from_str(&self.text);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let message = message(error.inner());
            if path == "." {
                let field =
                    Field { place: Some(Box::new(self.at(&self.root.range))), name: "the file".into() };
                return Error::Invalid { field, message };
            }
            Error::Invalid { field: self.field(&path), message }
        })
    }

    /// The place of a field, or of the nearest part of the file that encloses it: `a.b[3].c`.
    pub fn place(&self, path: &str) -> Option<Place> {
        let mut node = &self.root;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match &node.children {
                Children::Object(entries) => {
                    entries.iter().find(|(name, _)| name == step).map(|(_, child)| child)
                }
                Children::Array(elements) => {
                    step.trim_end_matches(']').parse::<usize>().ok().and_then(|index| elements.get(index))
                }
                Children::Scalar => None,
            };
            let Some(next) = next else { break };
            node = next;
        }
        Some(self.at(&node.range))
    }

    /// A field with its place.
    pub fn field(&self, path: &str) -> Field {
        Field { place: self.place(path).map(Box::new), name: path.to_owned() }
    }

    /// A string field of the file's object.
    pub fn string(&self, name: &str) -> Option<String> {
        let Children::Object(entries) = &self.root.children else { return None };
        let (_, node) = entries.iter().find(|(key, _)| key == name)?;
        serde_json::from_str(self.text.get(node.range.clone())?).ok()
    }

    /// Whether the file is an object with this field.
    pub fn has(&self, name: &str) -> bool {
        matches!(&self.root.children, Children::Object(entries) if entries.iter().any(|(key, _)| key == name))
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    fn at(&self, range: &Range<usize>) -> Place {
        place(&self.file, &self.text, range)
    }
}

fn node(value: &Value<'_>) -> Node {
    let range = value.range();
    let children = match value {
        Value::Object(object) => Children::Object(
            object
                .properties
                .iter()
                .map(|property| {
                    let name = match &property.name {
                        ObjectPropName::String(name) => name.value.to_string(),
                        ObjectPropName::Word(name) => name.value.to_owned(),
                    };
                    (name, node(&property.value))
                })
                .collect(),
        ),
        Value::Array(array) => Children::Array(array.elements.iter().map(node).collect()),
        _ => Children::Scalar,
    };
    Node { range: range.start..range.end, children }
}

fn place(file: &str, text: &str, range: &Range<usize>) -> Place {
    let before = text.get(..range.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let selected = text.get(range.clone()).unwrap_or_default();
    Place {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        length: selected.lines().next().map_or(0, |line| line.chars().count()).max(1),
    }
}

fn lower(message: &str) -> String {
    let mut letters = message.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// serde_json's message without its own idea of the place.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}

/// A size: a whole number of at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[schemars(transparent)]
pub struct Size(#[schemars(range(min = 1))] pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number of at least 1")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
                    .and_then(|value| self.visit_u64(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                if value == 0 {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(0), &self));
                }
                Ok(Size(value))
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        #[allow(dead_code)]
        a: Inner,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        sizes: Vec<Size>,
    }

    fn error(text: &str) -> String {
        match Source::parse("f.json", text).and_then(|source| source.read::<File>()) {
            Ok(file) => panic!("expected an error, read {file:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_wrong_value_is_located() {
        let text = "{\n  \"a\": {\"sizes\": [3, -5]}\n}";
        assert_eq!(
            error(text),
            "f.json:2:22: `a.sizes[1]`: invalid value: integer `-5`, expected a whole number of at least 1"
        );
        assert!(error("{\"a\": {\"sizes\": [0]}}").contains("f.json:1:18: `a.sizes[0]`"));
        assert!(error("{\"a\": {\"sizes\": [1.5]}}").contains("expected a whole number"));
        assert!(
            error("{\"a\": {\"sizes\": [99999999999999999999999]}}").starts_with("f.json:1:18: `a.sizes[0]`")
        );
    }

    #[test]
    fn a_missing_field_is_located_at_its_object() {
        assert_eq!(error("{\n \"a\": {}\n}"), "f.json:2:7: `a`: missing field `sizes`");
    }

    #[test]
    fn what_is_not_json_is_located() {
        assert!(
            error("{\"a\": {\"sizes\": [1, 2").starts_with("f.json:1:"),
            "{}",
            error("{\"a\": {\"sizes\": [1, 2")
        );
        assert!(error("{\"a\": 1,}").starts_with("f.json:1:"));
        assert!(error("// no\n{}").starts_with("f.json:1:"));
        assert!(error("").starts_with("f.json:1:1: "));
    }
}
