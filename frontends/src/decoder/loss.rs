//! What training minimises, from each target's log-probability.

use t3c_ir::{Builder, Element, Ref, ScalarBody, ScalarOp, Val, function::Port, types::TensorType};

use crate::{Error, nn};

/// An objective.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Objective {
    /// `−Σ weight · logp`: language modelling and supervised fine-tuning. Weights of 1 / count make it a mean.
    #[default]
    Lm,
    /// PORTool's clipped objective with its advantages as inputs.
    ///
    /// With `r = exp(logp − old_logp)`, its log clamped to ±20: `loss_pg = −Σ [a_plus · min(r, 1 + clip_high) +
    /// a_minus · max(r, 1 − clip_low)]`, `loss_kl = beta · Σ weight · k3` and their sum. Advantages of several
    /// trajectories through one token are split by sign before they are added up, so that clipping stays exact.
    Portool {
        /// How far below 1 a ratio counts.
        clip_low: f64,
        /// How far above 1 a ratio counts.
        clip_high: f64,
        /// The weight of the divergence from the reference; 0 leaves it out, with its inputs and its output.
        beta: f64,
    },
}

/// Log-ratios are clamped to this before `exp`.
const MOST_LOG_RATIO: f64 = 20.0;
/// And the divergence of one token to this.
const MOST_DIVERGENCE: f64 = 10.0;

impl Objective {
    /// Names of the per-row inputs after `targets`.
    pub(super) fn inputs(&self) -> &'static [&'static str] {
        match self {
            Self::Lm => &["weight"],
            Self::Portool { beta, .. } if *beta > 0.0 => {
                &["old_logp", "ref_logp", "a_plus", "a_minus", "weight"]
            }
            Self::Portool { .. } => &["old_logp", "a_plus", "a_minus", "weight"],
        }
    }

    /// Names of the scalar results, `loss` first.
    pub(super) fn results(&self) -> &'static [&'static str] {
        match self {
            Self::Lm => &["loss"],
            Self::Portool { beta, .. } if *beta > 0.0 => &["loss", "loss_pg", "loss_kl"],
            Self::Portool { .. } => &["loss", "loss_pg"],
        }
    }

    /// The per-row inputs as ports.
    pub(super) fn ports(&self, rows: u64, element: Element) -> Vec<Port> {
        self.inputs().iter().map(|&name| Port::new(name, TensorType::new([rows], element))).collect()
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let Self::Portool { clip_low, clip_high, beta } = *self else { return Ok(()) };
        for (name, value) in [("clip_low", clip_low), ("clip_high", clip_high), ("beta", beta)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(name, format!("{value} is negative or no number")));
            }
        }
        Ok(())
    }

    /// The scalar results, from `logp [M]` and the inputs in the order of [`Objective::inputs`].
    pub(super) fn build<'c, 'a>(
        &self,
        b: &Builder<'c, 'a>,
        logp: Val<'c, 'a>,
        inputs: &[Val<'c, 'a>],
    ) -> Result<Vec<Val<'c, 'a>>, Error> {
        let element = TensorType::of(logp)?.element;
        match (self, inputs) {
            (Self::Lm, &[weight]) => {
                let loss = b.named("loss").structured("m,m->", &[logp, weight], element, 0.0, |body| {
                    let term = body.mul(Ref::Arg(1), Ref::Arg(0));
                    let term = body.unary(ScalarOp::NegF, term);
                    body.add(Ref::Arg(2), term)
                })?;
                Ok(vec![loss])
            }
            (Self::Portool { clip_low, clip_high, .. }, &[old, a_plus, a_minus, _]) => {
                let loss = policy_gradient(b, element, [logp, old, a_plus, a_minus], *clip_low, *clip_high)?;
                Ok(vec![loss, loss])
            }
            (Self::Portool { clip_low, clip_high, beta }, &[old, reference, a_plus, a_minus, weight]) => {
                let gradient =
                    policy_gradient(b, element, [logp, old, a_plus, a_minus], *clip_low, *clip_high)?;
                let divergence = divergence(b, element, [logp, reference, weight], *beta)?;
                Ok(vec![b.named("loss").add(gradient, divergence)?, gradient, divergence])
            }
            _ => Err(t3c_ir::Error::Mlir("an objective has other inputs".into()).into()),
        }
    }
}

fn clamped(body: &mut ScalarBody, x: Ref, most: f64) -> Ref {
    let element = body.element(x);
    let [low, high] = [-most, most].map(|bound| body.constant(bound, element));
    let below = body.binary(ScalarOp::MinF, x, high);
    body.binary(ScalarOp::MaxF, below, low)
}

fn policy_gradient<'c, 'a>(
    b: &Builder<'c, 'a>,
    element: Element,
    inputs: [Val<'c, 'a>; 4],
    clip_low: f64,
    clip_high: f64,
) -> Result<Val<'c, 'a>, Error> {
    let loss = b.named("loss_pg").structured("m,m,m,m->", &inputs, element, 0.0, |body| {
        let difference = body.sub(Ref::Arg(0), Ref::Arg(1));
        let difference = clamped(body, difference, MOST_LOG_RATIO);
        let ratio = body.unary(ScalarOp::Exp, difference);
        let [low, high] = [1.0 - clip_low, 1.0 + clip_high].map(|bound| body.constant(bound, element));
        let rising = body.binary(ScalarOp::MinF, ratio, high);
        let rising = body.mul(Ref::Arg(2), rising);
        let falling = body.binary(ScalarOp::MaxF, ratio, low);
        let falling = body.mul(Ref::Arg(3), falling);
        let term = body.add(rising, falling);
        let term = body.unary(ScalarOp::NegF, term);
        body.add(Ref::Arg(4), term)
    })?;
    Ok(loss)
}

/// `beta · Σ weight · (exp(d) − d − 1)` with `d = reference − logp`.
fn divergence<'c, 'a>(
    b: &Builder<'c, 'a>,
    element: Element,
    inputs: [Val<'c, 'a>; 3],
    beta: f64,
) -> Result<Val<'c, 'a>, Error> {
    let loss = b.named("loss_kl").structured("m,m,m->", &inputs, element, 0.0, |body| {
        let difference = body.sub(Ref::Arg(1), Ref::Arg(0));
        let difference = clamped(body, difference, MOST_LOG_RATIO);
        let exp = body.unary(ScalarOp::Exp, difference);
        let [one, beta] = [1.0, beta].map(|value| body.constant(value, element));
        let k3 = body.sub(exp, difference);
        let k3 = body.sub(k3, one);
        let k3 = clamped(body, k3, MOST_DIVERGENCE);
        let weight = body.mul(beta, Ref::Arg(2));
        let term = body.mul(weight, k3);
        body.add(Ref::Arg(3), term)
    })?;
    Ok(loss)
}

/// `z · Σ weight · log_sum²`, which keeps the logits' normaliser near 1.
pub(super) fn z_loss<'c, 'a>(
    b: &Builder<'c, 'a>,
    log_sum: Val<'c, 'a>,
    weight: Val<'c, 'a>,
    z: f64,
) -> Result<Val<'c, 'a>, Error> {
    let element = TensorType::of(log_sum)?.element;
    let loss = b.named("z_loss").structured("m,m->", &[log_sum, weight], element, 0.0, |body| {
        let square = body.mul(Ref::Arg(0), Ref::Arg(0));
        let z = body.constant(z, element);
        let weight = body.mul(z, Ref::Arg(1));
        let term = body.mul(weight, square);
        body.add(Ref::Arg(2), term)
    })?;
    Ok(loss)
}

/// Logits over temperature.
pub(super) fn cooled<'c, 'a>(
    b: &Builder<'c, 'a>,
    logits: Val<'c, 'a>,
    temperature: f64,
) -> Result<Val<'c, 'a>, Error> {
    if temperature == 1.0 {
        return Ok(logits);
    }
    let cooled = b.map("mv->mv", &[logits], |body| {
        let element = body.element(Ref::Arg(0));
        let temperature = body.constant(temperature, element);
        body.div(Ref::Arg(0), temperature)
    })?;
    Ok(cooled)
}

/// The loss's type for logits of type `element`.
pub(super) fn loss_type(element: Element) -> TensorType {
    TensorType::new([], nn::wide(element))
}
