//! The words of the questions.
//!
//! In a wording, `A`, `B` and `C` stand for numbers and `L` for a list of two or three.

/// A first phrase: what it asks for and how it may be said.
pub(super) struct First {
    /// Name of the operation, which is also its key in the hash that splits the questions.
    pub name: &'static str,
    /// The tools that answer it, in order.
    pub calls: &'static [&'static str],
    /// The wordings.
    pub wordings: &'static [&'static str],
}

/// A phrase that continues with the result so far.
pub(super) struct Then {
    /// The tool that answers it: operands are the result so far and `C`.
    pub tool: &'static str,
    /// The wordings.
    pub wordings: &'static [&'static str],
}

pub(super) const FRAMES: [&str; 6] = ["what is", "find", "tell me", "give me", "compute", "please find"];

const fn first(
    name: &'static str,
    calls: &'static [&'static str],
    wordings: &'static [&'static str],
) -> First {
    First { name, calls, wordings }
}

/// First phrases that one call answers.
pub(super) const SINGLE: [First; 9] = [
    first("add", &["add"], &["A plus B", "sum of A and B", "A and B in all"]),
    first("subtract", &["subtract"], &["A minus B", "A less B", "take B from A"]),
    first("multiply", &["multiply"], &["A times B", "product of A and B", "B lots of A"]),
    first("divide", &["divide"], &["A over B", "A split by B", "share A among B"]),
    first("power", &["power"], &["A to the power B", "A raised to B"]),
    first("mean", &["mean"], &["mean of L", "average of L"]),
    first("max_value", &["max_value"], &["largest of L", "highest of L"]),
    first("min_value", &["min_value"], &["smallest of L", "lowest of L"]),
    first("get_hour", &["get_hour"], &["hour now", "current hour"]),
];

/// First phrases that two calls answer.
pub(super) const DOUBLE: [First; 2] = [
    first("gap", &["subtract", "absolute_value"], &["gap between A and B", "how far A is from B"]),
    first("divround", &["divide", "round_number"], &["A over B rounded", "A split by B to nearest whole"]),
];

pub(super) const THEN: [Then; 7] = [
    Then { tool: "add", wordings: &["plus C", "add C"] },
    Then { tool: "subtract", wordings: &["minus C", "take off C"] },
    Then { tool: "multiply", wordings: &["times C", "C fold"] },
    Then { tool: "max_value", wordings: &["larger with C", "or C if more"] },
    Then { tool: "min_value", wordings: &["smaller with C", "or C if less"] },
    Then { tool: "mean", wordings: &["averaged with C"] },
    Then { tool: "power", wordings: &["to the power C"] },
];

/// All words of frames and phrases, with repetitions.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    let singles = SINGLE.iter().chain(&DOUBLE).flat_map(|phrase| phrase.wordings);
    let thens = THEN.iter().flat_map(|phrase| phrase.wordings);
    FRAMES
        .iter()
        .chain(singles)
        .chain(thens)
        .flat_map(|text| text.split(' '))
        .chain(["then", ";", "?"])
        .filter(|word| !["A", "B", "C", "L"].contains(word))
}
