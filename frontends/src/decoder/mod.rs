//! Decoder-only transformers: one builder for every family, driven by a [`DecoderConfig`].
//!
//! A family's importer fills the configuration; what differs between families is a value in it, never a
//! branch on the family's name. Heads are tensor dimensions throughout, so that weights are free views of the
//! checkpoint's matrices: `wq [K, G, 2, E, D]` is `[heads · head_dim, D]`.

mod build;
mod config;
mod layer;
mod loss;
mod rope;

use std::sync::Arc;

pub use config::{Activation, DecoderConfig, Rope, RopeScaling, TensorNames};
pub use loss::Objective;
use t3c_ir::{Element, Location, Splits};

use crate::{Error, ModelInfo, Options, Parameter, Phase, Place, info::degrees, json::Source};

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
    fn place(&self, field: &str) -> Option<Place> {
        self.source.place(&format!("{}{field}", self.prefix))
    }

    /// The same error, about this file.
    fn locate(&self, error: Error) -> Error {
        error.prefixed(self.prefix).located(|field| self.source.place(field))
    }
}

/// The sizes that the options ask for.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    phase: Phase,
    /// Sequences and tokens of each, unless the tokens are packed.
    sequences: Option<(u64, u64)>,
    /// N, or S in decode.
    tokens: u64,
    /// M, where the head does not see every token.
    rows: Option<u64>,
    /// Rows of the rotation table.
    positions: u64,
    /// B and NB of the cache.
    table: u64,
    blocks: u64,
    tp: u64,
    element: Element,
    objective: Objective,
    temperature: f64,
}

/// Tokens of a sequence where the options say nothing.
const DEFAULT_SEQUENCE: u64 = 1024;
/// Ids and positions are `i32`.
const MOST_TOKENS: u64 = i32::MAX as u64;

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
        let checked = config.check().and_then(|()| Plan::new(&config, options)).and_then(|plan| {
            config.check_degree(plan.tp)?;
            Ok(plan)
        });
        let plan = checked.map_err(|error| match &origin {
            Some(origin) => origin.locate(error),
            None => error,
        })?;
        let info = ModelInfo {
            name: name.to_owned(),
            layers: config.num_hidden_layers,
            parameters: config.parameters(plan.element),
            vocab_size: Some(config.vocab_size),
            context_length: Some(config.max_position_embeddings),
            batch: plan.sequences.map(|(batch, _)| batch),
            seq: plan.sequences.map(|(_, seq)| seq),
            tp: plan.tp,
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
        match self.origin.as_ref().and_then(|origin| origin.place(field)) {
            Some(place) => Location::new(context, &place.file, place.line, place.column),
            None => Location::unknown(context),
        }
    }
}

impl Plan {
    fn new(config: &DecoderConfig, options: &Options) -> Result<Self, Error> {
        let context = config.max_position_embeddings;
        let seq = options.seq.unwrap_or(DEFAULT_SEQUENCE.min(context));
        let batch = options.batch.unwrap_or(1);
        for (option, value) in [
            ("--seq", Some(seq)),
            ("--batch", Some(batch)),
            ("--tp", options.tp),
            ("--tokens", options.tokens),
            ("--rows", options.rows),
        ] {
            positive(option, value)?;
        }
        options.objective.check()?;
        let temperature = options.temperature.unwrap_or(1.0);
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::invalid("temperature", format!("{temperature} is no positive number")));
        }
        if seq > context {
            let reason = format!("longer than the model's context; `max_position_embeddings` = {context}");
            return Err(Error::Option { option: "--seq", value: seq.to_string(), reason });
        }
        let sequences = if options.phase == Phase::Decode { Some(batch) } else { batch.checked_mul(seq) };
        let tokens =
            options.tokens.or(sequences).filter(|&tokens| tokens <= MOST_TOKENS).ok_or_else(|| {
                let reason =
                    format!("with sequences of {seq}, more tokens than a call can have ({MOST_TOKENS})");
                Error::Option { option: "--batch", value: batch.to_string(), reason }
            })?;
        let table = seq.div_ceil(t3c_ir::units::BLOCK);
        let positions = match options.phase {
            Phase::Decode => table * t3c_ir::units::BLOCK,
            _ if options.tokens.is_some() && options.seq.is_none() => tokens.min(context),
            _ => seq.min(tokens),
        };
        let rows = match options.phase {
            Phase::Training => Some(options.rows.unwrap_or(tokens)),
            Phase::Prefill => options.rows,
            Phase::Decode => None,
        };
        let blocks = options.cache_blocks.unwrap_or(table.saturating_mul(batch));
        let slots = blocks.saturating_mul(t3c_ir::units::BLOCK);
        config.check_activations(&[tokens, rows.unwrap_or(tokens), slots])?;
        Ok(Self {
            phase: options.phase,
            sequences: options.tokens.is_none().then_some((batch, seq)),
            tokens,
            rows,
            positions,
            table,
            blocks,
            tp: options.tp.unwrap_or(1),
            element: options.dtype.unwrap_or(config.dtype),
            objective: options.objective.clone(),
            temperature,
        })
    }
}

fn positive(option: &'static str, value: Option<u64>) -> Result<(), Error> {
    if value == Some(0) {
        let reason = "expected a whole number of at least 1".into();
        return Err(Error::Option { option, value: "0".into(), reason });
    }
    Ok(())
}

/// What the builder knows of one weight of a layer.
#[derive(Clone, Debug)]
struct Weight {
    /// Its module in the checkpoint, after the layer's prefix, such as `self_attn.q_proj`.
    module: &'static str,
    shape: Vec<u64>,
    checkpoint: Vec<u64>,
    /// The dimension that tensor parallelism splits.
    split: Option<usize>,
    /// The field of the configuration that decides its size.
    field: &'static str,
}

impl Weight {
    fn parameter(&self, prefix: &str, element: Element) -> Parameter {
        Parameter {
            name: format!("{prefix}{}.weight", self.module),
            shape: self.shape.clone(),
            checkpoint_shape: self.checkpoint.clone(),
            split: self.splits(),
            element,
        }
    }

    /// The grid axes that split each dimension.
    fn splits(&self) -> Splits {
        let axes = |at: usize| if self.split == Some(at) { vec![layer::TP_AXIS] } else { vec![] };
        (0..self.shape.len()).map(axes).collect()
    }
}

impl DecoderConfig {
    /// Degrees of tensor parallelism that divide the KV heads and the MLP.
    pub fn degrees(&self) -> Vec<u64> {
        degrees(&[self.num_key_value_heads, self.intermediate_size])
    }

    /// The parameters, in the order of the checkpoint.
    pub fn parameters(&self, element: Element) -> Vec<Parameter> {
        let names = self.names;
        let mut parameters = vec![self.embedding().parameter("", element)];
        for layer in 0..self.num_hidden_layers {
            let prefix = format!("{}.{layer}.", names.layers);
            parameters.extend(self.layer_weights().iter().map(|weight| weight.parameter(&prefix, element)));
        }
        parameters.push(self.final_norm().parameter("", element));
        if !self.tie_word_embeddings {
            parameters.push(self.head().parameter("", element));
        }
        parameters
    }

    fn embedding(&self) -> Weight {
        let shape = vec![self.vocab_size, self.hidden_size];
        let module = self.names.embedding;
        Weight { module, shape: shape.clone(), checkpoint: shape, split: None, field: "vocab_size" }
    }

    fn head(&self) -> Weight {
        Weight { module: self.names.head, ..self.embedding() }
    }

    fn final_norm(&self) -> Weight {
        Weight { module: self.names.final_norm, ..self.norm("") }
    }

    fn norm(&self, module: &'static str) -> Weight {
        let shape = vec![self.hidden_size];
        Weight { module, shape: shape.clone(), checkpoint: shape, split: None, field: "rms_norm_eps" }
    }

    /// The weights of one layer, in the order of the checkpoint and of the layer function's arguments.
    fn layer_weights(&self) -> Vec<Weight> {
        let names = self.names;
        let (d, f, h) = (self.hidden_size, self.intermediate_size, self.head_dim);
        let (k, g) = (self.num_key_value_heads, self.groups());
        let weight = |module, shape: &[u64], rows, columns, split, field| Weight {
            module,
            shape: shape.to_vec(),
            checkpoint: vec![rows, columns],
            split: Some(split),
            field,
        };
        vec![
            weight(names.query, &[k, g, 2, h / 2, d], k * g * h, d, 0, "num_attention_heads"),
            weight(names.key, &[k, 2, h / 2, d], k * h, d, 0, "num_key_value_heads"),
            weight(names.value, &[k, h, d], k * h, d, 0, "num_key_value_heads"),
            weight(names.output, &[d, k, g, h], d, k * g * h, 1, "num_attention_heads"),
            weight(names.gate, &[f, d], f, d, 0, "intermediate_size"),
            weight(names.up, &[f, d], f, d, 0, "intermediate_size"),
            weight(names.down, &[d, f], d, f, 1, "intermediate_size"),
            self.norm(names.attention_norm),
            self.norm(names.mlp_norm),
        ]
    }
}
