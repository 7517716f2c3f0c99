//! `t3-optimizer`: the optimizer, appended to an entry that returns gradients. One call of the compiled function is
//! then one step: it takes parameters and state and returns them anew.
//!
//! Everything is elementwise work and plain sums, so that state is partitioned like its parameter and the norm of
//! partitioned gradients is a partial sum.
//!
//! ```text
//! g' = (acc + g) · min(1, clip / (‖acc + g‖ + 1e-6))
//! AdamW:  m' = β₁ m + (1 − β₁) g'           v' = β₂ v + (1 − β₂) g'²
//!         p' = p − lr · (m' / bias1 / (√(v' / bias2) + ε) + weight_decay · p)
//! SGD:    m' = momentum · m + g' + weight_decay · p
//!         p' = p − lr · m'           Nesterov: p − lr · (g' + weight_decay · p + momentum · m')
//! ```
//!
//! `bias1 = 1 − β₁ᵗ`, `bias2 = 1 − β₂ᵗ` and the learning rate are inputs: the step's number is the trainer's.
//!
//! - Weight decay is for all parameters, or for matrices only: then vectors, biases and norms have none. A port's
//!   attribute `t3.decay = true` or `false` decides for that parameter.
//! - Gradients of several calls are accumulated in `acc/…`; the input `apply` says whether this call steps (1, and the
//!   accumulators return to zero) or only adds (0, and nothing else changes).
//! - Parameters narrower than f32 step in f32 on their `master/…`, of which they are the rounded copies.

mod append;
mod step;

#[cfg(test)]
mod tests;

pub use append::append;
use t3c_ir::{Op, function::Port};

use crate::{
    autodiff::PARAMETER,
    options,
    pass::{Pass, PassContext, PassError},
};

/// On a parameter's port: whether its weights decay.
pub const DECAY: &str = "t3.decay";

/// What a step does with a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Adam with decoupled weight decay.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// Gradient descent.
    Sgd {
        /// How much of the last direction is kept; 0 keeps no state.
        momentum: f64,
        /// Whether the step looks ahead along the new direction.
        nesterov: bool,
    },
}

impl Rule {
    /// The prefixes of its state.
    fn states(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW { .. } => &["m/", "v/"],
            Self::Sgd { momentum, .. } if *momentum > 0.0 => &["m/"],
            Self::Sgd { .. } => &[],
        }
    }

    /// The scalar inputs that it reads.
    fn scalars(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW { .. } => &["lr", "bias1", "bias2"],
            Self::Sgd { .. } => &["lr"],
        }
    }
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decay {
    /// All.
    #[default]
    All,
    /// All but vectors, biases and the weights of norms.
    Matrices,
}

/// An optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// What a step does with a gradient.
    pub rule: Rule,
    /// How much weights decay.
    pub weight_decay: f64,
    /// Which of them.
    pub decay: Decay,
    /// The largest global norm of the gradients; `None` for no clipping.
    pub clip: Option<f64>,
    /// Whether gradients are accumulated over calls.
    pub accumulate: bool,
    /// Whether parameters narrower than f32 have a master copy in f32.
    pub master: bool,
    /// Whether gradients stay results.
    pub keep_gradients: bool,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
            weight_decay: 0.01,
            decay: Decay::All,
            clip: Some(1.0),
            accumulate: false,
            master: false,
            keep_gradients: false,
        }
    }
}

/// AdamW's constants, for all parameters alike.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The largest global norm of the gradients; `None` for no clipping.
    pub clip: Option<f64>,
    /// Whether gradients stay results.
    pub keep_gradients: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            clip: Some(1.0),
            keep_gradients: false,
        }
    }
}

impl From<&AdamW> for Optimizer {
    fn from(adamw: &AdamW) -> Self {
        let &AdamW { beta1, beta2, eps, weight_decay, clip, keep_gradients } = adamw;
        let rule = Rule::AdamW { beta1, beta2, eps };
        Self { rule, weight_decay, clip, keep_gradients, ..Self::default() }
    }
}

impl From<&Optimizer> for Optimizer {
    fn from(optimizer: &Optimizer) -> Self {
        optimizer.clone()
    }
}

impl Optimizer {
    /// The weight decay of one parameter.
    fn decay_of(&self, port: &Port) -> f64 {
        let stated = port.attributes.iter().find(|(name, _)| name == DECAY).map(|(_, text)| text == "true");
        let name = port.name.strip_prefix(PARAMETER).unwrap_or(&port.name);
        let is_vector = port.r#type.shape.len() < 2 || name.ends_with("bias") || name.contains("norm");
        let decays = stated.unwrap_or(self.decay == Decay::All || !is_vector);
        if decays { self.weight_decay } else { 0.0 }
    }
}

const KEYS: [&str; 12] = [
    "rule",
    "beta1",
    "beta2",
    "eps",
    "momentum",
    "nesterov",
    "weight_decay",
    "decay",
    "clip",
    "accumulate",
    "master",
    "keep_gradients",
];

impl Pass for Optimizer {
    const NAME: &'static str = "t3-optimizer";
    const SUMMARY: &'static str = "Append an optimizer's step to an entry that returns gradients (once)";
    const OPTIONS: &'static [&'static str] = &[
        "rule=adamw: adamw or sgd",
        "beta1=0.9: AdamW's decay of the first moment",
        "beta2=0.999: AdamW's decay of the second moment",
        "eps=1e-8: what AdamW adds to the root of the second moment",
        "momentum=0.9: how much of its last direction SGD keeps",
        "nesterov=false: whether SGD looks ahead",
        "weight_decay=0.01: weight decay, decoupled in AdamW",
        "decay=all: what decays, all or matrices (no vectors, biases and norms)",
        "clip=1: the largest global norm of the gradients, `none` for no clipping",
        "accumulate=false: whether gradients add up in `acc/…` until `apply` is 1",
        "master=false: whether parameters narrower than f32 step on an f32 `master/…`",
        "keep_gradients=false: whether gradients stay results",
    ];

    fn from_options(text: &str) -> Result<Self, PassError> {
        let mut pass = Self::default();
        let (mut adamw, mut sgd) = ((0.9, 0.999, 1e-8), (0.9, false));
        let mut is_adamw = true;
        for (key, value) in options::parse(Self::NAME, text, &KEYS)? {
            let wrong = |expected: &str| PassError::Option {
                pass: Self::NAME,
                option: format!("{key}={value}"),
                expected: expected.to_owned(),
            };
            let flag = || value.parse::<bool>().map_err(|_| wrong("true or false"));
            let number = |fits: fn(f64) -> bool, expected: &str| {
                value.parse::<f64>().ok().filter(|number| fits(*number)).ok_or_else(|| wrong(expected))
            };
            let fraction = || number(|x| (0.0..1.0).contains(&x), "a number in 0..1");
            let size = || number(|x| x >= 0.0 && x.is_finite(), "a finite number that is not negative");
            match key {
                "rule" => {
                    is_adamw = match value {
                        "adamw" => true,
                        "sgd" => false,
                        _ => return Err(wrong("adamw or sgd")),
                    }
                }
                "beta1" => adamw.0 = fraction()?,
                "beta2" => adamw.1 = fraction()?,
                "eps" => adamw.2 = size()?,
                "momentum" => sgd.0 = fraction()?,
                "nesterov" => sgd.1 = flag()?,
                "weight_decay" => pass.weight_decay = size()?,
                "decay" => {
                    pass.decay = match value {
                        "all" => Decay::All,
                        "matrices" => Decay::Matrices,
                        _ => return Err(wrong("all or matrices")),
                    }
                }
                "clip" if value == "none" => pass.clip = None,
                "clip" => {
                    pass.clip =
                        Some(number(|x| x > 0.0 && x.is_finite(), "a positive finite number, or none")?);
                }
                "accumulate" => pass.accumulate = flag()?,
                "master" => pass.master = flag()?,
                _ => pass.keep_gradients = flag()?,
            }
        }
        pass.rule = if is_adamw {
            Rule::AdamW { beta1: adamw.0, beta2: adamw.1, eps: adamw.2 }
        } else {
            Rule::Sgd { momentum: sgd.0, nesterov: sgd.1 }
        };
        Ok(pass)
    }

    fn run(&self, module: Op<'_, '_>, _: &PassContext) -> Result<(), PassError> {
        Ok(append(module, self)?)
    }
}
