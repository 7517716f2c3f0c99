//! The gradient of a maximum (or minimum) over loops: every contribution that equals the result has an equal share.
//!
//! ```text
//! m = max(init, max f(x))        share = dm / (number of contributions, init among them, that equal m)
//! dx = f'(x) · share where f(x) = m           dinit = share where init = m
//! ```
//!
//! The first is the gradient of `Σ (f(x) = m ? f(x) · share : 0)`, with `m` and `share` as constants: one structured
//! operation, for which the one rule holds.

use t3c_ir::{
    Builder, Error, Generic, Op, Predicate, Ref, ScalarBody, ScalarOp, TensorType, Val, generic::splat_value,
};

use super::structured::Rule;

/// Whether a structured operation takes a maximum or minimum into its output.
pub fn is(generic: &Generic<'_, '_>) -> bool {
    matches!(generic.body.combiner(), Some((ScalarOp::MaxF | ScalarOp::MinF, _)))
}

/// An extremum, its result, and the share of each contribution that equals it.
pub struct Shared<'c, 'a> {
    generic: Generic<'c, 'a>,
    result: Val<'c, 'a>,
    share: Val<'c, 'a>,
}

/// One letter a dimension.
fn letters(rank: usize) -> String {
    ('a'..='z').take(rank).collect()
}

impl<'c, 'a> Shared<'c, 'a> {
    /// Counts what equals `result`, whose gradient is `gradient`. Everything stands at the builder's place.
    ///
    /// # Errors
    /// When MLIR refuses an operation.
    pub fn new(
        b: &Builder<'c, 'a>,
        generic: Generic<'c, 'a>,
        result: Val<'c, 'a>,
        gradient: Val<'c, 'a>,
    ) -> Result<Self, Error> {
        let r#type = TensorType::of(result)?;
        let dims = letters(r#type.shape.len());
        let unreachable = splat_value(generic.init).is_some_and(f64::is_infinite);
        let start = if unreachable {
            b.fill(0.0, &r#type)?
        } else {
            b.map(&format!("{dims},{dims}->{dims}"), &[generic.init, result], |body| {
                let hit = body.cmp_f(Predicate::Eq, Ref::Arg(0), Ref::Arg(1));
                let [one, zero] = [1.0, 0.0].map(|number| body.constant(number, r#type.element));
                body.select(hit, one, zero)
            })?
        };
        let mut shared = Self { generic, result, share: result };
        let count = shared.summed(b, start, false)?;
        shared.share = b.map(&format!("{dims},{dims}->{dims}"), &[gradient, count], |body| {
            body.div(Ref::Arg(0), Ref::Arg(1))
        })?;
        Ok(shared)
    }

    /// The gradient of the initial value.
    ///
    /// # Errors
    /// When MLIR refuses it.
    pub fn of_init(&self, b: &Builder<'c, 'a>) -> Result<Val<'c, 'a>, Error> {
        let dims = letters(self.generic.result.shape.len());
        let inputs = [self.generic.init, self.result, self.share];
        b.map(&format!("{dims},{dims},{dims}->{dims}"), &inputs, |body| {
            let element = body.element(Ref::Arg(0));
            let (hit, zero) =
                (body.cmp_f(Predicate::Eq, Ref::Arg(0), Ref::Arg(1)), body.constant(0.0, element));
            body.select(hit, Ref::Arg(2), zero)
        })
    }

    /// The rule of which input `k`'s gradient is that of the extremum's input `k`.
    ///
    /// # Errors
    /// What has no rule.
    pub fn rule(&self, operation: Op<'c, 'a>, b: &Builder<'c, 'a>) -> Result<Rule<'c, 'a>, Error> {
        let seed = b.splat(1.0, &self.generic.result)?;
        Rule::new(operation, self.terms(true, self.generic.init), seed)
    }

    fn summed(&self, b: &Builder<'c, 'a>, start: Val<'c, 'a>, shares: bool) -> Result<Val<'c, 'a>, Error> {
        b.generic(&self.terms(shares, start))
    }

    /// `Σ (f = m ? f · share : 0)`, or the count of what equals `m`.
    fn terms(&self, shares: bool, init: Val<'c, 'a>) -> Generic<'c, 'a> {
        let generic = &self.generic;
        let (inputs, element) = (generic.inputs.len(), generic.result.element);
        let contribution = generic.body.combiner().map_or(Ref::Arg(0), |(_, value)| value);
        let mut alone = generic.body.clone().yield_(contribution);
        alone.prune();
        let extra = if shares { 2 } else { 1 };
        let mut args = generic.body.args[..inputs].to_vec();
        args.extend(vec![element; extra + 1]);
        let mut body = ScalarBody::new(args);
        let arguments: Vec<Ref> = (0..=inputs).map(Ref::Arg).collect();
        let value = body.inline(&alone, &arguments)[0];
        let hit = body.cmp_f(Predicate::Eq, value, Ref::Arg(inputs));
        let zero = body.constant(0.0, element);
        let term = if shares { body.mul(value, Ref::Arg(inputs + 1)) } else { body.constant(1.0, element) };
        let term = body.select(hit, term, zero);
        let sum = body.add(Ref::Arg(inputs + extra), term);
        let mut maps = generic.maps[..inputs].to_vec();
        maps.extend(vec![generic.output_map().to_vec(); extra + 1]);
        let mut all = generic.inputs.clone();
        all.push(self.result);
        if shares {
            all.push(self.share);
        }
        Generic {
            inputs: all,
            init,
            maps,
            iterators: generic.iterators.clone(),
            extents: generic.extents.clone(),
            body: body.yield_(sum),
            captures: generic.captures.clone(),
            result: generic.result.clone(),
        }
    }
}
