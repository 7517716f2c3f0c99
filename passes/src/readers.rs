//! What reads a gathered value part by part: products and units, and the row-wise elementwise work and norms
//! between the gather and them.

use std::collections::{HashMap, HashSet};

use melior::ir::operation::OperationLike;
use t3c_ir::{Op, Val, ffi, walk};

use crate::{
    decline::Decline,
    dimensions::{Along, Kind, after, kind},
    flow::Flow,
    producers::describe,
};

/// The readers of a gathered value.
#[derive(Debug)]
pub struct Readers<'c, 'a> {
    /// Everything that moves into the region, in program order.
    pub members: Vec<Op<'c, 'a>>,
    /// The products and units among them.
    pub leaves: Vec<Op<'c, 'a>>,
}

/// The readers of the result of `gather` along its `dimension`, which comes in `parts` equal parts. All of them
/// go into one region; a reader that needs a result of the region, or sums over the gathered dimension, stays
/// outside and reads the whole value.
///
/// # Errors
/// Why there is no reader that could use parts as they arrive.
pub fn readers<'c, 'a>(
    flow: &Flow<'c, 'a>,
    gather: Op<'c, 'a>,
    value: Val<'c, 'a>,
    dimension: usize,
    parts: u64,
) -> Result<Readers<'c, 'a>, Decline> {
    let mut search =
        Search { flow, parts, along: HashMap::from([(ffi::value_key(value), dimension)]), reduced: None };
    let (mut members, mut leaves) = (Vec::new(), Vec::new());
    // Operations outside the region that need its results: what they make comes too late for a member.
    let mut late: HashSet<usize> = HashSet::new();
    let position = flow.operations().position(|op| ffi::same_op(op, gather)).unwrap_or(0);
    for op in flow.operations().skip(position + 1) {
        let reads = flow.reads(op);
        let is_late =
            |value: &Val<'c, 'a>| flow.owner(*value).is_some_and(|owner| late.contains(&ffi::op_key(owner)));
        let reads_parts = reads.iter().any(|value| search.along.contains_key(&ffi::value_key(*value)));
        if reads.iter().any(is_late) {
            late.insert(ffi::op_key(op));
            continue;
        }
        if !reads_parts {
            continue;
        }
        match search.row(op) {
            Some((at, is_leaf)) => {
                members.push(op);
                if is_leaf {
                    leaves.push(op);
                    late.insert(ffi::op_key(op));
                } else if let Ok(result) = op.result(0) {
                    search.along.insert(ffi::value_key(result.into()), at);
                }
            }
            None => {
                late.insert(ffi::op_key(op));
            }
        }
    }
    if leaves.is_empty() {
        return Err(search.reduced.unwrap_or(Decline::NoReader { users: users(flow, value) }));
    }
    let members = leading(flow, members, &leaves);
    Ok(Readers { members, leaves })
}

fn users<'c, 'a>(flow: &Flow<'c, 'a>, value: Val<'c, 'a>) -> String {
    let names: Vec<String> = flow.users(value).into_iter().map(describe).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// The members from which a leaf is reached: the others serve no reader.
fn leading<'c, 'a>(flow: &Flow<'c, 'a>, members: Vec<Op<'c, 'a>>, leaves: &[Op<'c, 'a>]) -> Vec<Op<'c, 'a>> {
    let mut needed: HashSet<usize> = leaves.iter().map(|leaf| ffi::op_key(*leaf)).collect();
    for member in members.iter().rev() {
        if needed.contains(&ffi::op_key(*member)) {
            needed.extend(
                flow.reads(*member).into_iter().filter_map(|value| flow.owner(value)).map(ffi::op_key),
            );
        }
    }
    members.into_iter().filter(|member| needed.contains(&ffi::op_key(*member))).collect()
}

struct Search<'f, 'c, 'a> {
    flow: &'f Flow<'c, 'a>,
    parts: u64,
    /// Where the gathered dimension is in each value of the region, by key.
    along: HashMap<usize, usize>,
    /// A reader that sums over it.
    reduced: Option<Decline>,
}

impl<'c, 'a> Search<'_, 'c, 'a> {
    /// Where the gathered dimension is in the result of `op`, and whether `op` is a reader in its own right; `None`
    /// where `op` cannot work on parts.
    fn row(&mut self, op: Op<'c, 'a>) -> Option<(usize, bool)> {
        let kind = kind(self.flow.module, op);
        if matches!(kind, Kind::Other | Kind::Named) || !self.flow.is_movable(op) {
            return None;
        }
        let mut at = None;
        let operands: Vec<Val<'c, 'a>> = op.operands().collect();
        for (number, operand) in operands.iter().enumerate() {
            let Some(&dimension) = self.along.get(&ffi::value_key(*operand)) else { continue };
            match after(self.flow.module, op, number, dimension, self.parts) {
                Along::At(found) if at.is_none_or(|known| known == found) => at = Some(found),
                Along::Reduced => {
                    let reader = describe(op);
                    self.reduced.get_or_insert(Decline::GatheredDimensionReduced { dimension, reader });
                    return None;
                }
                _ => return None,
            }
        }
        // A body that reads the value at places of its own choice needs all of it.
        let in_body = |value: Val<'c, 'a>| {
            self.along.contains_key(&ffi::value_key(value)) && !operands.contains(&value)
        };
        if self.flow.reads(op).into_iter().any(in_body) || captures(op, &self.along) {
            return None;
        }
        at.map(|at| (at, matches!(kind, Kind::Product | Kind::StartedProduct | Kind::Unit(_))))
    }
}

/// Whether the body of `op` reads one of the values by `tensor.extract`.
fn captures(op: Op<'_, '_>, along: &HashMap<usize, usize>) -> bool {
    let inner = walk::walk(op).into_iter().filter(|inner| !ffi::same_op(*inner, op));
    inner
        .flat_map(|inner| inner.operands().collect::<Vec<_>>())
        .any(|value| along.contains_key(&ffi::value_key(value)))
}
