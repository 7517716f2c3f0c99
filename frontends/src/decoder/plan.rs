//! The sizes of a call: what the options ask for, checked against the model.

use t3c_ir::{Element, units::BLOCK};

use super::{DecoderConfig, Objective, Parallel};
use crate::{Options, Phase, error::Error};

/// The sizes that the options ask for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub phase: Phase,
    /// Sequences and tokens of each, unless the tokens are packed.
    pub sequences: Option<(u64, u64)>,
    /// N, or S in decode.
    pub tokens: u64,
    /// M, where the head does not see every token.
    pub rows: Option<u64>,
    /// Rows of the rotation table.
    pub positions: u64,
    /// The longest sequence that the call is meant for, which some scalings of rotary embedding ask for.
    pub length: u64,
    /// B and NB of the cache.
    pub table: u64,
    pub blocks: u64,
    pub parallel: Parallel,
    pub element: Element,
    pub objective: Objective,
    pub temperature: f64,
    /// Weights in the loss; 0 leaves the term out.
    pub z_loss: f64,
    pub load_balance: f64,
}

/// Tokens of a sequence where the options say nothing.
const DEFAULT_SEQUENCE: u64 = 1024;
/// Ids and positions are `i32`.
const MOST_TOKENS: u64 = i32::MAX as u64;

impl Plan {
    pub fn new(config: &DecoderConfig, options: &Options) -> Result<Self, Error> {
        let parallel = Parallel::new(config, options)?;
        let context = config.context();
        let seq = options.seq.unwrap_or(DEFAULT_SEQUENCE.min(context));
        let batch = options.batch.unwrap_or(parallel.blocks());
        check(options, seq, batch)?;
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
        let table = seq.div_ceil(BLOCK);
        let packed = options.tokens.is_some() && options.seq.is_none();
        let positions = match options.phase {
            Phase::Decode => (table * BLOCK).min(most_positions(config)),
            _ if packed => tokens.min(context),
            _ => seq.min(tokens),
        };
        let rows = match options.phase {
            Phase::Training => Some(options.rows.unwrap_or(tokens)),
            Phase::Prefill => options.rows,
            Phase::Decode => None,
        };
        let blocks = options.cache_blocks.unwrap_or(table.saturating_mul(batch));
        let slots = blocks.saturating_mul(BLOCK);
        config.check_activations(&[tokens, rows.unwrap_or(tokens), slots])?;
        let unit = options.tokens.map_or(("--batch", batch), |tokens| ("--tokens", tokens));
        parallel.check_tokens(unit, tokens, rows.unwrap_or(tokens))?;
        if options.phase == Phase::Decode && !blocks.is_multiple_of(parallel.blocks()) {
            let reason = format!("cache blocks are not divisible by --dp × --ep = {}", parallel.blocks());
            return Err(Error::Option { option: "--batch", value: blocks.to_string(), reason });
        }
        Ok(Self {
            phase: options.phase,
            sequences: options.tokens.is_none().then_some((batch, seq)),
            tokens,
            rows,
            positions,
            length: if packed { context } else { seq },
            table,
            blocks,
            parallel,
            element: options.dtype.unwrap_or(config.dtype),
            objective: options.objective.clone(),
            temperature: options.temperature.unwrap_or(1.0),
            z_loss: options.z_loss.unwrap_or(0.0),
            load_balance: load_balance(config, options),
        })
    }
}

/// The weight of the routers' load balance.
fn load_balance(config: &DecoderConfig, options: &Options) -> f64 {
    match &config.experts {
        Some(experts) if options.phase == Phase::Training => {
            options.router_aux_loss.unwrap_or(experts.router_aux_loss_coef)
        }
        _ => 0.0,
    }
}

/// A table of learned positions has no rows beyond the context; that of rotations is computed.
fn most_positions(config: &DecoderConfig) -> u64 {
    if config.rope().is_some() { u64::MAX } else { config.max_position_embeddings }
}

fn check(options: &Options, seq: u64, batch: u64) -> Result<(), Error> {
    for (option, value) in [
        ("--seq", Some(seq)),
        ("--batch", Some(batch)),
        ("--tokens", options.tokens),
        ("--rows", options.rows),
    ] {
        if value == Some(0) {
            let reason = "expected a whole number of at least 1".into();
            return Err(Error::Option { option, value: "0".into(), reason });
        }
    }
    options.objective.check()?;
    let temperature = options.temperature.unwrap_or(1.0);
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::invalid("temperature", format!("{temperature} is no positive number")));
    }
    for (name, weight) in [("z_loss", options.z_loss), ("router_aux_loss_coef", options.router_aux_loss)] {
        if let Some(weight) = weight.filter(|weight| !(weight.is_finite() && *weight >= 0.0)) {
            return Err(Error::invalid(name, format!("{weight} is negative or no number")));
        }
    }
    Ok(())
}
