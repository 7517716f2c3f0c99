//! Units: what linalg cannot say well (lookups, attention and its cache), as private functions with a plain
//! reference body and the attribute `t3.unit`.
//!
//! The interpreter and any fallback use the body. Autodiff, sharding and kernels key on the attribute, so that
//! attention's backward recomputes and never stores scores, and a lookup's gradient is a scatter.

use melior::ir::{Location, attribute::FloatAttribute, operation::OperationLike};
use t3c_schedule::Element;

use crate::{
    Builder, Error, Op, TensorType, Val, ffi,
    function::{Function, Port, Signature, add_function_to, function},
    scalar::{Predicate, Ref, ScalarBody, ScalarOp},
    types::element_name,
};

/// The attribute that holds an attention unit's factor on scores.
pub const SCALE: &str = "t3.scale";
/// Positions in one block of a cache.
pub const BLOCK: u64 = 16;

/// The units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// `(table [V, D…], ids [N]) → [N, D…]`: row gather.
    Lookup,
    /// `(ids [N], dout [N, D…]) → [V, D…]`: the gradient of the table; equal ids are added in row order.
    LookupGrad,
    /// `(q [N,K,G,2,E], k [N,K,2,E], v [N,K,H], subtree_end [N]) → [N,K,G,H]` with `H = 2E`: token `j` is visible
    /// to `i` where `j ≤ i < subtree_end[j]`.
    Attention,
    /// `(q, k, v, subtree_end, dout) → (dq, dk, dv)`: recomputes the probabilities.
    AttentionGrad,
    /// `(q [S,K,G,2,E], k [S,K,2,E], v [S,K,H], k_cache [NB,16,K,2,E], v_cache [NB,16,K,H], block_table [S,B],
    /// position [S]) → (out [S,K,G,H], k_cache, v_cache)`: writes every row, then every row attends to positions
    /// `0..=position` of its block table.
    AttentionPaged,
}

const NAMES: [(UnitKind, &str); 5] = [
    (UnitKind::Lookup, "lookup"),
    (UnitKind::LookupGrad, "lookup_grad"),
    (UnitKind::Attention, "attention"),
    (UnitKind::AttentionGrad, "attention_grad"),
    (UnitKind::AttentionPaged, "attention_paged"),
];

impl UnitKind {
    /// The value of `t3.unit`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// The unit of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }
}

/// A unit at definite shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Which.
    pub kind: UnitKind,
    /// Types of the arguments.
    pub arguments: Vec<TensorType>,
    /// Types of the results.
    pub results: Vec<TensorType>,
    /// The factor on attention scores.
    pub scale: Option<f64>,
}

impl Unit {
    /// A row gather.
    pub fn lookup(table: &TensorType, ids: &TensorType) -> Self {
        let shape = [ids.shape.as_slice(), table.shape.get(1..).unwrap_or_default()].concat();
        Self {
            kind: UnitKind::Lookup,
            arguments: vec![table.clone(), ids.clone()],
            results: vec![TensorType::new(shape, table.element)],
            scale: None,
        }
    }

    /// The gradient of a row gather from a table of `rows` rows.
    pub fn lookup_grad(ids: &TensorType, dout: &TensorType, rows: u64) -> Self {
        let shape = [&[rows], dout.shape.get(1..).unwrap_or_default()].concat();
        Self {
            kind: UnitKind::LookupGrad,
            arguments: vec![ids.clone(), dout.clone()],
            results: vec![TensorType::new(shape, dout.element)],
            scale: None,
        }
    }

    /// Attention over packed tokens; scores are scaled by 1/√H.
    ///
    /// `q` is `[N,K,G,2,E]`.
    pub fn attention(q: &TensorType) -> Self {
        let [q, k, v, end, out] = attention_types(q);
        let scale = Some(default_scale(&v));
        Self { kind: UnitKind::Attention, arguments: vec![q, k, v, end], results: vec![out], scale }
    }

    /// The gradient of [`Unit::attention`].
    pub fn attention_grad(q: &TensorType, scale: f64) -> Self {
        let [q, k, v, end, out] = attention_types(q);
        Self {
            kind: UnitKind::AttentionGrad,
            arguments: vec![q.clone(), k.clone(), v.clone(), end, out],
            results: vec![q, k, v],
            scale: Some(scale),
        }
    }

    /// Attention with a cache of `blocks` blocks; a row sees at most `table` of them.
    pub fn attention_paged(q: &TensorType, blocks: u64, table: u64) -> Self {
        let [q, k, v, _, out] = attention_types(q);
        let rows = q.shape[0];
        let cache = |part: &TensorType| {
            TensorType::new(
                [&[blocks, BLOCK], part.shape.get(1..).unwrap_or_default()].concat(),
                part.element,
            )
        };
        let (k_cache, v_cache) = (cache(&k), cache(&v));
        let scale = Some(default_scale(&v));
        Self {
            kind: UnitKind::AttentionPaged,
            arguments: vec![
                q,
                k,
                v,
                k_cache.clone(),
                v_cache.clone(),
                TensorType::new([rows, table], Element::I32),
                TensorType::new([rows], Element::I32),
            ],
            results: vec![out, k_cache, v_cache],
            scale,
        }
    }

    /// The symbol of the unit's function: kind and shapes.
    pub fn symbol(&self) -> String {
        let mut symbol = self.kind.name().to_owned();
        for r#type in self.arguments.iter().chain(&self.results) {
            symbol.push('_');
            for extent in &r#type.shape {
                symbol.push_str(&format!("{extent}x"));
            }
            symbol.push_str(element_name(r#type.element));
        }
        if let (Some(scale), Some(v)) = (self.scale, self.arguments.get(2))
            && scale != default_scale(v)
        {
            symbol.push_str(&format!("_scale{:016x}", scale.to_bits()));
        }
        symbol
    }

    /// Floating-point operations, attention counted over all pairs of a causal sequence.
    pub fn flops(&self) -> u64 {
        let q = &self.arguments[0].shape;
        match self.kind {
            UnitKind::Lookup => 0,
            UnitKind::LookupGrad => self.arguments[1].elements(),
            UnitKind::Attention => 2 * self.arguments[0].elements() * (q[0] + 1),
            UnitKind::AttentionGrad => 5 * self.arguments[0].elements() * (q[0] + 1),
            UnitKind::AttentionPaged => 4 * self.arguments[0].elements() * BLOCK * self.arguments[5].shape[1],
        }
    }
}

/// q, k, v, subtree_end and the result for queries of type `q`.
fn attention_types(q: &TensorType) -> [TensorType; 5] {
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
fn default_scale(v: &TensorType) -> f64 {
    1.0 / (*v.shape.last().unwrap_or(&1) as f64).sqrt()
}

/// The function of `unit`, added to the module with its reference body where it is not there yet.
///
/// # Errors
/// When the shapes do not fit the unit.
pub fn ensure(module: Op<'_, '_>, unit: &Unit) -> Result<String, Error> {
    let symbol = unit.symbol();
    if function(module, &symbol).is_some() {
        return Ok(symbol);
    }
    check(module, unit)?;
    let ports = |types: &[TensorType]| types.iter().map(|r#type| Port::new("", r#type.clone())).collect();
    let signature = Signature {
        name: symbol.clone(),
        arguments: ports(&unit.arguments),
        results: ports(&unit.results),
        public: false,
        unit: Some(unit.kind.name().to_owned()),
    };
    let context = ffi::context_of(module);
    let location = Location::name(context, unit.kind.name(), Location::unknown(context));
    let (operation, block) = add_function_to(module, &signature, location)?;
    if let Some(scale) = unit.scale {
        let attribute = FloatAttribute::new(context, melior::ir::Type::float64(context), scale);
        ffi::set_attribute(operation, SCALE, attribute.into());
    }
    let b = Builder::at_end(context, block, location);
    let arguments = Function(operation).arguments();
    let results = match unit.kind {
        UnitKind::Lookup => vec![lookup(&b, arguments[0], arguments[1])?],
        UnitKind::LookupGrad => vec![lookup_grad(&b, arguments[0], arguments[1], unit.results[0].shape[0])?],
        UnitKind::Attention => vec![attention(&b, &arguments, unit.scale.unwrap_or(1.0))?],
        UnitKind::AttentionGrad => attention_grad(&b, &arguments, unit.scale.unwrap_or(1.0))?,
        UnitKind::AttentionPaged => attention_paged(&b, &arguments, unit.scale.unwrap_or(1.0))?,
    };
    b.ret(&results)?;
    Ok(symbol)
}

/// The unit that a function implements, if it is one.
pub fn unit_of(function: Function<'_, '_>) -> Option<Unit> {
    let kind = UnitKind::from_name(&function.unit()?)?;
    let types = |ports: Vec<Port>| ports.into_iter().map(|port| port.r#type).collect();
    let scale = function.0.attribute(SCALE).ok().and_then(|scale| FloatAttribute::try_from(scale).ok());
    Some(Unit {
        kind,
        arguments: types(function.argument_ports().ok()?),
        results: types(function.result_ports().ok()?),
        scale: scale.map(|scale| scale.value()),
    })
}

/// A unit made for its first argument has the right shapes everywhere; one made by hand may not.
fn check(module: Op<'_, '_>, unit: &Unit) -> Result<(), Error> {
    let rank = |index: usize| unit.arguments.get(index).map_or(0, |r#type| r#type.shape.len());
    let expected = match unit.kind {
        UnitKind::Lookup => {
            return (rank(0) >= 1 && *unit == Unit::lookup(&unit.arguments[0], &unit.arguments[1]))
                .then_some(())
                .ok_or_else(|| Error::at(module, "lookup expects (table [V, D…], ids [N])"));
        }
        UnitKind::LookupGrad => return Ok(()),
        UnitKind::Attention if rank(0) == 5 => Unit::attention(&unit.arguments[0]),
        UnitKind::AttentionGrad if rank(0) == 5 => {
            Unit::attention_grad(&unit.arguments[0], unit.scale.unwrap_or(1.0))
        }
        UnitKind::AttentionPaged if rank(0) == 5 && rank(3) == 5 && rank(5) == 2 => {
            Unit::attention_paged(&unit.arguments[0], unit.arguments[3].shape[0], unit.arguments[5].shape[1])
        }
        _ => {
            return Err(Error::at(
                module,
                format!("{} expects q of shape [N, K, G, 2, E]", unit.kind.name()),
            ));
        }
    };
    if (&expected.arguments, &expected.results) == (&unit.arguments, &unit.results) {
        Ok(())
    } else {
        Err(Error::at(module, format!("{} has operands whose shapes disagree", unit.kind.name())))
    }
}

const DIMS: [&str; 5] = ["", "a", "ab", "abc", "abcd"];

fn lookup<'c, 'a>(b: &Builder<'c, 'a>, table: Val<'c, 'a>, ids: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(table)?;
    let dims = dims_of(&r#type)?;
    let extents: Vec<(char, u64)> = dims.chars().zip(r#type.shape[1..].iter().copied()).collect();
    let rank = dims.len();
    b.structured_over(&format!("n->n{dims}"), &[ids], &[table], &extents, r#type.element, 0.0, |body| {
        let row = body.to_i64(Ref::Arg(0));
        let indices: Vec<Ref> = [row].into_iter().chain((1..=rank).map(|index| body.index(index))).collect();
        body.push(ScalarOp::Extract(0), &indices, r#type.element)
    })
}

fn dims_of(table: &TensorType) -> Result<&'static str, Error> {
    let rank = table.shape.len();
    DIMS.get(rank.wrapping_sub(1)).copied().ok_or_else(|| {
        Error::Mlir(format!("lookups are in tables of rank 1 to {}, found {table}", DIMS.len()))
    })
}

fn lookup_grad<'c, 'a>(
    b: &Builder<'c, 'a>,
    ids: Val<'c, 'a>,
    dout: Val<'c, 'a>,
    rows: u64,
) -> Result<Val<'c, 'a>, Error> {
    let r#type = TensorType::of(dout)?;
    let dims = dims_of(&r#type)?;
    let specification = format!("n,n{dims}->v{dims}");
    b.structured_over(&specification, &[ids, dout], &[], &[('v', rows)], r#type.element, 0.0, |body| {
        let (id, row) = (body.to_i64(Ref::Arg(0)), body.index(0));
        let hit = body.cmp_i(Predicate::Eq, id, row);
        let sum = body.add(Ref::Arg(2), Ref::Arg(1));
        body.select(hit, sum, Ref::Arg(2))
    })
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

fn mask(body: &mut ScalarBody, visible: Ref, score: Ref, scale: f64) -> Ref {
    let element = body.element(score);
    let (scale, hidden) = (body.constant(scale, element), body.constant(f64::NEG_INFINITY, element));
    let scaled = body.mul(score, scale);
    body.select(visible, scaled, hidden)
}

fn probabilities<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    scale: f64,
) -> Result<Val<'c, 'a>, Error> {
    let scores = b.contract("nkgce,mkce->nkgm", arguments[0], arguments[1])?;
    let masked = b.map("nkgm,m->nkgm", &[scores, arguments[3]], |body| {
        let (token, other, end) = (body.index(0), body.index(3), body.to_i64(Ref::Arg(1)));
        let earlier = body.cmp_i(Predicate::Le, other, token);
        let inside = body.cmp_i(Predicate::Lt, token, end);
        let visible = body.push(ScalarOp::And, &[earlier, inside], Element::I1);
        mask(body, visible, Ref::Arg(0), scale)
    })?;
    softmax(b, masked)
}

fn attention<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    scale: f64,
) -> Result<Val<'c, 'a>, Error> {
    let weights = probabilities(b, arguments, scale)?;
    b.contract("nkgm,mkh->nkgh", weights, arguments[2])
}

fn attention_grad<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    scale: f64,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let &[q, k, v, _, dout] = arguments else {
        return Err(Error::Mlir("attention_grad takes 5 operands".into()));
    };
    let weights = probabilities(b, arguments, scale)?;
    let dv = b.contract("nkgm,nkgh->mkh", weights, dout)?;
    let dweights = b.contract("nkgh,mkh->nkgm", dout, v)?;
    let products =
        b.map("nkgm,nkgm->nkgm", &[weights, dweights], |body| body.mul(Ref::Arg(0), Ref::Arg(1)))?;
    let delta = b.reduce("nkgm->nkg", products, ScalarOp::AddF)?;
    let dscores = b.map("nkgm,nkgm,nkg->nkgm", &[weights, dweights, delta], |body| {
        let element = body.element(Ref::Arg(0));
        let centred = body.sub(Ref::Arg(1), Ref::Arg(2));
        let product = body.mul(Ref::Arg(0), centred);
        let scale = body.constant(scale, element);
        body.mul(product, scale)
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

fn attention_paged<'c, 'a>(
    b: &Builder<'c, 'a>,
    arguments: &[Val<'c, 'a>],
    scale: f64,
) -> Result<Vec<Val<'c, 'a>>, Error> {
    let &[q, k, v, k_cache, v_cache, table, position] = arguments else {
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
        mask(body, visible, Ref::Arg(0), scale)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Context;

    #[test]
    fn every_unit_verifies_and_reads_back() {
        let context = Context::new();
        let module = context.module(Location::unknown(context.mlir()));
        let f32 = |shape: &[u64]| TensorType::new(shape, Element::F32);
        let ids = TensorType::new([7], Element::I32);
        let q = f32(&[7, 2, 3, 2, 4]);
        let units = [
            Unit::lookup(&f32(&[11, 6]), &ids),
            Unit::lookup(&f32(&[11, 2, 2, 3]), &ids),
            Unit::lookup_grad(&ids, &f32(&[7, 6]), 11),
            Unit::attention(&q),
            Unit::attention_grad(&q, 0.5),
            Unit::attention_paged(&q, 5, 3),
        ];
        for unit in &units {
            let symbol = ensure(module.op(), unit).unwrap();
            assert_eq!(ensure(module.op(), unit).unwrap(), symbol);
            let found = function(module.op(), &symbol).unwrap();
            assert_eq!(unit_of(found).as_ref(), Some(unit));
        }
        assert_eq!(crate::function::functions(module.op()).len(), units.len());
        module.verify().unwrap();
    }
}
