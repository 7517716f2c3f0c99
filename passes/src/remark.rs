//! Remarks: what a pass did, what it declined and why, as plain values.
//!
//! A remark belongs to the compiler run that made it: passes run on the thread that asked for them, so
//! [`collect`] keeps a list a thread, and two compilers on two threads never see each other's. Outside
//! [`collect`] (a bare pass manager, `t3c opt`) remarks become MLIR remarks at the operation's location.

mod yaml;

use std::cell::RefCell;

use serde::Serialize;
use t3c_ir::{Op, Severity, context::render_location, ffi, function::Function};

pub use yaml::to_yaml;

/// MLIR's kinds of remark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The pass did what it exists for.
    Passed,
    /// It could not, or chose not to; the reason says why.
    Missed,
    /// A fact that explains later decisions.
    Analysis,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Passed => "passed",
            Kind::Missed => "missed",
            Kind::Analysis => "analysis",
        })
    }
}

/// One remark.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Remark {
    /// Done, declined, or a fact.
    pub kind: Kind,
    /// The pass's name.
    pub pass: &'static str,
    /// A stable kebab-case id: a decline reason, or what was done.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// Where in the user's model.
    pub location: String,
    /// The function that holds the place.
    pub function: String,
    /// What the pair is, where the remark is about one: `o_proj reduce_scatter`, `all_gather q_proj, k_proj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// How often the program meets the place: the calls of its function, over all callers.
    pub times: u64,
    /// The figures behind the decision.
    pub numbers: Vec<(&'static str, f64)>,
    /// What the user may try.
    pub suggest: Option<&'static str>,
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}: {}", self.location, self.kind, self.reason, self.message)?;
        if self.times != 1 {
            write!(f, " ({} times)", self.times)?;
        }
        self.suggest.map_or(Ok(()), |suggest| write!(f, "; {suggest}"))
    }
}

thread_local! {
    /// The lists of the runs in progress on this thread, innermost last.
    static LISTS: RefCell<Vec<Vec<Remark>>> = const { RefCell::new(Vec::new()) };
}

/// Closes the innermost list even when the run unwinds.
struct OpenList;

impl OpenList {
    fn new() -> Self {
        LISTS.with_borrow_mut(|lists| lists.push(Vec::new()));
        Self
    }
}

impl Drop for OpenList {
    fn drop(&mut self) {
        LISTS.with_borrow_mut(Vec::pop);
    }
}

/// Runs `work` and returns the remarks that passes made in it on this thread, oldest first.
pub fn collect<T>(work: impl FnOnce() -> T) -> (T, Vec<Remark>) {
    let open = OpenList::new();
    let value = work();
    let remarks = LISTS.with_borrow_mut(|lists| lists.last_mut().map(std::mem::take)).unwrap_or_default();
    drop(open);
    (value, remarks)
}

/// Keeps `remark` in the innermost list, or hands it to MLIR where there is none.
pub(crate) fn record(operation: Op<'_, '_>, mut remark: Remark) {
    use melior::ir::operation::OperationLike;
    remark.location = render_location(operation.location());
    remark.function = holder(operation);
    let unkept = LISTS.with_borrow_mut(|lists| match lists.last_mut() {
        Some(list) => {
            list.push(remark);
            None
        }
        None => Some(remark),
    });
    if let Some(remark) = unkept {
        let text = format!("{}: {}: {}", remark.kind, remark.reason, remark.message);
        ffi::emit(Severity::Remark, operation.location(), &text);
    }
}

/// The name of the function around an operation; empty for none.
fn holder(operation: Op<'_, '_>) -> String {
    let mut at = Some(operation);
    while let Some(op) = at {
        if let Some(function) = Function::cast(op) {
            return function.name();
        }
        at = ffi::parent(op);
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(reason: &'static str) -> Remark {
        Remark {
            kind: Kind::Missed,
            pass: "t3-fuse",
            reason,
            message: "m".into(),
            location: "a.mlir:1:2".into(),
            function: "layer".into(),
            pair: None,
            times: 3,
            numbers: vec![],
            suggest: Some("try b"),
        }
    }

    #[test]
    fn lists_nest_and_belong_to_their_thread() {
        let ((), outer) = collect(|| {
            LISTS.with_borrow_mut(|lists| lists.last_mut().unwrap().push(remark("outer")));
            let ((), inner) = collect(|| {
                LISTS.with_borrow_mut(|lists| lists.last_mut().unwrap().push(remark("inner")));
            });
            assert_eq!(inner, [remark("inner")]);
            let other = std::thread::spawn(|| LISTS.with_borrow(Vec::len)).join().unwrap();
            assert_eq!(other, 0);
        });
        assert_eq!(outer, [remark("outer")]);
        assert_eq!(LISTS.with_borrow(Vec::len), 0);
    }

    #[test]
    fn a_remark_reads_as_one_line() {
        let text = remark("unprofitable").to_string();
        assert_eq!(text, "a.mlir:1:2: missed: unprofitable: m (3 times); try b");
    }
}
