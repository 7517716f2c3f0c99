//! What feeds a collective: the operations behind its operand that can store each chunk where the collective
//! wants it, as they produce it.

use t3c_ir::{
    Generic, Op, ScalarOp, TensorType, Val,
    context::render_location,
    ffi,
    scalar::{Ref, ScalarBody},
    walk,
};

use melior::ir::operation::OperationLike;

use crate::{
    decline::Decline,
    dimensions::{Kind, before, is_divisible, kind},
    find_pairs::flops,
    flow::Flow,
};

/// The producer of a collective's operand.
#[derive(Debug)]
pub struct Producer<'c, 'a> {
    /// Everything that moves into the region, in program order.
    pub members: Vec<Op<'c, 'a>>,
    /// Those of them that do the work: products, units, sums; the elementwise work itself where there is no other.
    pub leaves: Vec<Op<'c, 'a>>,
}

/// What is asked of a producer.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Equal parts into which the dimension is divided.
    pub parts: u64,
    /// Whether the collective sums: then nothing nonlinear may stand between the work and it.
    pub reduces: bool,
}

/// The producer of `value`, the operand of `user`, chunk by chunk along `dimension`.
///
/// # Errors
/// Why it has none.
pub fn producer<'c, 'a>(
    flow: &Flow<'c, 'a>,
    value: Val<'c, 'a>,
    user: Op<'c, 'a>,
    dimension: usize,
    wanted: Wanted,
) -> Result<Producer<'c, 'a>, Decline> {
    let mut search = Search { flow, wanted, members: vec![], leaves: vec![] };
    let no_producer = |producer: String| Decline::NoProducer { producer };
    let owner = flow.owner(value).ok_or_else(|| no_producer("an argument".to_owned()))?;
    match kind(flow.module, owner) {
        Kind::Other => return Err(unfit(flow, owner)),
        Kind::Named => return Err(Decline::NamedOperation { operation: describe(owner) }),
        _ => {}
    }
    if let Some(other) = flow.users(value).into_iter().find(|other| !ffi::same_op(*other, user)) {
        return Err(Decline::PartialUsedElsewhere { user: describe(other) });
    }
    if !search.leads(value, user, dimension)? {
        return Err(unfit(flow, owner));
    }
    let in_order = |found: Vec<Op<'c, 'a>>| {
        flow.operations().filter(|op| found.iter().any(|other| ffi::same_op(*other, *op))).collect()
    };
    Ok(Producer { members: in_order(search.members), leaves: in_order(search.leaves) })
}

/// Why `op` begins no producer.
fn unfit<'c, 'a>(flow: &Flow<'c, 'a>, op: Op<'c, 'a>) -> Decline {
    let mut source = op;
    while kind(flow.module, source) == Kind::View {
        let Some(owner) = source.operand(0).ok().and_then(|value| flow.owner(value)) else { break };
        source = owner;
    }
    match walk::name(source).starts_with("t3.") {
        true => Decline::FusedElsewhere { other: describe(source) },
        false => Decline::NoProducer { producer: describe(source) },
    }
}

struct Search<'f, 'c, 'a> {
    flow: &'f Flow<'c, 'a>,
    wanted: Wanted,
    members: Vec<Op<'c, 'a>>,
    leaves: Vec<Op<'c, 'a>>,
}

/// What one operand adds to a producer.
struct Part<'c, 'a> {
    members: Vec<Op<'c, 'a>>,
    leaves: Vec<Op<'c, 'a>>,
}

impl<'c, 'a> Part<'c, 'a> {
    fn flops(&self, flow: &Flow<'c, 'a>) -> u64 {
        self.leaves.iter().map(|leaf| flops(flow.module, *leaf)).sum()
    }
}

impl<'c, 'a> Search<'_, 'c, 'a> {
    /// Whether the operation that makes `value` belongs to the producer; if so, it and what leads to it join.
    fn leads(&mut self, value: Val<'c, 'a>, user: Op<'c, 'a>, dimension: usize) -> Result<bool, Decline> {
        let Some(op) = self.flow.owner(value) else { return Ok(false) };
        let is_shared = self.flow.users(value).iter().any(|other| !ffi::same_op(*other, user));
        if is_shared || !self.flow.is_movable(op) {
            return Ok(false);
        }
        let kind = kind(self.flow.module, op);
        if matches!(kind, Kind::Other | Kind::Named) {
            return Ok(false);
        }
        if kind == Kind::StartedProduct {
            return Err(Decline::NonzeroStart { location: place(op) });
        }
        if !is_divisible(self.flow.module, op, dimension, self.wanted.parts) {
            return Err(Decline::NotDivisible { operation: describe(op), dimension });
        }
        let is_between = matches!(kind, Kind::Elementwise | Kind::View);
        if is_between && self.continues(op, dimension)? {
            self.members.push(op);
            return Ok(true);
        }
        // The same elements under another shape are no work.
        if kind == Kind::View {
            return Ok(false);
        }
        self.members.push(op);
        self.leaves.push(op);
        Ok(true)
    }

    /// Whether an operand of an elementwise operation or a view belongs to the producer.
    fn continues(&mut self, op: Op<'c, 'a>, dimension: usize) -> Result<bool, Decline> {
        let operands: Vec<Val<'c, 'a>> = op.operands().collect();
        let mut parts: Vec<Option<Part<'c, 'a>>> = Vec::new();
        let mut decline = None;
        for (number, &operand) in operands.iter().enumerate() {
            // An operand without the dimension is needed whole for every chunk.
            let at = before(self.flow.module, op, number, dimension, self.wanted.parts);
            let part = at.map_or(Ok(None), |at| self.part(operand, op, at));
            parts.push(part.unwrap_or_else(|why| {
                decline.get_or_insert(why);
                None
            }));
        }
        // What cannot be computed in chunks can still be an input, where another operand carries the work.
        if let Some(decline) = decline.filter(|_| parts.iter().all(Option::is_none)) {
            return Err(decline);
        }
        if !self.wanted.reduces || !walk::is(op, "linalg.generic") {
            return Ok(self.join(parts));
        }
        let Ok(generic) = Generic::read(op) else { return Ok(false) };
        let inputs = generic.inputs.len();
        let others = |number: usize| self.is_shared_product(operands[number], op);
        if parts.iter().any(Option::is_some) {
            // A factor computed on the way (a row's probability) is no partial value: the operand with the most work is.
            let work = |part: &Option<Part<'c, 'a>>| part.as_ref().map(|part| part.flops(self.flow));
            let most = parts[..inputs].iter().filter_map(work).max();
            let all: Vec<bool> = parts[..inputs].iter().map(Option::is_some).collect();
            let heaviest: Vec<bool> = parts[..inputs].iter().map(|part| work(part) == most).collect();
            for leading in [all, heaviest] {
                if is_linear(&generic.body, &leading) {
                    let chosen = parts.into_iter().zip(leading).map(|(part, leads)| part.filter(|_| leads));
                    let chosen = chosen.collect();
                    return Ok(self.join(chosen));
                }
            }
            return Err(Decline::NonlinearBetween { operation: describe(op) });
        }
        // A scaled partial value, of which someone else needs the whole.
        match (0..inputs).find(|&number| others(number)) {
            Some(number)
                if is_linear(&generic.body, &(0..inputs).map(|n| n == number).collect::<Vec<_>>()) =>
            {
                let users = self.flow.users(operands[number]);
                let other = users.into_iter().find(|other| !ffi::same_op(*other, op)).unwrap_or(op);
                Err(Decline::PartialUsedElsewhere { user: describe(other) })
            }
            _ => Ok(false),
        }
    }

    /// What would join for `value`, without joining yet.
    fn part(
        &mut self,
        value: Val<'c, 'a>,
        user: Op<'c, 'a>,
        dimension: usize,
    ) -> Result<Option<Part<'c, 'a>>, Decline> {
        let known = (self.members.len(), self.leaves.len());
        let leads = self.leads(value, user, dimension);
        let part = Part { members: self.members.split_off(known.0), leaves: self.leaves.split_off(known.1) };
        leads.map(|leads| leads.then_some(part))
    }

    /// Whether any part joins.
    fn join(&mut self, parts: Vec<Option<Part<'c, 'a>>>) -> bool {
        let before = self.members.len();
        for part in parts.into_iter().flatten() {
            self.members.extend(part.members);
            self.leaves.extend(part.leaves);
        }
        self.members.len() > before
    }

    fn is_shared_product(&self, value: Val<'c, 'a>, user: Op<'c, 'a>) -> bool {
        let owner = self.flow.owner(value);
        owner.is_some_and(|owner| kind(self.flow.module, owner) == Kind::Product)
            && self.flow.users(value).iter().any(|other| !ffi::same_op(*other, user))
    }
}

/// Whether what `body` yields is linear in the arguments that `partial` marks: sums of them, scaled by others.
pub fn is_linear(body: &ScalarBody, partial: &[bool]) -> bool {
    /// What is known of a value: independent of the marked arguments, linear in them, or neither.
    #[derive(Clone, Copy, PartialEq)]
    enum Degree {
        Zero,
        One,
        Other,
    }
    use Degree::{One, Other, Zero};
    let mut degrees: Vec<Degree> = Vec::with_capacity(body.insts.len());
    let of = |degrees: &[Degree], value: Ref| match value {
        Ref::Arg(index) if partial.get(index) == Some(&true) => One,
        Ref::Arg(_) => Zero,
        Ref::Inst(index) => degrees[index],
    };
    for inst in &body.insts {
        let operands: Vec<Degree> = inst.operands.iter().map(|&value| of(&degrees, value)).collect();
        let any = operands.iter().copied().find(|degree| *degree != Zero).unwrap_or(Zero);
        degrees.push(match (inst.op, &operands[..]) {
            _ if any == Zero => Zero,
            _ if operands.contains(&Other) => Other,
            (ScalarOp::AddF | ScalarOp::SubF | ScalarOp::NegF | ScalarOp::FloatCast, _) => One,
            (ScalarOp::MulF, [One, Zero] | [Zero, One]) | (ScalarOp::DivF, [One, Zero]) => One,
            (ScalarOp::Select, [Zero, ..]) => One,
            _ => Other,
        });
    }
    body.yields.iter().all(|&value| of(&degrees, value) != Other)
}

/// The products whose sum `op` is, in the order in which they are added, where it is an addition of a product to a
/// product or to such a sum, none of which anything else uses.
///
/// A backend adds them into one buffer, with the rounding of separate additions.
pub fn chain_of_products<'c, 'a>(op: Op<'c, 'a>) -> Option<Vec<Op<'c, 'a>>> {
    let generic = walk::is(op, "linalg.generic").then(|| Generic::read(op).ok()).flatten()?;
    if !is_addition(&generic) {
        return None;
    }
    let owner = |index: usize| {
        let value: Val<'c, 'a> = generic.inputs[index];
        let is_own = ffi::uses(value).len() == 1;
        ffi::value_owner(value).filter(|_| is_own)
    };
    let (x, y) = (owner(0)?, owner(1)?);
    let product = |op| crate::products::product_of(op).is_some();
    let (rest, last) = if product(y) { (x, y) } else { (y, product(x).then_some(x)?) };
    let mut products = if product(rest) { vec![rest] } else { chain_of_products(rest)? };
    products.push(last);
    Some(products)
}

/// Whether `generic` is `x + y` of one shape, element by element.
fn is_addition(generic: &Generic<'_, '_>) -> bool {
    let body = &generic.body;
    let same_maps = generic.maps.windows(2).all(|maps| maps[0] == maps[1]);
    generic.inputs.len() == 2
        && generic.is_elementwise()
        && same_maps
        && body.insts.len() == 1
        && body.yields == [Ref::Inst(0)]
        && body.insts[0].op == ScalarOp::AddF
        && matches!(body.insts[0].operands[..], [Ref::Arg(0), Ref::Arg(1)] | [Ref::Arg(1), Ref::Arg(0)])
}

/// Bytes of a tensor; 0 for anything else.
pub fn bytes(value: Val<'_, '_>) -> u64 {
    TensorType::of(value).map_or(0, |r#type| r#type.elements() * r#type.element.bytes())
}

/// An operation's place in the user's model.
pub fn place(op: Op<'_, '_>) -> String {
    render_location(op.location())
}

/// An operation's name and place.
pub fn describe(op: Op<'_, '_>) -> String {
    format!("{} at {}", walk::name(op), place(op))
}

#[cfg(test)]
mod tests {
    use t3c_ir::Element;

    use super::*;

    #[test]
    fn scaling_and_adding_are_linear_and_products_of_partial_values_are_not() {
        let with = |build: &dyn Fn(&mut ScalarBody) -> Ref, partial: &[bool]| {
            let mut body = ScalarBody::new([Element::F32; 3]);
            let value = build(&mut body);
            is_linear(&body.yield_(value), partial)
        };
        let (x, y) = (Ref::Arg(0), Ref::Arg(1));
        assert!(with(&|b| b.add(x, y), &[true, true]));
        assert!(with(&|b| b.mul(x, y), &[true, false]));
        assert!(!with(&|b| b.mul(x, y), &[true, true]));
        assert!(!with(&|b| b.div(x, y), &[false, true]));
        assert!(!with(&|b| b.unary(ScalarOp::Exp, x), &[true, false]));
        assert!(with(
            &|b| {
                let e = b.unary(ScalarOp::Exp, y);
                b.mul(e, x)
            },
            &[true, false]
        ));
        assert!(with(&|b| b.unary(ScalarOp::FloatCast, x), &[true, false]));
    }
}
