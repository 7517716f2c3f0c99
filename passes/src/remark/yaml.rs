//! Remarks as LLVM's optimization records, which `opt-viewer`, `llvm-remarkutil` and editors read.
//!
//! One document a remark: `--- !Passed`, `!Missed` or `!Analysis`; the pass, the reason as `Name`, the place, the
//! function, and the facts as `Args`, in the order in which a sentence would give them.

use std::fmt::Write as _;

use super::{Kind, Remark};

/// The remarks as a stream of YAML documents.
pub fn to_yaml(remarks: &[Remark]) -> String {
    let mut text = String::new();
    for remark in remarks {
        // Writing to a string cannot fail.
        let _ = document(&mut text, remark);
    }
    text
}

fn document(text: &mut String, remark: &Remark) -> std::fmt::Result {
    let kind = match remark.kind {
        Kind::Passed => "Passed",
        Kind::Missed => "Missed",
        Kind::Analysis => "Analysis",
    };
    let (name, place) = split_location(&remark.location);
    writeln!(text, "--- !{kind}")?;
    writeln!(text, "Pass:            {}", scalar(remark.pass))?;
    writeln!(text, "Name:            {}", scalar(remark.reason))?;
    if let Some((file, line, column)) = place {
        writeln!(text, "DebugLoc:        {{ File: {}, Line: {line}, Column: {column} }}", quoted(file))?;
    }
    writeln!(text, "Function:        {}", scalar(&remark.function))?;
    writeln!(text, "Args:")?;
    let mut argument = |key: &str, value: &str| writeln!(text, "  - {key}: {}", quoted(value));
    argument("String", &remark.message)?;
    if let Some(pair) = &remark.pair {
        argument("Pair", pair)?;
    }
    if let Some(name) = name {
        argument("Location", name)?;
    }
    argument("Times", &remark.times.to_string())?;
    for (key, value) in &remark.numbers {
        argument(key, &value.to_string())?;
    }
    if let Some(suggest) = remark.suggest {
        argument("Suggest", suggest)?;
    }
    writeln!(text, "...")
}

/// The name, and the file, line and column, of a rendered location.
fn split_location(location: &str) -> (Option<&str>, Option<(&str, u64, u64)>) {
    let (name, place) = match location.strip_suffix(')').and_then(|text| text.rsplit_once(" (")) {
        Some((name, place)) => (Some(name), place),
        None => (None, location),
    };
    let parts = || {
        let (rest, column) = place.rsplit_once(':')?;
        let (file, line) = rest.rsplit_once(':')?;
        Some((file, line.parse().ok()?, column.parse().ok()?))
    };
    match parts() {
        Some(parts) => (name, Some(parts)),
        None => (Some(location), None),
    }
}

/// A plain scalar where the text is one for every reader, else a quoted one.
fn scalar(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_plain { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped += &format!("\\x{:02X}", u32::from(c).min(0xff)),
            c => escaped.push(c),
        }
    }
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_is_one_document_as_llvm_writes_them() {
        let remark = Remark {
            kind: Kind::Missed,
            pass: "t3-fuse",
            reason: "unprofitable",
            message: "the layer's pair takes 4 us, fused 6 us".into(),
            location: "model.layers.3.mlp.down_proj (config.json:12:5)".into(),
            function: "layer".into(),
            pair: Some("down_proj reduce_scatter".into()),
            times: 32,
            numbers: vec![("sequential_us", 4.0), ("fused_us", 6.5)],
            suggest: Some("try b"),
        };
        let expected = "\
--- !Missed
Pass:            t3-fuse
Name:            unprofitable
DebugLoc:        { File: 'config.json', Line: 12, Column: 5 }
Function:        layer
Args:
  - String: 'the layer''s pair takes 4 us, fused 6 us'
  - Pair: 'down_proj reduce_scatter'
  - Location: 'model.layers.3.mlp.down_proj'
  - Times: '32'
  - sequential_us: '4'
  - fused_us: '6.5'
  - Suggest: 'try b'
...
";
        assert_eq!(to_yaml(&[remark]), expected);
    }

    #[test]
    fn places_and_odd_texts_are_kept() {
        assert_eq!(split_location("a.mlir:1:2"), (None, Some(("a.mlir", 1, 2))));
        assert_eq!(split_location("unknown location"), (Some("unknown location"), None));
        assert_eq!(split_location("C:\\m.mlir:1:2").1, Some(("C:\\m.mlir", 1, 2)));
        assert_eq!(scalar("layer 1"), "'layer 1'");
        assert_eq!(quoted("a\nb"), "\"a\\x0Ab\"");
    }
}
