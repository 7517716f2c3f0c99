//! Refuses trees and options that the arithmetic has no meaning for, by the name of the field.

use thiserror::Error;

use super::types::{Options, TreeInput, Weighting};

/// Why a tree has no credit. `field` is the path in the JSON form.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CreditError {
    /// A number that is not finite or outside its range.
    #[error("`{field}` is {value}, expected {expected}")]
    OutOfRange {
        /// The field.
        field: String,
        /// Its value.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A parent that is not an earlier node: out of range, or part of a cycle.
    #[error("`{field}` is {parent}, expected -1 or the index of an earlier node")]
    Parent {
        /// The field.
        field: String,
        /// The parent given.
        parent: i64,
    },
    /// A last step that does not exist.
    #[error("`{field}` is {leaf}, expected the index of one of the {nodes} nodes")]
    Leaf {
        /// The field.
        field: String,
        /// The leaf given.
        leaf: i64,
        /// Number of nodes.
        nodes: usize,
    },
    /// A list whose length disagrees with the number of model tokens.
    #[error("`{field}` has {found} values, expected one for each of the {expected} model tokens")]
    Length {
        /// The field.
        field: String,
        /// Its length.
        found: usize,
        /// The number of model tokens.
        expected: usize,
    },
    /// Nothing to give credit to.
    #[error("`{field}` is empty, expected at least one {what}")]
    Empty {
        /// The field.
        field: String,
        /// What is missing.
        what: &'static str,
    },
    /// Finite values so large that the result is not.
    #[error("the credit of `input` is not finite: its values are too large")]
    Overflow,
    /// A trajectory that did not end with an answer but has an outcome of one that did.
    #[error("`{field}` is false although `r_out` is {r_out}: an unfinished trajectory has -1")]
    Unfinished {
        /// The field.
        field: String,
        /// The outcome given.
        r_out: f64,
    },
}

/// Checks the choices.
pub fn options(options: &Options) -> Result<(), CreditError> {
    let at = |name: &str| format!("options.{name}");
    let in_range = |name: &'static str, value, holds, expected| in_range(|| at(name), value, holds, expected);
    let positive = |name, value: f64| in_range(name, value, value >= 0.0, "0 or more");
    in_range("gamma", options.gamma, (0.0..=1.0).contains(&options.gamma), "0 to 1")?;
    in_range("w1", options.w1, true, "a finite number")?;
    in_range("w2", options.w2, true, "a finite number")?;
    positive("eps", options.eps)?;
    in_range("clip_low", options.clip_low, (0.0..=1.0).contains(&options.clip_low), "0 to 1")?;
    positive("clip_high", options.clip_high)?;
    positive("beta", options.beta)?;
    let l_max = f64::from(options.l_max);
    in_range("l_max", l_max, options.weight != Weighting::Drgrpo || l_max > 0.0, "1 or more")?;
    match options.dual_clip {
        Some(bound) => in_range("dual_clip", bound, bound > 1.0, "more than 1"),
        None => Ok(()),
    }
}

fn in_range(
    field: impl FnOnce() -> String,
    value: f64,
    holds: bool,
    expected: &'static str,
) -> Result<(), CreditError> {
    if holds && value.is_finite() {
        Ok(())
    } else {
        Err(CreditError::OutOfRange { field: field(), value, expected })
    }
}

/// Checks one tree.
pub fn tree(input: &TreeInput, options: &Options) -> Result<(), CreditError> {
    for index in 0..input.nodes.len() {
        node(input, index, options)?;
    }
    if input.trajectories.is_empty() {
        let field = "input.trajectories".to_owned();
        return Err(CreditError::Empty { field, what: "trajectory" });
    }
    for index in 0..input.trajectories.len() {
        trajectory(input, index)?;
    }
    Ok(())
}

fn node(input: &TreeInput, index: usize, options: &Options) -> Result<(), CreditError> {
    let node = &input.nodes[index];
    let at = |name: &str| format!("input.nodes[{index}].{name}");
    if node.parent < -1 || node.parent >= index as i64 {
        return Err(CreditError::Parent { field: at("parent"), parent: node.parent });
    }
    let score = node.format_score;
    in_range(|| at("format_score"), score, (0.0..=1.0).contains(&score), "0 to 1")?;
    let lists = [("logp", &node.logp), ("old_logp", &node.old_logp), ("ref_logp", &node.ref_logp)];
    for (name, values) in lists {
        let absent = name == "ref_logp" && options.beta == 0.0 && values.is_empty();
        if values.len() != node.model_tokens && !absent {
            let (found, expected) = (values.len(), node.model_tokens);
            return Err(CreditError::Length { field: at(name), found, expected });
        }
        for (token, value) in values.iter().enumerate() {
            in_range(|| at(&format!("{name}[{token}]")), *value, true, "a finite number")?;
        }
    }
    Ok(())
}

fn trajectory(input: &TreeInput, index: usize) -> Result<(), CreditError> {
    let trajectory = &input.trajectories[index];
    let at = |name: &str| format!("input.trajectories[{index}].{name}");
    let nodes = input.nodes.len();
    let leaf = usize::try_from(trajectory.leaf).ok().filter(|leaf| *leaf < nodes);
    let leaf = leaf.ok_or_else(|| CreditError::Leaf { field: at("leaf"), leaf: trajectory.leaf, nodes })?;
    in_range(|| at("r_out"), trajectory.r_out, true, "a finite number")?;
    if !trajectory.finished && trajectory.r_out != -1.0 {
        return Err(CreditError::Unfinished { field: at("finished"), r_out: trajectory.r_out });
    }
    let mut node = leaf as i64;
    let mut tokens = 0;
    while let Ok(index) = usize::try_from(node) {
        tokens += input.nodes[index].model_tokens;
        node = input.nodes[index].parent;
    }
    if tokens == 0 {
        let field = format!("input.trajectories[{index}]");
        return Err(CreditError::Empty { field, what: "model token" });
    }
    Ok(())
}
