//! A mixture of experts: each token's best experts, on ragged groups of permuted tokens, none dropped.
//!
//! Rows are tokens paired with an expert, sorted by expert. Tokens are in `P` groups, one a block of devices that
//! splits them, and experts in `S` slots, one a block that splits those: bringing rows from the one order to the
//! other is what becomes an all-to-all.

use t3c_ir::{Builder, Ref, ScalarOp, TensorType, Val, scalar::Predicate, units::Unit};

use super::{
    Decoder, Role,
    config::{Experts, LayerKind},
    layer::Place,
};
use crate::{Error, nn};

/// Rows that the router made.
struct Rows<'c, 'a> {
    source: Val<'c, 'a>,
    expert: Val<'c, 'a>,
    offsets: Val<'c, 'a>,
}

impl<'c, 'a> Place<'_, 'c, 'a> {
    /// What the experts add to the residual stream, and what the load balance needs.
    pub(super) fn mixture(
        &self,
        normal: Val<'c, 'a>,
        experts: &Experts,
    ) -> Result<(Val<'c, 'a>, Vec<Val<'c, 'a>>), Error> {
        let b = self.at(Role::Router);
        let normal = self.decoder.annotate_tokens(&b, "tokens", normal)?;
        let scores = self.product("nd,ed->ne", normal, Role::Router)?;
        let scores = nn::convert(&b, scores, nn::wide(self.decoder.plan.element))?;
        let rows = self.route(scores, experts)?;
        let probabilities = nn::softmax(&b, scores)?;
        let shares = self.shares(probabilities, &rows, experts)?;
        let x = self.gather(normal, rows.source)?;
        let k = experts.num_experts_per_tok;
        let grouped = |x, role| -> Result<Val<'c, 'a>, Error> {
            let weight = self.weight(role)?;
            let unit = Unit::grouped(&TensorType::of(x)?, &TensorType::of(weight)?, k);
            Ok(nn::call_unit(&self.at(role), self.module.op(), &unit, &[x, weight, rows.offsets])?[0])
        };
        let (gate, up) = (grouped(x, Role::ExpertGate)?, grouped(x, Role::ExpertUp)?);
        let function = self.decoder.config.activation.function();
        let active = nn::gated(&self.at(Role::ExpertGate), gate, up, function)?;
        let b = self.at(Role::ExpertDown);
        // Back to where the tokens are at once: nothing but rows changes hands.
        let y = self.decoder.annotate_tokens(&b, "rows", grouped(active, Role::ExpertDown)?)?;
        let element = TensorType::of(y)?.element;
        let weighted = b.map("pscd,psc->pscd", &[y, shares], |body| {
            let share = nn::cast(body, Ref::Arg(1), element);
            body.mul(Ref::Arg(0), share)
        })?;
        let balance = if self.decoder.balances(self.kind) {
            self.balance(probabilities, &rows, experts.num_experts)?
        } else {
            Vec::new()
        };
        Ok((self.scatter(rows.source, weighted)?, balance))
    }

    /// Rows and probabilities of each expert, summed over the tokens.
    fn balance(
        &self,
        probabilities: Val<'c, 'a>,
        rows: &Rows<'c, 'a>,
        experts: u64,
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        let b = self.at(Role::Router).named("load_balance");
        let element = TensorType::of(probabilities)?.element;
        let extents = [('e', experts)];
        let counts = b.structured_over("psc->e", &[rows.expert], &[], &extents, element, 0.0, |body| {
            let (column, expert) = (body.index(0), body.to_i64(Ref::Arg(0)));
            let own = body.cmp_i(Predicate::Eq, column, expert);
            let one = body.constant(1.0, element);
            let more = body.add(Ref::Arg(1), one);
            body.select(own, more, Ref::Arg(1))
        })?;
        let sums = b.reduce("ne->e", probabilities, ScalarOp::AddF)?;
        Ok(vec![counts, sums])
    }

    fn route(&self, scores: Val<'c, 'a>, experts: &Experts) -> Result<Rows<'c, 'a>, Error> {
        let parallel = &self.decoder.plan.parallel;
        let scores_type = TensorType::of(scores)?;
        let unit = Unit::route(&scores_type, experts.num_experts_per_tok, parallel.blocks(), parallel.ep);
        let results = nn::call_unit(&self.at(Role::Router), self.module.op(), &self.local(unit), &[scores])?;
        match *results.as_slice() {
            [source, expert, offsets] => Ok(Rows { source, expert, offsets }),
            _ => Err(t3c_ir::Error::Mlir("a router has three results".into()).into()),
        }
    }

    /// The weight of each row: its token's probability of its expert, over the sum of the token's where the family
    /// makes them sum to 1.
    fn shares(
        &self,
        probabilities: Val<'c, 'a>,
        rows: &Rows<'c, 'a>,
        experts: &Experts,
    ) -> Result<Val<'c, 'a>, Error> {
        let b = self.at(Role::Router);
        let element = TensorType::of(probabilities)?.element;
        let candidates = self.gather(probabilities, rows.source)?;
        let shares = b.structured("psce,psc->psc", &[candidates, rows.expert], element, 0.0, |body| {
            let (column, expert) = (body.index(3), body.to_i64(Ref::Arg(1)));
            let own = body.cmp_i(Predicate::Eq, column, expert);
            let zero = body.constant(0.0, element);
            let term = body.select(own, Ref::Arg(0), zero);
            body.add(Ref::Arg(2), term)
        })?;
        if !experts.norm_topk_prob {
            return Ok(shares);
        }
        let sums = self.scatter(rows.source, shares)?;
        let sums = self.gather(sums, rows.source)?;
        Ok(b.map("psc,psc->psc", &[shares, sums], |body| {
            body.push(ScalarOp::DivF, &[Ref::Arg(0), Ref::Arg(1)], element)
        })?)
    }

    /// A unit whose indices stay in the block of tokens that has them.
    fn local(&self, unit: Unit) -> Unit {
        if self.decoder.plan.parallel.tokens().is_empty() { unit } else { unit.aligned() }
    }

    /// The tokens' values, row by row.
    fn gather(&self, values: Val<'c, 'a>, source: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let unit = self.local(Unit::lookup(&TensorType::of(values)?, &TensorType::of(source)?));
        Ok(nn::call_unit(&self.at(Role::Router), self.module.op(), &unit, &[values, source])?[0])
    }

    /// The sum of each token's rows.
    fn scatter(&self, source: Val<'c, 'a>, rows: Val<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let tokens = self.decoder.plan.tokens;
        let unit = self.local(Unit::lookup_grad(&TensorType::of(source)?, &TensorType::of(rows)?, tokens));
        Ok(nn::call_unit(&self.at(Role::ExpertDown), self.module.op(), &unit, &[source, rows])?[0])
    }
}

impl Decoder {
    /// Whether layers of this kind return what the load balance needs.
    pub(super) fn balances(&self, kind: LayerKind) -> bool {
        kind.experts && self.plan.load_balance > 0.0
    }

    /// The types of what such a layer returns: rows and probabilities of each expert.
    pub(super) fn balance_types(&self) -> [TensorType; 2] {
        let experts = self.config.experts.as_ref().map_or(0, |experts| experts.num_experts);
        [(); 2].map(|()| TensorType::new([experts], nn::wide(self.plan.element)))
    }

    /// The routers' load balance, with its weight: the number of experts times `Σ_e rows_e · probability_e`, both
    /// averaged over the tokens of all layers (`sums` in pairs).
    pub(super) fn load_balance<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        sums: &[Val<'c, 'a>],
    ) -> Result<Val<'c, 'a>, Error> {
        let element = nn::wide(self.plan.element);
        let [experts] = self.balance_types()[0].shape[..] else {
            return Err(t3c_ir::Error::Mlir("experts are counted in one dimension".into()).into());
        };
        let tokens = (self.plan.tokens * (sums.len() as u64 / 2)) as f64;
        let mut totals = [sums[0], sums[1]];
        for pair in sums[2..].chunks_exact(2) {
            totals = [b.add(totals[0], pair[0])?, b.add(totals[1], pair[1])?];
        }
        let weight = self.plan.load_balance * experts as f64 / (tokens * tokens);
        Ok(b.structured("e,e->", &totals, element, 0.0, |body| {
            let weight = body.constant(weight, element);
            let rows = body.mul(weight, Ref::Arg(0));
            let term = body.mul(rows, Ref::Arg(1));
            body.add(Ref::Arg(2), term)
        })?)
    }
}
