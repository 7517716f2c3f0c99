//! What each pair of a program is, and what became of it: remarks of the fusing passes, gathered.

use serde::Serialize;
use t3c_passes::{Kind, Remark};

/// Pairs of one kind at one place, over all layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Group {
    /// The producer with its collective, or the gather with its readers.
    pub pair: String,
    /// Whether it was fused.
    pub fused: bool,
    /// How often the program runs it.
    pub times: u64,
    /// `fused`, or why not.
    pub reason: String,
    /// Where it stands first in the model.
    pub location: String,
    /// What may change a refusal.
    pub suggest: Option<String>,
}

/// The passes whose remarks are about pairs.
const PASSES: [&str; 2] = ["t3-fuse", "t3-find-pairs"];

/// The pairs that remarks are about, in the order in which the passes met them.
pub fn groups(remarks: &[Remark]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for remark in remarks {
        if !PASSES.contains(&remark.pass) || remark.kind == Kind::Analysis {
            continue;
        }
        let group = Group {
            pair: remark.pair.clone().unwrap_or_else(|| place(&remark.location).to_owned()),
            fused: remark.kind == Kind::Passed,
            times: remark.times,
            reason: remark.reason.to_owned(),
            location: remark.location.clone(),
            suggest: remark.suggest.map(str::to_owned),
        };
        match groups.iter_mut().find(|known| known.is_like(&group)) {
            Some(known) => known.times += group.times,
            None => groups.push(group),
        }
    }
    groups
}

impl Group {
    fn is_like(&self, other: &Self) -> bool {
        (&self.pair, self.fused, &self.reason) == (&other.pair, other.fused, &other.reason)
            && place(&self.location) == place(&other.location)
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let Self { pair, times, reason, location, .. } = self;
        match (self.fused, &self.suggest) {
            (true, _) => format!("  fused {times}: {pair} ({location})\n"),
            (false, None) => format!("  declined {times}: {reason}: {pair} ({location})\n"),
            (false, Some(suggest)) => {
                format!("  declined {times}: {reason}: {pair} ({location}); {suggest}\n")
            }
        }
    }
}

/// The name in a location such as `layer.mlp.fc_2 (model.json:3:4)`.
fn place(location: &str) -> &str {
    location.split_once(" (").map_or(location, |(name, _)| name)
}

/// Lines that differ in their first number only, which counts up by one, as one line.
pub fn folded(lines: &[String]) -> Vec<String> {
    let mut folded: Vec<String> = Vec::new();
    let mut run: Option<(u64, u64, String)> = None;
    let flush = |run: &mut Option<(u64, u64, String)>, folded: &mut Vec<String>| {
        if let Some((first, last, line)) = run.take() {
            folded.push(match first == last {
                true => line,
                false => line.replacen(&format!("d+{first}"), &format!("d+{first} to d+{last}"), 1),
            });
        }
    };
    for line in lines {
        let number = offset(line);
        match (&mut run, number) {
            (Some((first, last, known)), Some(number))
                if number == *last + 1
                    && known.replacen(&format!("d+{first}"), "", 1)
                        == line.replacen(&format!("d+{number}"), "", 1) =>
            {
                *last = number;
            }
            _ => {
                flush(&mut run, &mut folded);
                match number {
                    Some(number) => run = Some((number, number, line.clone())),
                    None => folded.push(line.clone()),
                }
            }
        }
    }
    flush(&mut run, &mut folded);
    folded
}

/// The number after the line's first `d+`.
fn offset(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("d+")?;
    let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_do_the_same_are_one_line() {
        let lines = ["chunk d+1: remote", "chunk d+2: local", "chunk d+3: local", "chunk d+0: done", "x"];
        let folded = folded(&lines.map(str::to_owned));
        assert_eq!(folded, ["chunk d+1: remote", "chunk d+2 to d+3: local", "chunk d+0: done", "x"]);
    }

    #[test]
    fn pairs_are_gathered_over_layers() {
        let remark = |kind, reason, times| Remark {
            kind,
            pass: "t3-fuse",
            reason,
            message: String::new(),
            location: "layer.down (m.json:1:2)".into(),
            function: "layer".into(),
            pair: Some("down reduce_scatter".into()),
            times,
            numbers: vec![],
            suggest: None,
        };
        let remarks = [
            remark(Kind::Passed, "fused", 2),
            remark(Kind::Analysis, "bound", 2),
            remark(Kind::Passed, "fused", 3),
            remark(Kind::Missed, "unprofitable", 1),
        ];
        let text: String = groups(&remarks).iter().map(Group::text).collect();
        assert_eq!(
            text,
            "  fused 5: down reduce_scatter (layer.down (m.json:1:2))\n  \
             declined 1: unprofitable: down reduce_scatter (layer.down (m.json:1:2))\n"
        );
    }
}
