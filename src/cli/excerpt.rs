//! The line of the user's file that an error is about, with a caret under the place.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use t3c_frontends::Place;

use super::Failure;
use crate::Error;

/// The lines to show under an error, if its place is in a file that can be read.
pub fn of(failure: &Failure) -> Option<String> {
    let place = match failure {
        Failure::Library(Error::Frontend(error)) if error.place().is_some() => error.place().cloned()?,
        failure => named(&failure.to_string())?,
    };
    let text = std::fs::read_to_string(&place.file).ok()?;
    render(&text, &place)
}

/// The first `file:line:column` in a message.
fn named(message: &str) -> Option<Place> {
    message.split(|letter: char| letter.is_whitespace() || "()\"`,".contains(letter)).find_map(|word| {
        let mut parts = word.trim_end_matches(':').rsplitn(3, ':');
        let column = parts.next()?.parse().ok().filter(|column| *column > 0)?;
        let line = parts.next()?.parse().ok()?;
        let file = parts.next().filter(|file| !file.is_empty())?.to_owned();
        Some(Place { file, line, column, length: 0 })
    })
}

fn render(text: &str, place: &Place) -> Option<String> {
    let line = text.lines().nth(place.line.checked_sub(1)?)?;
    let letters: Vec<(usize, char)> = line.char_indices().collect();
    let first = place.column.checked_sub(1)?;
    let is_word = |letter: char| letter.is_alphanumeric() || "_%@#!.".contains(letter);
    let word = letters.iter().skip(first).take_while(|(_, letter)| is_word(*letter)).count();
    let length = if place.length > 0 { place.length } else { word.max(1) };
    let byte = |index: usize| letters.get(index).map_or(line.len(), |(byte, _)| *byte);
    let span = byte(first)..byte(first + length);
    let snippet = Snippet::source(line).line_start(place.line).annotation(AnnotationKind::Primary.span(span));
    Some(Renderer::plain().render(&[Group::with_level(Level::ERROR).element(snippet)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_value() {
        let text = "{\n  \"hidden_size\": 11007,\n}";
        let place = Place { file: "config.json".into(), line: 2, column: 18, length: 5 };
        let shown = render(text, &place).expect("a line");
        let lines: Vec<&str> = shown.lines().collect();
        let source = lines.iter().position(|line| line.contains("hidden_size")).expect("the line");
        let at = |line: &str, what: &str| line.find(what).expect("stands there");
        assert_eq!(at(lines[source], "11007"), at(lines[source + 1], "^^^^^"), "{shown}");
        assert_eq!(render(text, &Place { line: 9, ..place.clone() }), None);
        assert_eq!(render(text, &Place { line: 0, ..place }), None);
    }

    #[test]
    fn places_are_found_in_messages() {
        let found = named("layer.out (a/m.mlir:12:7): expected a tensor").expect("a place");
        assert_eq!((found.file.as_str(), found.line, found.column), ("a/m.mlir", 12, 7));
        assert_eq!(named("m.mlir:1:2: bad").map(|place| place.line), Some(1));
        assert_eq!(named("--tp = 3: no"), None);
        assert_eq!(named("ratio 1:2"), None);
    }
}
