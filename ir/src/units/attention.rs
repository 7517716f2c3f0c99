//! Attention over packed tokens and over a cache in blocks.

use t3c_schedule::Element;

use super::Unit;
use crate::{
    Builder, Error, TensorType, Val,
    scalar::{Predicate, Ref, ScalarBody, ScalarOp},
};

/// Positions in one block of a cache.
pub const BLOCK: u64 = 16;

/// q, k, v, subtree_end and the result for queries of type `q`.
pub(super) fn types(q: &TensorType) -> [TensorType; 5] {
    let &[n, heads, groups, halves, half] = q.shape.as_slice() else {
        return std::array::from_fn(|_| q.clone());
    };
    let size = halves * half;
    [
        q.clone(),
        TensorType::new([n, heads, halves, half], q.element),
        TensorType::new([n, heads, size], q.element),
        TensorType::new([n], Element::I32),
        TensorType::new([n, heads, groups, size], q.element),
    ]
}

/// 1/√H from the type of `v`.
pub(super) fn default_scale(v: &TensorType) -> f64 {
    1.0 / (*v.shape.last().unwrap_or(&1) as f64).sqrt()
}

/// What happens to a score before the softmax.
#[derive(Clone, Copy)]
struct Scores {
    scale: f64,
    softcap: Option<f64>,
    window: Option<i64>,
}

impl Scores {
    fn of(unit: &Unit) -> Self {
        Self {
            scale: unit.scale.unwrap_or(1.0),
            softcap: unit.softcap,
            window: unit.window.map(|window| window as i64),
        }
    }

    /// `cap · tanh(scale · score / cap)`, or the scaled score alone, and −∞ where the token is hidden.
    fn masked(self, body: &mut ScalarBody, visible: Ref, score: Ref) -> Ref {
        let element = body.element(score);
        let scale = body.constant(self.scale, element);
        let mut scaled = body.mul(score, scale);
        if let Some(cap) = self.softcap {
            let cap = body.constant(cap, element);
            let bounded = body.div(scaled, cap);
            let bounded = body.unary(ScalarOp::Tanh, bounded);
            scaled = body.mul(bounded, cap);
        }
        let hidden = body.constant(f64::NEG_INFINITY, element);
        body.select(visible, scaled, hidden)
    }

    /// `gradient` of the masked score to that of the product; `masked` is −∞ where the token is hidden, and the
    /// gradient is zero there.
    fn backward(self, body: &mut ScalarBody, gradient: Ref, masked: Ref) -> Ref {
        let element = body.element(gradient);
        let scale = body.constant(self.scale, element);
        let scaled = body.mul(gradient, scale);
        let Some(cap) = self.softcap else { return scaled };
        let [cap, one, zero] = [cap, 1.0, 0.0].map(|number| body.constant(number, element));
        let bounded = body.div(masked, cap);
        let square = body.mul(bounded, bounded);
        let slope = body.sub(one, square);
        let product = body.mul(scaled, slope);
        let hidden = body.constant(f64::NEG_INFINITY, element);
        let visible = body.cmp_f(Predicate::Gt, masked, hidden);
        body.select(visible, product, zero)
    }

    /// Whether `near ≥ far` positions are less than the window apart, and `visible`.
    fn inside(self, body: &mut ScalarBody, visible: Ref, near: Ref, far: Ref) -> Ref {
        let Some(window) = self.window else { return visible };
        let distance = body.push(ScalarOp::SubI, &[near, far], Element::I64);
        let window = body.int(window);
        let inside = body.cmp_i(Predicate::Lt, distance, window);
        body.push(ScalarOp::And, &[visible, inside], Element::I1)
    }
}

/// Masked, scaled scores to probabilities: exp(s − max), and their sum.
fn softmax<'c, 'a>(b: &Builder<'c, 'a>, scores: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
    let max = b.reduce("nkgm->nkg", scores, ScalarOp::MaxF)?;
    let weights = b.map("nkgm,nkg->nkgm", &[scores, max], |body| {
        let shifted = body.sub(Ref::Arg(0), Ref::Arg(1));
        body.unary(ScalarOp::Exp, shifted)
    })?;
    let sum = b.reduce("nkgm->nkg", weights, ScalarOp::AddF)?;
    b.map("nkgm,nkg->nkgm", &[weights, sum], |body| body.div(Ref::Arg(0), Ref::Arg(1)))
}

/// Masked scores of packed tokens.
fn scores<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    scores: Scores,
) -> Result<Val<'c, 'a>, Error> {
    let products = b.contract("nkgce,mkce->nkgm", arguments[0], arguments[1])?;
    let mut inputs = vec![products, arguments[3]];
    let specification = match scores.window {
        Some(_) => {
            inputs.extend([arguments[4]; 2]);
            "nkgm,m,n,m->nkgm"
        }
        None => "nkgm,m->nkgm",
    };
    b.map(specification, &inputs, |body| {
        let (token, other, end) = (body.index(0), body.index(3), body.to_i64(Ref::Arg(1)));
        let earlier = body.cmp_i(Predicate::Le, other, token);
        let before_end = body.cmp_i(Predicate::Lt, token, end);
        let mut visible = body.push(ScalarOp::And, &[earlier, before_end], Element::I1);
        if scores.window.is_some() {
            let (near, far) = (body.to_i64(Ref::Arg(2)), body.to_i64(Ref::Arg(3)));
            visible = scores.inside(body, visible, near, far);
        }
        scores.masked(body, visible, Ref::Arg(0))
    })
}

/// The reference body of [`super::UnitKind::Attention`].
pub(super) fn attention<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    unit: &Unit,
) -> Result<Val<'c, 'a>, Error> {
    let masked = scores(b, arguments, Scores::of(unit))?;
    let weights = softmax(b, masked)?;
    b.contract("nkgm,mkh->nkgh", weights, arguments[2])
}

/// The reference body of [`super::UnitKind::AttentionGrad`].
pub(super) fn attention_grad<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    unit: &Unit,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let (options, &[q, k, v, ..]) = (Scores::of(unit), arguments) else {
        return Err(Error::Mlir("attention_grad takes queries, keys and values".into()));
    };
    let dout = arguments[arguments.len() - 1];
    let masked = scores(b, arguments, options)?;
    let weights = softmax(b, masked)?;
    let dv = b.contract("nkgm,nkgh->mkh", weights, dout)?;
    let dweights = b.contract("nkgh,mkh->nkgm", dout, v)?;
    let products =
        b.map("nkgm,nkgm->nkgm", &[weights, dweights], |body| body.mul(Ref::Arg(0), Ref::Arg(1)))?;
    let delta = b.reduce("nkgm->nkg", products, ScalarOp::AddF)?;
    let mut inputs = vec![weights, dweights, delta];
    let mut specification = "nkgm,nkgm,nkg->nkgm";
    if options.softcap.is_some() {
        inputs.push(masked);
        specification = "nkgm,nkgm,nkg,nkgm->nkgm";
    }
    let dscores = b.map(specification, &inputs, |body| {
        let centred = body.sub(Ref::Arg(1), Ref::Arg(2));
        let product = body.mul(Ref::Arg(0), centred);
        options.backward(body, product, Ref::Arg(3))
    })?;
    let dq = b.contract("nkgm,mkce->nkgce", dscores, k)?;
    let dk = b.contract("nkgm,nkgce->mkce", dscores, q)?;
    Ok(vec![dq, dk, dv])
}

/// The block and the row inside it of position `position` of sequence `row`, from the captured block table.
fn slot(body: &mut ScalarBody, table: usize, row: Ref, position: Ref) -> [Ref; 2] {
    let size = body.int(BLOCK as i64);
    let number = body.push(ScalarOp::DivI, &[position, size], Element::I64);
    let offset = body.push(ScalarOp::RemI, &[position, size], Element::I64);
    let block = body.push(ScalarOp::Extract(table), &[row, number], Element::I32);
    [body.to_i64(block), offset]
}

/// `cache` with every row's `part` written at its slot; dims are the part's trailing dimensions.
fn write_cache<'c, 'a>(
    b: &Builder<'c, 'a>,
    dims: &str,
    part: Val<'c, 'a>,
    cache: Val<'c, 'a>,
    table: Val<'c, 'a>,
    position: Val<'c, 'a>,
) -> Result<Val<'c, 'a>, Error> {
    let specification = format!("s{dims},s->bo{dims}");
    let sequence = 2 + dims.len();
    b.accumulate(&specification, &[part, position], &[table], cache, |body| {
        let (row, position) = (body.index(sequence), body.to_i64(Ref::Arg(1)));
        let [block, offset] = slot(body, 0, row, position);
        let (this_block, this_offset) = (body.index(0), body.index(1));
        let same_block = body.cmp_i(Predicate::Eq, block, this_block);
        let same_offset = body.cmp_i(Predicate::Eq, offset, this_offset);
        let hit = body.push(ScalarOp::And, &[same_block, same_offset], Element::I1);
        body.select(hit, Ref::Arg(0), Ref::Arg(2))
    })
}

/// The reference body of [`super::UnitKind::AttentionPaged`].
pub(super) fn attention_paged<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    unit: &Unit,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let (options, &[q, k, v, k_cache, v_cache, table, position]) = (Scores::of(unit), arguments) else {
        return Err(Error::Mlir("attention_paged takes 7 operands".into()));
    };
    let k_cache = write_cache(b, "kce", k, k_cache, table, position)?;
    let v_cache = write_cache(b, "kh", v, v_cache, table, position)?;
    let element = TensorType::of(q)?.element;
    let span = BLOCK * TensorType::of(table)?.shape[1];
    // Loops: s k g m | c e.
    let scores =
        b.structured_over("skgce->skgm", &[q], &[table, k_cache], &[('m', span)], element, 0.0, |body| {
            let [row, head, at, half, lane] = [0, 1, 3, 4, 5].map(|loop_| body.index(loop_));
            let [block, offset] = slot(body, 0, row, at);
            let key = body.push(ScalarOp::Extract(1), &[block, offset, head, half, lane], element);
            let product = body.mul(Ref::Arg(0), key);
            body.add(Ref::Arg(1), product)
        })?;
    let masked = b.map("nkgm,n->nkgm", &[scores, position], |body| {
        let (at, last) = (body.index(3), body.to_i64(Ref::Arg(1)));
        let visible = body.cmp_i(Predicate::Le, at, last);
        let visible = options.inside(body, visible, last, at);
        options.masked(body, visible, Ref::Arg(0))
    })?;
    let weights = softmax(b, masked)?;
    let size = TensorType::of(v)?.shape[2];
    // Loops: s k g h | m.
    let out = b.structured_over(
        "skgm->skgh",
        &[weights],
        &[table, v_cache],
        &[('h', size)],
        element,
        0.0,
        |body| {
            let [row, head, lane, at] = [0, 1, 3, 4].map(|loop_| body.index(loop_));
            let [block, offset] = slot(body, 0, row, at);
            let value = body.push(ScalarOp::Extract(1), &[block, offset, head, lane], element);
            let product = body.mul(Ref::Arg(0), value);
            body.add(Ref::Arg(1), product)
        },
    )?;
    Ok(vec![out, k_cache, v_cache])
}
