//! Decoder-only transformers: one builder for every family, driven by a [`DecoderConfig`].
//!
//! A family's importer fills the configuration; what differs between families is a value in it, never a
//! branch on the family's name. Heads are tensor dimensions throughout, so that weights are free views of the
//! checkpoint's matrices: `wq [K, G, 2, E, D]` is `[heads · head_dim, D]`.

mod attention;
mod build;
mod config;
mod experts;
mod layer;
mod loss;
mod mlp;
mod names;
mod parallel;
mod plan;
mod rope;
mod weights;

use std::sync::Arc;

pub use config::{
    Activation, Biases, DecoderConfig, Experts, LayerKind, Norm, Position, Residual, Rope, RopeScaling,
};
pub(crate) use config::{MOST_LAYERS, spell};
pub use loss::Objective;
use names::Role;
pub use names::{Fused, TensorNames};
use parallel::Parallel;
use plan::Plan;
use t3c_ir::Location;

use crate::{Error, ModelInfo, Options, Place, json::Source};

/// A decoder at definite sizes.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: DecoderConfig,
    plan: Plan,
    info: ModelInfo,
    origin: Option<Origin>,
}

/// The file that a configuration came from, for places.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file.
    pub source: Arc<Source>,
    /// What stands before the configuration's fields: nothing, or `model.`.
    pub prefix: &'static str,
}

impl Origin {
    fn place(&self, config: &DecoderConfig, field: &str) -> Option<Place> {
        let field = config.spell(field, Some(&self.source));
        self.source.place(&format!("{}{field}", self.prefix))
    }

    /// The same error, about this file.
    fn locate(&self, config: &DecoderConfig, error: Error) -> Error {
        let spelled = error.renamed(|field| config.spell(field, Some(&self.source)).to_owned());
        spelled.prefixed(self.prefix).located(|field| self.source.place(field))
    }
}

impl Decoder {
    /// Checks `config` and `options`. `name` is the model's; `origin` is the file that the locations name.
    ///
    /// # Errors
    /// Names the field or option that does not fit, and what would.
    pub fn new(
        config: DecoderConfig,
        name: &str,
        options: &Options,
        origin: Option<Origin>,
    ) -> Result<Self, Error> {
        let checked = config.check().and_then(|()| Plan::new(&config, options));
        let plan = checked.map_err(|error| match &origin {
            Some(origin) => origin.locate(&config, error),
            None => error,
        })?;
        let info = ModelInfo {
            name: name.to_owned(),
            layers: config.num_hidden_layers,
            parameters: config.parameters(&plan.parallel, plan.element),
            vocab_size: Some(config.vocab_size),
            context_length: Some(config.context()),
            batch: plan.sequences.map(|(batch, _)| batch),
            seq: plan.sequences.map(|(_, seq)| seq),
            tp: plan.parallel.tp,
            dp: plan.parallel.dp,
            ep: plan.parallel.ep,
            element: plan.element,
            degrees: config.degrees(),
        };
        Ok(Self { config, plan, info, origin })
    }

    /// Parameters and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The location of what field `field` of the configuration decides.
    fn location<'c>(&self, context: &'c melior::Context, field: &str) -> Location<'c> {
        match self.origin.as_ref().and_then(|origin| origin.place(&self.config, field)) {
            Some(place) => Location::new(context, &place.file, place.line, place.column),
            None => Location::unknown(context),
        }
    }
}
