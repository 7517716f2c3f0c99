//! The arithmetic of PORTool for one tree, in double precision: step rewards, advantages, weights,
//! and the clipped loss with its derivative.
//!
//! A step s that the trajectories m(s) share has one reward
//! R(s) = G over k in m(s) of γ^(T_k − t)·R_out(k) + R_fm(s), one fork-relative advantage, and as
//! many trajectory-relative ones as trajectories. The loss of a shared token is the sum over its
//! trajectories of ω·min(r·A, clip(r)·A); because that minimum is positively homogeneous per sign of
//! A, it depends on them only through A⁺ = Σ ω·max(A, 0) and A⁻ = Σ ω·min(A, 0). So a shared step
//! enters the packed training step once, exactly ([`Credit::a_plus`], [`Credit::a_minus`]).
//!
//! The trainer and `t3c credit` call the same function, [`credit`].
//!
//! ```
//! use t3c_rl::credit::{Request, credit};
//!
//! // Two first steps of one token each; the first is right. It was sampled at 0.5 and now has 0.6.
//! let request: Request = serde_json::from_str(r#"{"input": {
//!     "nodes": [
//!         {"parent": -1, "model_tokens": 1, "format_score": 1, "logp": [-0.51], "old_logp": [-0.69]},
//!         {"parent": -1, "model_tokens": 1, "format_score": 1, "logp": [-0.92], "old_logp": [-0.69]}],
//!     "trajectories": [
//!         {"leaf": 0, "finished": true, "r_out": 1},
//!         {"leaf": 1, "finished": true, "r_out": -1}]},
//!     "options": {"w2": 0, "traj_norm": "none"}}"#)?;
//! let credit = credit(&request.input, &request.options)?;
//! assert_eq!(credit.a_traj, [1.0, -1.0]);
//! assert_eq!(credit.a_plus, [Some(0.5), Some(0.0)]);
//! // The wrong step's ratio is below 1 - clip_low: it is not pushed down further.
//! assert_eq!(credit.dlogp[1], [0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod check;
mod loss;
mod reward;
mod types;

pub use check::{CreditError, options as check_options};
pub use loss::{TokenLoss, k3, surrogate};
pub use types::{
    Aggregate, Credit, ForkNorm, NodeInput, Options, Request, TrajNorm, TrajScore, TrajectoryInput,
    TreeInput, Weighting,
};

use reward::Shape;

/// Rewards, advantages, weights and loss of one tree.
pub fn credit(input: &TreeInput, options: &Options) -> Result<Credit, CreditError> {
    check::options(options)?;
    check::tree(input, options)?;
    let shape = Shape::of(input);
    let r_fm = reward::format(input, options, &shape);
    let r_step = reward::steps(input, options, &shape, &r_fm);
    let traj_score = reward::trajectory_scores(input, options, &shape, &r_step);
    let a_traj = reward::centred(&traj_score, options.traj_norm == TrajNorm::Std, options.eps);
    let a_fork = reward::fork_advantages(options, &shape, &r_step);
    let a = reward::blend(options, &shape, &a_traj, &a_fork);
    let weight = reward::weights(input, options, &shape);
    let merged = reward::merge(&shape, &a, &weight);
    let token_loss = loss::tree(input, options, &merged);
    let finite = token_loss.dlogp.iter().flatten().chain(&r_step).chain(a.iter().flatten());
    if !(token_loss.loss_pg + token_loss.loss_kl).is_finite() || !finite.into_iter().all(|x| x.is_finite()) {
        return Err(CreditError::Overflow);
    }
    let only_reached = |values: &[f64]| -> Vec<Option<f64>> {
        values.iter().zip(&shape.through).map(|(v, m)| (!m.is_empty()).then_some(*v)).collect()
    };
    Ok(Credit {
        r_fm: only_reached(&r_fm),
        r_step: only_reached(&r_step),
        traj_score,
        a_traj,
        a_fork: only_reached(&a_fork),
        a,
        weight,
        a_plus: only_reached(&merged.a_plus),
        a_minus: only_reached(&merged.a_minus),
        weight_sum: only_reached(&merged.weight_sum),
        loss: token_loss.loss_pg + token_loss.loss_kl,
        loss_pg: token_loss.loss_pg,
        loss_kl: token_loss.loss_kl,
        dlogp: token_loss.dlogp,
    })
}

#[cfg(test)]
mod tests;
