//! Rotary embedding as configurations spell it, old and new.

use serde::Deserialize;

use crate::{
    decoder::{Rope, RopeScaling},
    error::{Error, Field},
};

/// The fields of both spellings.
pub(super) struct RopeFields<'a> {
    pub theta: Option<f64>,
    pub scaling: Option<&'a RopeParameters>,
    pub parameters: Option<&'a RopeParameters>,
}

/// `rope_scaling` (public hubs) or `rope_parameters` (which holds the base as well).
#[derive(Debug, Deserialize)]
pub(super) struct RopeParameters {
    rope_type: Option<String>,
    /// How `rope_type` was called at first.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// The base where a file has none.
const DEFAULT_THETA: f64 = 10_000.0;
const SUPPORTED: [&str; 3] = ["default", "linear", "llama3"];

impl RopeFields<'_> {
    /// The embedding that they describe, for a model of this context.
    pub fn read(&self, context: u64) -> Result<Rope, Error> {
        let (name, parameters) = match self.parameters {
            Some(parameters) => ("rope_parameters", Some(parameters)),
            None => ("rope_scaling", self.scaling),
        };
        let inner = parameters.and_then(|parameters| parameters.rope_theta);
        let theta = inner.or(self.theta).unwrap_or(DEFAULT_THETA);
        if !(theta.is_finite() && theta > 0.0) {
            let field = if inner.is_some() { format!("{name}.rope_theta") } else { "rope_theta".into() };
            return Err(Error::invalid(field, format!("{theta} is no positive number")));
        }
        let scaling = match parameters {
            Some(parameters) => scaling(name, parameters, context)?,
            None => RopeScaling::Default,
        };
        Ok(Rope { theta, scaling })
    }
}

fn scaling(name: &str, parameters: &RopeParameters, context: u64) -> Result<RopeScaling, Error> {
    let (key, kind) = match (&parameters.rope_type, &parameters.r#type) {
        (Some(kind), _) => ("rope_type", kind.as_str()),
        (None, Some(kind)) => ("type", kind.as_str()),
        (None, None) => ("rope_type", "default"),
    };
    let number = |key: &str, value: Option<f64>| match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        Some(value) => Err(Error::invalid(format!("{name}.{key}"), format!("{value} is no positive number"))),
        None => Err(Error::invalid(format!("{name}.{key}"), format!("missing; `{kind}` needs it"))),
    };
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor", parameters.factor)? }),
        "llama3" => {
            let low = number("low_freq_factor", parameters.low_freq_factor)?;
            let high = number("high_freq_factor", parameters.high_freq_factor)?;
            if low >= high {
                let message = format!("{high} is not above `low_freq_factor` = {low}");
                return Err(Error::invalid(format!("{name}.high_freq_factor"), message));
            }
            let original = parameters.original_max_position_embeddings.or(Some(context as f64));
            Ok(RopeScaling::Llama3 {
                factor: number("factor", parameters.factor)?,
                low,
                high,
                original_context: number("original_max_position_embeddings", original)?,
            })
        }
        other => Err(Error::unsupported(Field::new(format!("{name}.{key}")), other, &SUPPORTED)),
    }
}
