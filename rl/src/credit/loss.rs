//! The clipped loss of a token and its derivative.

use super::reward::Merged;
use super::types::{Options, TreeInput};

/// Log-ratios are clamped to ±20 before they are exponentiated.
const LARGEST_LOG_RATIO: f64 = 20.0;
/// The divergence estimate is clamped to ±10.
const LARGEST_K3: f64 = 10.0;

/// A value and its derivative in the token's log-probability.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenLoss {
    /// The value.
    pub value: f64,
    /// Its derivative.
    pub derivative: f64,
}

/// Loss of a whole tree.
pub(super) struct TreeLoss {
    pub loss_pg: f64,
    pub loss_kl: f64,
    pub dlogp: Vec<Vec<f64>>,
}

/// −[A⁺·min(r, 1 + clip_high) + A⁻·max(r, 1 − clip_low)] with r = exp(logp − old_logp). With a dual
/// clip c the second ratio is at most c.
pub fn surrogate(logp: f64, old_logp: f64, a_plus: f64, a_minus: f64, options: &Options) -> TokenLoss {
    let difference = logp - old_logp;
    let ratio = difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp();
    // The ratio's derivative in logp is the ratio itself, or 0 where it was clamped.
    let slope = if difference.abs() <= LARGEST_LOG_RATIO { ratio } else { 0.0 };
    let (high, low) = (1.0 + options.clip_high, 1.0 - options.clip_low);
    let (plus, plus_slope) = if ratio <= high { (ratio, slope) } else { (high, 0.0) };
    let (mut minus, mut minus_slope) = if ratio >= low { (ratio, slope) } else { (low, 0.0) };
    if let Some(bound) = options.dual_clip
        && minus > bound
    {
        (minus, minus_slope) = (bound, 0.0);
    }
    TokenLoss {
        value: -(a_plus * plus + a_minus * minus),
        derivative: -(a_plus * plus_slope + a_minus * minus_slope),
    }
}

/// The divergence estimate e^d − d − 1 with d = ref_logp − logp.
pub fn k3(logp: f64, ref_logp: f64) -> TokenLoss {
    let difference = ref_logp - logp;
    let clamped = difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO);
    let value = clamped.exp() - clamped - 1.0;
    if value > LARGEST_K3 {
        return TokenLoss { value: LARGEST_K3, derivative: 0.0 };
    }
    let derivative = if clamped == difference { 1.0 - clamped.exp() } else { 0.0 };
    TokenLoss { value, derivative }
}

pub(super) fn tree(input: &TreeInput, options: &Options, merged: &Merged) -> TreeLoss {
    let (mut loss_pg, mut loss_kl) = (0.0, 0.0);
    let mut dlogp = Vec::with_capacity(input.nodes.len());
    for (index, node) in input.nodes.iter().enumerate() {
        let (a_plus, a_minus) = (merged.a_plus[index], merged.a_minus[index]);
        let kl_weight = options.beta * merged.weight_sum[index];
        let mut row = Vec::with_capacity(node.model_tokens);
        for token in 0..node.model_tokens {
            let pg = surrogate(node.logp[token], node.old_logp[token], a_plus, a_minus, options);
            let kl = match kl_weight == 0.0 {
                true => TokenLoss::default(),
                false => k3(node.logp[token], node.ref_logp[token]),
            };
            loss_pg += pg.value;
            loss_kl += kl_weight * kl.value;
            row.push(pg.derivative + kl_weight * kl.derivative);
        }
        dlogp.push(row);
    }
    TreeLoss { loss_pg, loss_kl, dlogp }
}
