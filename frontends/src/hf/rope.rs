//! Rotary embedding as configurations spell it, old and new.

use serde::Deserialize;

use crate::{
    decoder::{Rope, RopeScaling},
    error::{Error, Field},
};

/// The fields of both spellings.
pub(super) struct RopeFields<'n> {
    pub theta: Option<f64>,
    pub theta_name: &'n str,
    pub default_theta: f64,
    pub partial: Option<f64>,
    pub default_partial: f64,
    /// Stands beside the parameters in some families, and wins over theirs.
    pub original_context: Option<f64>,
    pub scaling: Option<RopeParameters>,
    pub parameters: Option<RopeParameters>,
}

/// `rope_scaling` (public hubs) or `rope_parameters` (which holds the base as well).
#[derive(Debug, Default, Deserialize)]
pub(super) struct RopeParameters {
    rope_type: Option<String>,
    /// How `rope_type` was called at first.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    original_max_position_embeddings: Option<f64>,
}

const SUPPORTED: [&str; 6] = ["default", "linear", "dynamic", "yarn", "llama3", "longrope"];
/// YaRN's, where a file has none.
const BETAS: (f64, f64) = (32.0, 1.0);

impl RopeFields<'_> {
    /// The embedding that they describe, for a model of this context.
    pub fn read(self, context: u64) -> Result<Rope, Error> {
        let (name, parameters) = match self.parameters {
            Some(parameters) => ("rope_parameters", parameters),
            None => ("rope_scaling", self.scaling.unwrap_or_default()),
        };
        let inner = parameters.rope_theta;
        let theta = inner.or(self.theta).unwrap_or(self.default_theta);
        if !(theta.is_finite() && theta > 0.0) {
            let field =
                if inner.is_some() { format!("{name}.rope_theta") } else { self.theta_name.to_owned() };
            return Err(Error::invalid(field, format!("{theta} is no positive number")));
        }
        let partial = parameters.partial_rotary_factor.or(self.partial).unwrap_or(self.default_partial);
        let original = self.original_context.or(parameters.original_max_position_embeddings);
        let reader = Reader { name, parameters: &parameters, original, context: context as f64 };
        Ok(Rope { theta, scaling: reader.scaling()?, partial })
    }
}

/// One file's parameters, under the name that errors call them.
struct Reader<'p> {
    name: &'static str,
    parameters: &'p RopeParameters,
    original: Option<f64>,
    context: f64,
}

impl Reader<'_> {
    fn kind(&self) -> (&'static str, &str) {
        match (&self.parameters.rope_type, &self.parameters.r#type) {
            (Some(kind), _) => ("rope_type", kind.as_str()),
            (None, Some(kind)) => ("type", kind.as_str()),
            (None, None) => ("rope_type", "default"),
        }
    }

    fn number(&self, key: &str, value: Option<f64>) -> Result<f64, Error> {
        let field = format!("{}.{key}", self.name);
        match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(Error::invalid(field, format!("{value} is no positive number"))),
            None => Err(Error::invalid(field, format!("missing; `{}` needs it", self.kind().1))),
        }
    }

    fn numbers(&self, key: &str, values: &Option<Vec<f64>>) -> Result<Vec<f64>, Error> {
        let field = format!("{}.{key}", self.name);
        let Some(values) = values else {
            return Err(Error::invalid(field, format!("missing; `{}` needs it", self.kind().1)));
        };
        match values.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
            Some(value) => Err(Error::invalid(field, format!("{value} is no positive number"))),
            None => Ok(values.clone()),
        }
    }

    fn factor(&self) -> Result<f64, Error> {
        self.number("factor", self.parameters.factor)
    }

    fn original_context(&self) -> Result<f64, Error> {
        self.number("original_max_position_embeddings", self.original.or(Some(self.context)))
    }

    fn scaling(&self) -> Result<RopeScaling, Error> {
        let (key, kind) = self.kind();
        match kind {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: self.factor()? }),
            "dynamic" => Ok(RopeScaling::Dynamic { factor: self.factor()?, context: self.context }),
            "yarn" => self.yarn(),
            "llama3" => self.llama3(),
            // Phi-3's first files call it by the paper's first name.
            "longrope" | "su" => self.longrope(),
            other => Err(Error::unsupported(Field::new(format!("{}.{key}", self.name)), other, &SUPPORTED)),
        }
    }

    fn llama3(&self) -> Result<RopeScaling, Error> {
        let low = self.number("low_freq_factor", self.parameters.low_freq_factor)?;
        let high = self.number("high_freq_factor", self.parameters.high_freq_factor)?;
        if low >= high {
            let message = format!("{high} is not above `low_freq_factor` = {low}");
            return Err(Error::invalid(format!("{}.high_freq_factor", self.name), message));
        }
        let original_context = self.original_context()?;
        Ok(RopeScaling::Llama3 { factor: self.factor()?, low, high, original_context })
    }

    fn yarn(&self) -> Result<RopeScaling, Error> {
        let original_context = self.original_context()?;
        let factor = match self.parameters.factor {
            Some(_) => self.factor()?,
            None => self.context / original_context,
        };
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention_factor = match self.parameters.attention_factor {
            Some(value) => self.number("attention_factor", Some(value))?,
            None => match (self.parameters.mscale, self.parameters.mscale_all_dim) {
                (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
                _ => magnitude(1.0),
            },
        };
        let beta = |key, value: Option<f64>, default: f64| {
            self.number(key, value.filter(|beta| *beta != 0.0).or(Some(default)))
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast: beta("beta_fast", self.parameters.beta_fast, BETAS.0)?,
            beta_slow: beta("beta_slow", self.parameters.beta_slow, BETAS.1)?,
            original_context,
            truncate: self.parameters.truncate.unwrap_or(true),
        })
    }

    fn longrope(&self) -> Result<RopeScaling, Error> {
        let original_context = self.original_context()?;
        let factor = match self.parameters.factor {
            Some(_) => self.factor()?,
            None => self.context / original_context,
        };
        let attention_factor = match self.parameters.attention_factor {
            Some(value) => self.number("attention_factor", Some(value))?,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original_context.ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short: self.numbers("short_factor", &self.parameters.short_factor)?,
            long: self.numbers("long_factor", &self.parameters.long_factor)?,
            original_context,
            attention_factor,
        })
    }
}
