//! Routing tokens to experts, and the product of each routed row with the matrix of its expert.
//!
//! Routing is written as counting, not as sorting: an expert is among a token's best where fewer than `k` others
//! beat it, a row's expert is the number of experts whose rows end before it, and its token the number of the
//! group's tokens that the expert's earlier rows leave behind. So every step is one structured operation, and the
//! order (expert, then token; of equal scores, the lower expert) follows from the counts.

use t3c_schedule::Element;

use super::Unit;
use crate::{
    Builder, Error, TensorType, Val,
    scalar::{Predicate, Ref, ScalarBody, ScalarOp},
};

const INDEX: Element = Element::I32;
/// Tokens that are counted one by one; beyond them, in blocks of this size.
const COUNTED: u64 = 64;

/// The extents of a routing.
struct Extents {
    tokens: u64,
    experts: u64,
    k: u64,
    groups: u64,
    slots: u64,
}

impl Extents {
    /// Tokens of a group.
    fn per_group(&self) -> u64 {
        self.tokens / self.groups
    }

    /// Experts of a slot.
    fn per_slot(&self) -> u64 {
        self.experts / self.slots
    }
}

/// `condition` as 0 or 1.
fn one_if(body: &mut ScalarBody, condition: Ref, element: Element) -> Ref {
    let [one, zero] = [1, 0].map(|number| body.push(ScalarOp::ConstInt(number), &[], element));
    body.select(condition, one, zero)
}

fn int(body: &mut ScalarBody, op: ScalarOp, x: Ref, y: Ref) -> Ref {
    body.push(op, &[x, y], body.element(x))
}

/// The smaller (or larger) of two integers.
fn bounded(body: &mut ScalarBody, x: Ref, predicate: Predicate, bound: Ref) -> Ref {
    let inside = body.cmp_i(predicate, x, bound);
    body.select(inside, x, bound)
}

/// `x · factor + y`.
fn scaled(body: &mut ScalarBody, x: Ref, factor: u64, y: Ref) -> Ref {
    let factor = body.int(factor as i64);
    let product = int(body, ScalarOp::MulI, x, factor);
    int(body, ScalarOp::AddI, product, y)
}

/// An element of a captured integer tensor.
fn extract(body: &mut ScalarBody, capture: usize, at: &[Ref]) -> Ref {
    let value = body.push(ScalarOp::Extract(capture), at, INDEX);
    body.to_i64(value)
}

/// Adds `term` to the integer output, argument `output`.
fn count(body: &mut ScalarBody, output: usize, term: Ref) -> Ref {
    let term = body.push(ScalarOp::IntCast, &[term], INDEX);
    int(body, ScalarOp::AddI, Ref::Arg(output), term)
}

/// An operand that only gives a loop its extent.
fn extent<'c, 'a>(b: &Builder<'c, 'a>, size: u64) -> Result<Val<'c, 'a>, Error> {
    b.splat(0.0, &TensorType::new([size], INDEX))
}

/// The reference body of [`super::UnitKind::Route`].
pub(super) fn route<'c, 'a>(
    b: &Builder<'c, 'a>,
    scores: Val<'c, 'a>,
    unit: &Unit,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let (scored, rows) = (&unit.arguments[0].shape, &unit.results[0].shape);
    let extents = Extents {
        tokens: scored[0],
        experts: scored[1],
        k: unit.top_k.unwrap_or(1),
        groups: rows[0],
        slots: rows[1],
    };
    let chosen = chosen(b, scores, extents.k)?;
    let through = through(b, chosen, &extents)?;
    let offsets = offsets(b, through, &extents)?;
    let local = local_expert(b, offsets, rows[2])?;
    let source = source(b, local, [offsets, through], &extents)?;
    let experts = extents.per_slot();
    let expert = b.structured("psc->psc", &[local], INDEX, 0.0, |body| {
        let (slot, local) = (body.index(1), body.to_i64(Ref::Arg(0)));
        let [experts, none] = [experts as i64, -1].map(|number| body.int(number));
        let first = int(body, ScalarOp::MulI, slot, experts);
        let expert = int(body, ScalarOp::AddI, first, local);
        let routed = body.cmp_i(Predicate::Lt, local, experts);
        let expert = body.select(routed, expert, none);
        body.push(ScalarOp::IntCast, &[expert], INDEX)
    })?;
    Ok(vec![source, expert, offsets])
}

/// `[N,E]`: 1 where fewer than `k` experts of the token beat this one.
fn chosen<'c, 'a>(b: &Builder<'c, 'a>, scores: Val<'c, 'a>, k: u64) -> Result<Val<'c, 'a>, Error> {
    let number = |body: &mut ScalarBody, score: Ref| {
        let element = body.element(score);
        let lowest = body.constant(f64::NEG_INFINITY, element);
        let is_number = body.cmp_f(Predicate::Eq, score, score);
        body.select(is_number, score, lowest)
    };
    let better = b.named("better").structured("ne,nf->ne", &[scores, scores], INDEX, 0.0, |body| {
        let (this, other) = (number(body, Ref::Arg(0)), number(body, Ref::Arg(1)));
        let (expert, rival) = (body.index(1), body.index(2));
        let higher = body.cmp_f(Predicate::Gt, other, this);
        let equal = body.cmp_f(Predicate::Eq, other, this);
        let lower = body.cmp_i(Predicate::Lt, rival, expert);
        let first = body.push(ScalarOp::And, &[equal, lower], Element::I1);
        let beats = body.push(ScalarOp::Or, &[higher, first], Element::I1);
        let one = one_if(body, beats, INDEX);
        int(body, ScalarOp::AddI, Ref::Arg(2), one)
    })?;
    b.named("chosen").map("ne->ne", &[better], |body| {
        let k = body.push(ScalarOp::ConstInt(k as i64), &[], INDEX);
        let among = body.cmp_i(Predicate::Lt, Ref::Arg(0), k);
        one_if(body, among, INDEX)
    })
}

/// `[N,E]`: how many tokens up to and including this one chose the expert, whatever their group. Counted inside
/// blocks, then over blocks, so that the work does not grow with the square of the tokens.
fn through<'c, 'a>(
    b: &Builder<'c, 'a>,
    chosen: Val<'c, 'a>,
    extents: &Extents,
) -> Result<Val<'c, 'a>, Error> {
    let b = b.named("through");
    let (tokens, experts) = (extents.tokens, extents.experts);
    let size = COUNTED.min(tokens);
    let in_block = extent(&b, size)?;
    // The choice of token `at`, 0 beyond `last`.
    let choice = |body: &mut ScalarBody, at: Ref, last: Ref, expert: Ref| {
        let here = bounded(body, at, Predicate::Le, last);
        let value = extract(body, 0, &[here, expert]);
        let (inside, zero) = (body.cmp_i(Predicate::Le, at, last), body.int(0));
        body.select(inside, value, zero)
    };
    let sizes = [('b', tokens.div_ceil(size)), ('e', experts)];
    let blocks = b.structured_over("t->be", &[in_block], &[chosen], &sizes, INDEX, 0.0, |body| {
        let [block, expert, offset] = [0, 1, 2].map(|dimension| body.index(dimension));
        let (at, last) = (scaled(body, block, size, offset), body.int(tokens as i64 - 1));
        let term = choice(body, at, last, expert);
        count(body, 1, term)
    })?;
    let sizes = [('n', tokens), ('e', experts)];
    let within = b.structured_over("t->ne", &[in_block], &[chosen], &sizes, INDEX, 0.0, |body| {
        let [token, expert, offset] = [0, 1, 2].map(|dimension| body.index(dimension));
        let size_value = body.int(size as i64);
        let block = int(body, ScalarOp::DivI, token, size_value);
        let at = scaled(body, block, size, offset);
        let term = choice(body, at, token, expert);
        count(body, 1, term)
    })?;
    b.accumulate("be->ne", &[blocks], &[], within, |body| {
        let (token, block) = (body.index(0), body.index(2));
        let size = body.int(size as i64);
        let this = int(body, ScalarOp::DivI, token, size);
        let before = body.cmp_i(Predicate::Lt, block, this);
        let zero = body.push(ScalarOp::ConstInt(0), &[], INDEX);
        let term = body.select(before, Ref::Arg(0), zero);
        int(body, ScalarOp::AddI, Ref::Arg(1), term)
    })
}

/// How many tokens before `group` chose `expert`.
fn before(body: &mut ScalarBody, through: usize, group: Ref, per_group: u64, expert: Ref) -> Ref {
    let [zero, minus_one] = [0, -1].map(|number| body.int(number));
    let last = scaled(body, group, per_group, minus_one);
    let at = bounded(body, last, Predicate::Ge, zero);
    let value = extract(body, through, &[at, expert]);
    let any = body.cmp_i(Predicate::Gt, group, zero);
    body.select(any, value, zero)
}

/// `[P,S,L+1]`: where each expert's rows begin.
fn offsets<'c, 'a>(
    b: &Builder<'c, 'a>,
    through: Val<'c, 'a>,
    extents: &Extents,
) -> Result<Val<'c, 'a>, Error> {
    let b = b.named("offsets");
    let (per_group, per_slot) = (extents.per_group(), extents.per_slot());
    let sizes = [('p', extents.groups), ('s', extents.slots), ('j', per_slot + 1)];
    b.structured_over("i->psj", &[extent(&b, per_slot)?], &[through], &sizes, INDEX, 0.0, |body| {
        let [group, slot, end, local] = [0, 1, 2, 3].map(|dimension| body.index(dimension));
        let expert = scaled(body, slot, per_slot, local);
        let (one, zero) = (body.int(1), body.int(0));
        let next = int(body, ScalarOp::AddI, group, one);
        let minus_one = body.int(-1);
        let last = scaled(body, next, per_group, minus_one);
        let total = extract(body, 0, &[last, expert]);
        let earlier = before(body, 0, group, per_group, expert);
        let rows = int(body, ScalarOp::SubI, total, earlier);
        let counted = body.cmp_i(Predicate::Lt, local, end);
        let term = body.select(counted, rows, zero);
        count(body, 1, term)
    })
}

/// `[P,S,C]`: the slot's expert to which each row belongs, their number for padding.
fn local_expert<'c, 'a>(b: &Builder<'c, 'a>, offsets: Val<'c, 'a>, rows: u64) -> Result<Val<'c, 'a>, Error> {
    let b = b.named("local_expert");
    let shape = TensorType::of(offsets)?.shape;
    let sizes = [('p', shape[0]), ('s', shape[1]), ('c', rows)];
    b.structured_over("i->psc", &[extent(&b, shape[2] - 1)?], &[offsets], &sizes, INDEX, 0.0, |body| {
        let [group, slot, row, local] = [0, 1, 2, 3].map(|dimension| body.index(dimension));
        let one = body.int(1);
        let next = int(body, ScalarOp::AddI, local, one);
        let end = extract(body, 0, &[group, slot, next]);
        let passed = body.cmp_i(Predicate::Le, end, row);
        let term = one_if(body, passed, Element::I64);
        count(body, 1, term)
    })
}

/// `[P,S,C]`: the token of each row.
fn source<'c, 'a>(
    b: &Builder<'c, 'a>,
    local: Val<'c, 'a>,
    [offsets, through]: [Val<'c, 'a>; 2],
    extents: &Extents,
) -> Result<Val<'c, 'a>, Error> {
    let b = b.named("source");
    let (per_group, per_slot) = (extents.per_group(), extents.per_slot());
    let tokens = extent(&b, per_group)?;
    // Tokens of the group that the row's predecessors of the same expert reach: the row's own comes next.
    let passed =
        b.structured_with("psc,t->psc", &[local, tokens], &[offsets, through], INDEX, 0.0, |body| {
            let [group, slot, row, offset] = [0, 1, 2, 3].map(|dimension| body.index(dimension));
            let (local, last) = (body.to_i64(Ref::Arg(0)), body.int(per_slot as i64 - 1));
            let here = bounded(body, local, Predicate::Le, last);
            let expert = scaled(body, slot, per_slot, here);
            let begin = extract(body, 0, &[group, slot, here]);
            let number = int(body, ScalarOp::SubI, row, begin);
            let token = scaled(body, group, per_group, offset);
            let reached = extract(body, 1, &[token, expert]);
            let earlier = before(body, 1, group, per_group, expert);
            let reached = int(body, ScalarOp::SubI, reached, earlier);
            let behind = body.cmp_i(Predicate::Le, reached, number);
            let routed = body.cmp_i(Predicate::Le, local, last);
            let counted = body.push(ScalarOp::And, &[behind, routed], Element::I1);
            let term = one_if(body, counted, Element::I64);
            count(body, 2, term)
        })?;
    b.map("psc->psc", &[passed], |body| {
        let (group, token) = (body.index(0), body.to_i64(Ref::Arg(0)));
        let token = scaled(body, group, per_group, token);
        body.push(ScalarOp::IntCast, &[token], INDEX)
    })
}

/// The reference body of [`super::UnitKind::Grouped`].
pub(super) fn grouped<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    transposed: bool,
) -> Result<Val<'c, 'a>, Error> {
    let (x, w, offsets) = (arguments[0], arguments[1], arguments[2]);
    let (rows, weights) = (TensorType::of(x)?, TensorType::of(w)?);
    let local = local_expert(b, offsets, rows.shape[2])?;
    let last = weights.shape[1] as i64 - 1;
    let features = [('f', weights.shape[if transposed { 3 } else { 2 }])];
    // Loops: p s c f | d.
    b.structured_over("pscd,psc->pscf", &[x, local], &[w], &features, rows.element, 0.0, |body| {
        let [slot, feature, lane] = [1, 3, 4].map(|dimension| body.index(dimension));
        let (local, last) = (body.to_i64(Ref::Arg(1)), body.int(last));
        let expert = bounded(body, local, Predicate::Le, last);
        let at = if transposed { [slot, expert, lane, feature] } else { [slot, expert, feature, lane] };
        let weight = body.push(ScalarOp::Extract(0), &at, rows.element);
        let product = body.mul(Ref::Arg(0), weight);
        let sum = body.add(Ref::Arg(2), product);
        let routed = body.cmp_i(Predicate::Le, local, last);
        body.select(routed, sum, Ref::Arg(2))
    })
}

/// The reference body of [`super::UnitKind::GroupedGrad`].
pub(super) fn grouped_grad<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    experts: u64,
) -> Result<Val<'c, 'a>, Error> {
    let (x, dy, offsets) = (arguments[0], arguments[1], arguments[2]);
    let rows = TensorType::of(x)?;
    let local = local_expert(b, offsets, rows.shape[2])?;
    // Loops: s l f d | p c.
    let specification = "pscd,pscf,psc->slfd";
    b.structured_over(specification, &[x, dy, local], &[], &[('l', experts)], rows.element, 0.0, |body| {
        let (expert, local) = (body.index(1), body.to_i64(Ref::Arg(2)));
        let product = body.mul(Ref::Arg(0), Ref::Arg(1));
        let sum = body.add(Ref::Arg(3), product);
        let own = body.cmp_i(Predicate::Eq, expert, local);
        body.select(own, sum, Ref::Arg(3))
    })
}
