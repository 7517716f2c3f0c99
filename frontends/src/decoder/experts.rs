//! A mixture of experts: each token's best experts, on ragged groups of permuted tokens, none dropped.
//!
//! Rows are tokens paired with an expert, sorted by expert. Tokens are in `P` groups, one a block of devices that
//! splits them, and experts in `S` slots, one a block that splits those: bringing rows from the one order to the
//! other is what becomes an all-to-all.

use t3c_ir::{Ref, ScalarOp, TensorType, Val, scalar::Predicate, units::Unit};

use super::{Role, config::Experts, layer::Place};
use crate::{Error, nn};

/// Rows that the router made.
struct Rows<'c, 'a> {
    source: Val<'c, 'a>,
    expert: Val<'c, 'a>,
    offsets: Val<'c, 'a>,
}

impl<'c, 'a> Place<'_, 'c, 'a> {
    /// What the experts add to the residual stream.
    pub(super) fn mixture(&self, normal: Val<'c, 'a>, experts: &Experts) -> Result<Val<'c, 'a>, Error> {
        let b = self.at(Role::Router);
        let normal = self.decoder.annotate_tokens(&b, "tokens", normal)?;
        let scores = self.product("nd,ed->ne", normal, Role::Router)?;
        let scores = nn::convert(&b, scores, nn::wide(self.decoder.plan.element))?;
        let rows = self.route(scores, experts)?;
        let shares = self.shares(scores, &rows, experts)?;
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
        self.scatter(rows.source, weighted)
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
        scores: Val<'c, 'a>,
        rows: &Rows<'c, 'a>,
        experts: &Experts,
    ) -> Result<Val<'c, 'a>, Error> {
        let b = self.at(Role::Router);
        let element = TensorType::of(scores)?.element;
        let probabilities = nn::softmax(&b, scores)?;
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
